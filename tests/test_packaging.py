"""The package installs whole: metadata, extension, models and console script."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
README = (ROOT / "README.md").read_text()
LINKS = set(re.findall(r"\]\((?!https?:)([^)#]+)", README))


def _names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9_.-]+", text)[0].lower() for text in requirements}


def _run(*command: str | Path, cwd: Path, **env: str) -> str:
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_installed_version_is_that_of_pyproject():
    assert metadata.version("cv-patchpose") == PROJECT["version"]


def test_console_script_is_registered():
    scripts = metadata.entry_points(group="console_scripts")
    assert scripts["cv-patchpose"].value == "cv_patchpose.cli:main"


def test_onnx_engines_are_optional_and_never_together():
    engines = {"onnxruntime", "onnxruntime-gpu"}
    assert not engines & _names(PROJECT["dependencies"])
    assert all(len(engines & _names(extra)) < 2 for extra in EXTRAS.values())
    assert [name for name, extra in EXTRAS.items() if engines & _names(extra)] == ["cpu", "gpu"]


def test_dependencies_are_ranges_and_pinned_in_the_constraints():
    pins = _names((ROOT / "constraints.txt").read_text().splitlines()[1:])
    requirements = [
        *PROJECT["dependencies"],
        *(text for extra in EXTRAS.values() for text in extra),
    ]
    assert not [text for text in requirements if "==" in text]
    assert _names(requirements) - pins == {"onnxruntime-gpu"}


def test_both_variants_of_opencv_have_one_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line.startswith("opencv-")]
    assert [name for name, _ in pins] == ["opencv-contrib-python-headless", "opencv-contrib-python"]
    assert len({version for _, version in pins}) == 1


def test_readme_is_whole():
    assert LINKS
    assert {link for link in LINKS if not (ROOT / link).exists()} == set()
    assert "@@" not in README


def test_conventions_page_and_tests_name_each_other():
    page = (ROOT / "CONVENTIONS.md").read_text()
    named = set(re.findall(r"`(test_\w+\.py)::(?:\w+::)?(test_\w+)`", page))
    defined = {
        (path.name, name)
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert page.count("`test_") == len(named)
    assert named <= defined
    assert {pair for pair in defined if pair[1].startswith("test_convention_")} <= named


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_demo_shows_why_installing_failed_and_goes_on(tmp_path):
    """With a Python in place of the environment's that cannot install what is to be compiled."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(
        "#!/bin/sh\n"
        '[ -n "$PATCHPOSE_PURE_PYTHON" ] || [ "$2" != pip ] || {\n'
        "    seq 100; echo 'no space left' >&2; exit 1\n"
        "}\n"
    )
    python.chmod(0o755)
    (tmp_path / ".tools").touch()
    command = ["make", f"VENV={tmp_path}", str(tmp_path / ".demo")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no space left\n" in done.stdout
    assert f"see above, or all of {tmp_path}/demo.log" in done.stdout
    assert "\n50\n" not in done.stdout
    assert "\n50\n" in (tmp_path / "demo.log").read_text()
    assert (tmp_path / ".demo").exists()


def test_imports_without_the_extension(tmp_path):
    code = "import sys; sys.modules['cv_patchpose._core'] = None; import cv_patchpose"
    _run("-c", code, cwd=tmp_path)


@pytest.mark.parametrize(
    ("flags", "platform"),
    [("-arch x86_64 -arch arm64", "macosx-11.0-x86_64"), ("", "macosx-10.13-universal2")],
)
def test_a_wheel_for_two_processors_is_compiled_for_both(monkeypatch, tmp_path, flags, platform):
    for module in ("pybind11", "cmake", "ninja"):
        pytest.importorskip(module)
    setuptools = pytest.importorskip("setuptools")
    commands = []
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    monkeypatch.setenv("ARCHFLAGS", flags)
    monkeypatch.setattr(sysconfig, "get_platform", lambda: platform)
    build = runpy.run_path(str(ROOT / "setup.py"))["CMakeBuild"](setuptools.Distribution())
    build.build_lib = build.build_temp = str(tmp_path)
    build.ensure_finalized()
    build.build_extension(setuptools.Extension("cv_patchpose._core", sources=[]))
    assert "-DCMAKE_OSX_ARCHITECTURES=x86_64;arm64" in commands[0]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """Build a source distribution from a copy of the tree, so that the tree stays clean."""
    for module in ("setuptools", "pybind11", "cmake", "ninja"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("sdist")
    tree = folder / "tree"
    junk = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "*.egg-info")
    grafted = re.findall(r"^graft (\w+)$", (ROOT / "MANIFEST.in").read_text(), re.MULTILINE)
    for name in {"cv_patchpose", *(name for name in grafted if (ROOT / name).is_dir())}:
        shutil.copytree(ROOT / name, tree / name, ignore=junk)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    _run("-c", code, cwd=tree)
    return next(folder.glob("*.tar.gz"))


def _wheel(sdist: Path, folder: Path, **env: str) -> Path:
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "-w", folder]
    _run("-m", "pip", "wheel", *options, sdist, cwd=folder, **env)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_sdist_carries_what_a_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = ["CMakeLists.txt", "LICENSE", "constraints.txt", "Makefile"]
    wanted += [str(p.relative_to(ROOT)) for p in (ROOT / "cpp").iterdir() if p.is_file()]
    wanted += [str(p.relative_to(ROOT)) for p in (ROOT / "models").iterdir() if p.is_file()]
    assert set(wanted) | LINKS <= names


@pytest.mark.slow
def test_wheel_from_the_sdist_works_on_its_own(sdist, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    (old / "cmake").write_text("#!/bin/sh\nexit 1\n")  # on PATH, but too old
    (old / "cmake").chmod(0o755)
    path = f"{old}{os.pathsep}{os.environ['PATH']}"
    wheel = _wheel(sdist, tmp_path, PATCHPOSE_PURE_PYTHON="", PATH=path)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        names = archive.namelist()
    assert any(re.fullmatch(r"cv_patchpose/_core\..*(so|pyd)", name) for name in names)
    assert "cv_patchpose/py.typed" in names
    models = {p.name for p in (ROOT / "models").iterdir() if p.suffix in (".onnx", ".md")}
    assert {f"cv_patchpose/models/{name}" for name in models} <= set(names)
    information = f"cv_patchpose-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"cv_patchpose", information}
    code = (
        "import importlib.resources as r, cv_patchpose, cv_patchpose._core as core;"
        "print(core.__file__); print(*(p for p in r.files('cv_patchpose.models').iterdir()))"
    )
    printed = _run("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert all(path.startswith(str(tmp_path / "site")) for path in printed.split())


@pytest.mark.slow
def test_pure_python_wheel_on_request(sdist, tmp_path):
    wheel = _wheel(sdist, tmp_path, PATCHPOSE_PURE_PYTHON="1")
    assert wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.slow
def test_failed_build_is_an_error(sdist, tmp_path):
    options = ["--no-build-isolation", "--no-deps", "--no-index", "-w", tmp_path]
    with pytest.raises(AssertionError, match="cmake"):
        _run(
            *("-m", "pip", "wheel", *options, sdist),
            cwd=tmp_path,
            CXX="/nonexistent/c++",
            PATCHPOSE_PURE_PYTHON="",
        )
