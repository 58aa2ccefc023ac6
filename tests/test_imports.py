"""The public list, the direction of imports, and what importing the package loads."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import cv_patchpose

PACKAGE = Path(cv_patchpose.__file__).parent
LAYERS = (
    {"commit", "errors", "grids", "homography", "opencv", "pyramid"},
    {"histograms", "keypoints", "patches"},
    {"gradients", "metadata", "options", "field_rules", "files", "pickling"},
    {"descriptors", "detectors"},
    {"estimator", "patchpose", "rectified", "support"},
    {"assigner"},
    {"feature2d", "interop", "pose_matching", "ratio_matching"},
    {"matching"},
    {"drawing"},
    {"evaluation"},
    {"cli"},
)
LEVEL = {room: level for level, layer in enumerate(LAYERS) for room in layer}
TRAINING_MAY_USE = set().union(*LAYERS[: LEVEL["estimator"] + 1])
VERSION = "cv_patchpose.__version__"
HEAVY = {"torch", "matplotlib", "onnxruntime", "onnx", "scipy", "skimage", "kornia", "tqdm", "h5py"}


def modules():
    files = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return sorted(path.with_suffix("").as_posix() for path in files if path.name != "__init__.py")


def imported_rooms(module, *, also_within_functions):
    """Return the rooms of the package that a module imports."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    nodes = ast.walk(tree) if also_within_functions else tree.body
    names = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module == "cv_patchpose":
            names |= {f"cv_patchpose.{alias.name}" for alias in node.names} - {VERSION}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("cv_patchpose.")} - {"_core"}


def loaded_by(statement):
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    return {name.split(".")[0] for name in found}


def test_the_public_list_is_sorted_and_complete():
    public = cv_patchpose.__all__
    assert public == sorted(public)
    assert all(hasattr(cv_patchpose, name) for name in public)
    tree = ast.parse(Path(cv_patchpose.__file__).read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if node.module.startswith("cv_patchpose")]
    names = {alias.name for node in ours for alias in node.names}
    assert names == set(public)


@pytest.mark.parametrize("module", modules())
def test_imports_point_one_way(module):
    room = module.split("/")[0]
    used = imported_rooms(module, also_within_functions=room != "cli") - {room}
    if room == "training":
        assert used <= TRAINING_MAY_USE
        return
    assert room in LEVEL, "a new module needs its place among the layers"
    assert {name for name in used if LEVEL.get(name, 99) >= LEVEL[room]} == set()


@pytest.mark.parametrize("statement", ["import cv_patchpose", "import cv_patchpose.cli"])
def test_importing_loads_nothing_heavy(statement):
    assert loaded_by(statement) & HEAVY == set()


def test_making_a_dataset_loads_no_engine():
    assert loaded_by("import cv_patchpose.patchpose.sources") & HEAVY == set()
    if importlib.util.find_spec("tqdm"):
        assert loaded_by("import cv_patchpose.patchpose.generator") & HEAVY == {"tqdm"}


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").exists()
