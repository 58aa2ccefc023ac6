# Needs python3 (3.11+), a C++17 compiler and make; the rest comes from PyPI into $(VENV).
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= cpu,train,eval,test,dev
PYTEST_ARGS ?=
VENV4 ?= .venv-opencv4

BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PIP4 = $(VENV4)/bin/python -m pip install --quiet --disable-pip-version-check -c $(VENV4)/constraints.txt
SOURCES := pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard cpp/*)
BENCHMARKS := $(patsubst benchmarks/bench_%.py,%,$(wildcard benchmarks/bench_*.py))
CPP := $(wildcard cpp/*.cpp cpp/*.hpp)
export PATH := $(BIN):$(PATH)

BUILD_HINT := Installing failed (see above). Where the C++ build fails, Debian: apt-get install g++ python3-dev. \
              To go on without it, slower: PATCHPOSE_PURE_PYTHON=1 make $(MAKECMDGOALS)
INSTALL = $(PIP) --no-build-isolation -e '.[$(1)]'
# Machines without a display may lack libGL and glib, which only the headless variant does without.
ENSURE_CV2 = $(BIN)/python -c 'import cv2' 2>/dev/null || { \
    echo 'OpenCV does not load here: installing its headless variant'; \
    $(BIN)/python -m pip uninstall --quiet --yes opencv-contrib-python && \
    $(PIP) --force-reinstall --no-deps opencv-contrib-python-headless && \
    $(BIN)/python -c 'import cv2'; }

# Tests of what does not depend on OpenCV's version and needs packages of other extras.
OPENCV4_IGNORED := benchmark_scripts evaluation packaging training cli_training polar resnet distributed losses synthesis
OPENCV4_TESTS := pytest hypothesis onnx scikit-image
PACKAGE := $(shell find cv_patchpose models -name '*.py' -o -name '*.onnx')

.PHONY: setup test test-opencv4 demo lint format typecheck bench clean

setup: $(VENV)/.full

test: $(VENV)/.full
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The older line of OpenCV, with what every install has: no ONNX Runtime (cv2.dnn runs the models), no
# torch. The wheel installed there is tested, not the checkout; tests that need more skip themselves.
test-opencv4: $(VENV4)/.full
	$(VENV4)/bin/pytest $(OPENCV4_IGNORED:%=--ignore-glob='tests/test_%*') $(PYTEST_ARGS)

demo: $(VENV)/.demo
	$(BIN)/python examples/demo_photographs.py demo
	$(BIN)/cv-patchpose match demo/first.jpg demo/second.jpg -o demo/matches.png
	@echo 'Before and after, side by side: $(CURDIR)/demo/matches.png'

lint: $(VENV)/.full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(VENV)/.full
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

typecheck: $(VENV)/.full
	$(BIN)/mypy

bench: $(VENV)/.full
	@mkdir -p bench
	@for name in $(BENCHMARKS); do \
	    echo "benchmarks/bench_$$name.py > bench/$$name.json"; \
	    $(BIN)/python benchmarks/bench_$$name.py > bench/.part && mv bench/.part bench/$$name.json || exit 1; \
	done
	@$(BIN)/python benchmarks/show.py $(BENCHMARKS:%=bench/%.json)

clean:
	rm -rf $(VENV) $(VENV4) bench build dist demo *.egg-info cv_patchpose/_core.*.so

$(VENV)/.tools: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11+ is needed: make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV) || { echo 'Debian: apt-get install python3-venv' >&2; exit 1; }
	@$(PIP) setuptools wheel pybind11 cmake ninja
	@touch $@

$(VENV)/.demo: $(VENV)/.tools $(SOURCES)
	@echo 'Installing cv-patchpose[cpu] into $(VENV)'
	@$(call INSTALL,cpu) scikit-image >$(VENV)/demo.log 2>&1 || { \
	    tail -n 20 $(VENV)/demo.log; \
	    echo 'Installing failed: see above, or all of $(VENV)/demo.log'; \
	    echo 'Trying without the C++ kernel, which is slower but needs no compiler'; \
	    PATCHPOSE_PURE_PYTHON=1 $(call INSTALL,cpu) scikit-image; }
	@$(ENSURE_CV2)
	@touch $@

$(VENV)/.full: $(VENV)/.tools $(SOURCES)
	@echo 'Installing cv-patchpose[$(EXTRAS)] into $(VENV)'
	@$(call INSTALL,$(EXTRAS)) || { echo '$(BUILD_HINT)' >&2; exit 1; }
	@$(ENSURE_CV2)
	@touch $@

$(VENV4)/.tools: constraints.txt constraints-opencv4.txt
	@$(PYTHON) -m venv $(VENV4) || { echo 'Debian: apt-get install python3-venv' >&2; exit 1; }
	@grep -v '^opencv-' constraints.txt | cat - constraints-opencv4.txt > $(VENV4)/constraints.txt
	@$(PIP4) setuptools wheel pybind11 cmake ninja numpy opencv-contrib-python-headless $(OPENCV4_TESTS)
	@touch $@

$(VENV4)/.full: $(VENV4)/.tools $(SOURCES) $(PACKAGE)
	@echo 'Installing cv-patchpose into $(VENV4), with OpenCV 4'
	@rm -rf build/lib build/lib.* build/bdist.*
	@$(PIP4) --no-build-isolation --no-deps --force-reinstall . || { echo '$(BUILD_HINT)' >&2; exit 1; }
	@touch $@
