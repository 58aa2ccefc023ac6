"""Pairs of photographs from calibrated cameras, in the layouts of two benchmarks.

- ``SCENE/cameras.json`` beside ``SCENE/images/``: an object from each image's file name to its K
  (3 x 3), R (3 x 3) and t (3), with x = K (R X + t), and if known its width and height. The pairs
  are all whose optical axes are at most 60 degrees apart; no 3-D points are known from which to
  take the angle between the lines of sight. (The scenes of C. Strecha et al., "On
  Benchmarking Camera Calibration and Multi-View Stereo for High Resolution Imagery", CVPR 2008.)
- IMC2021, ``SCENE/set_100/``: ``images/NAME.jpg``; ``calibration/calibration_NAME.h5`` with data
  sets K (3, 3), R (3, 3) and T (3), x = K (R X + T); and ``new-vis-pairs/keys-th-0.1.npy``, an
  array of strings ``NAME1-NAME2``, the pairs that see enough of the same. Nothing else is read.
  (Jin et al., "Image Matching across Wide Baselines: From Paper to Practice", IJCV 2020.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cv_patchpose.evaluation.cameras import Camera, read_camera, viewing_angle_deg
from cv_patchpose.evaluation.folders import list_folders, name_folder
from cv_patchpose.files import IMAGE_SUFFIXES

DIFFICULTIES = ("easy", "medium", "hard")
_HARDER_FROM_DEG = (15.0, 30.0)
_MOST_DEG = 60.0  # beyond it, photographs of one wall hardly share any of it
_CAMERAS_FILE = "cameras.json"
_PAIRS_FILE = Path("new-vis-pairs/keys-th-0.1.npy")
_CALIBRATION = "calibration"
_IMC_PARTS = ("images", _CALIBRATION, _PAIRS_FILE.parent.name)  # two of them are meant as a scene
_LAYOUTS = (
    f"folders with {_CAMERAS_FILE} and images/, or in IMC2021's layout with images/, "
    f"{_CALIBRATION}/ and {_PAIRS_FILE}"
)


@dataclass(frozen=True, eq=False)
class CalibratedImage:
    """A photograph and its camera.

    Attributes:
        path: Image file.
        camera: The camera.
        size: (height, width) the calibration is for, or None if it does not say.
    """

    path: Path
    camera: Camera
    size: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class ViewPair:
    """Two photographs of a scene.

    Attributes:
        name: Of the scene and the two images.
        first: Image 1.
        second: Image 2.
    """

    name: str
    first: CalibratedImage
    second: CalibratedImage

    @property
    def sequence(self) -> str:
        """Name of the scene."""
        return self.name.rpartition("/")[0]

    @property
    def pair(self) -> str:
        """Name of the pair within the scene."""
        return self.name.rpartition("/")[2]

    @property
    def difficulty(self) -> str:
        """Rank by the angle between the optical axes.

        Easy below 15 degrees, medium below 30, hard from there. That is not the angle of the
        baseline, for which 3-D points would have to be known: cameras side by side that look the
        same way count as easy, however far they are apart.
        """
        angle_deg = viewing_angle_deg(self.first.camera, self.second.camera)
        return DIFFICULTIES[sum(angle_deg >= limit for limit in _HARDER_FROM_DEG)]


def find_pairs(root: Path) -> tuple[list[ViewPair], dict[str, str]]:
    """Find the pairs of every scene under a root.

    Args:
        root: Folder, searched recursively for scenes in one of the layouts above.

    Returns:
        The pairs in order of scene and name, and by name what is wrong with scenes and images that
        could not be read.

    Raises:
        ValueError: ``root`` is no folder or holds no scene.
        ImportError: A scene needs h5py, which is missing.
    """
    if not root.is_dir():
        raise ValueError(f"root: expected a folder, got {root}")
    pairs: list[ViewPair] = []
    failures: dict[str, str] = {}
    for folder in list_folders(root):
        name = name_folder(folder, root)
        try:
            if (folder / _CAMERAS_FILE).is_file():
                pairs += _read_json_scene(name, folder, failures)
            elif sum((folder / part).is_dir() for part in _IMC_PARTS) > 1:
                pairs += _read_imc_scene(name, folder, failures)
        except (ValueError, OSError) as error:
            failures[name] = str(error)
    if not pairs and not failures:
        raise ValueError(f"root: expected {_LAYOUTS}; got none under {root}")
    return pairs, failures


def _read_json_scene(name: str, folder: Path, failures: dict[str, str]) -> list[ViewPair]:
    path = folder / _CAMERAS_FILE
    try:
        entries = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise ValueError(f"{path}: expected an object from file names to cameras with K, R and t")
    images: dict[str, CalibratedImage] = {}
    for file_name, entry in sorted(entries.items()):
        try:
            camera = read_camera(f"{path}: {file_name}", entry)
            size = _read_size(f"{path}: {file_name}", entry)
            image_path = _require_file(folder / "images" / file_name)
            if image_path.stem in images:
                raise ValueError(
                    f"{path}: {file_name}: expected names that differ before the suffix, got "
                    f"{images[image_path.stem].path.name} too"
                )
        except ValueError as error:
            failures[f"{name}/{file_name}"] = str(error)
            continue
        images[image_path.stem] = CalibratedImage(image_path, camera, size)
    pairs = [
        _pair(name, images, first, second)
        for index, first in enumerate(images)
        for second in list(images)[index + 1 :]
    ]
    near = [
        pair
        for pair in pairs
        if viewing_angle_deg(pair.first.camera, pair.second.camera) <= _MOST_DEG
    ]
    if not near:
        raise ValueError(
            f"{path}: expected two images or more whose optical axes are at most {_MOST_DEG:g} "
            f"degrees apart, got none such among {len(images)}"
        )
    return near


def _read_imc_scene(name: str, folder: Path, failures: dict[str, str]) -> list[ViewPair]:
    for part in ("images", _CALIBRATION):
        if not (folder / part).is_dir():
            raise ValueError(f"{folder / part}: expected a folder, got none")
    keys = _read_keys(folder / _PAIRS_FILE)
    files: dict[str, list[Path]] = {}
    for path in sorted((folder / "images").iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            files.setdefault(path.stem, []).append(path)
    names: list[tuple[str, str]] = []
    for key in keys:
        try:
            names.append(_split_key(key, files))
        except ValueError as error:
            failures[f"{name}/{key}"] = str(error)
    images: dict[str, CalibratedImage] = {}
    for stem in sorted({stem for both in names for stem in both}):
        try:
            if len(files.get(stem, ())) != 1:
                got = " and ".join(path.name for path in files.get(stem, ())) or "none"
                raise ValueError(f"{folder / 'images' / stem}.jpg: expected one image, got {got}")
            camera = _read_h5_camera(folder / _CALIBRATION / f"calibration_{stem}.h5")
            images[stem] = CalibratedImage(files[stem][0], camera)
        except (ValueError, OSError) as error:
            failures[f"{name}/{stem}"] = str(error)
    pairs = [_pair(name, images, *both) for both in names if set(both) <= set(images)]
    if not pairs:
        raise ValueError(
            f"{folder / _PAIRS_FILE}: expected pairs of images with calibrations, got none such "
            f"among {len(keys)}"
        )
    return pairs


def _read_size(where: str, entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width), or None where one is not given."""
    if not {"height", "width"} <= set(entry):
        return None
    size = (entry["height"], entry["width"])
    if not all(type(side) is int and side > 0 for side in size):
        raise ValueError(f"{where}: expected width and height in whole pixels, got {size[::-1]}")
    return size


def _pair(scene: str, images: Mapping[str, CalibratedImage], first: str, second: str) -> ViewPair:
    return ViewPair(f"{scene}/{first}-{second}", images[first], images[second])


def _read_keys(path: Path) -> list[str]:
    _require_file(path)
    try:
        with path.open("rb") as file:
            keys = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:  # numpy's advice is to load it unsafely
        raise ValueError(
            f"{path}: expected an array of strings NAME1-NAME2 as numpy.save writes it, got a "
            "file of something else"
        ) from error
    if keys.dtype.kind == "S":
        keys = np.char.decode(keys, "utf-8", "replace")
    if keys.ndim != 1 or keys.dtype.kind != "U":
        raise ValueError(
            f"{path}: expected an array of strings NAME1-NAME2, got {keys.dtype} {keys.shape}"
        )
    return [str(key) for key in keys]


def _split_key(key: str, known: Iterable[str]) -> tuple[str, str]:
    """Split NAME1-NAME2; names may have hyphens of their own."""
    parts = key.split("-")
    splits = [("-".join(parts[:i]), "-".join(parts[i:])) for i in range(1, len(parts))]
    splits = [both for both in splits if all(both)]
    if not splits:
        raise ValueError(f"{_PAIRS_FILE}: expected NAME1-NAME2, got {key!r}")
    return next((both for both in splits if set(both) <= set(known)), splits[0])


def _read_h5_camera(path: Path) -> Camera:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("IMC2021's layout needs: pip install 'cv-patchpose[eval]'") from error
    _require_file(path)
    try:
        with h5py.File(path, "r") as content:
            found = {key: content.get(key) for key in ("K", "R", "T")}
            matrices = {k: v[()] for k, v in found.items() if isinstance(v, h5py.Dataset)}
    except (OSError, RuntimeError) as error:  # they do not say in which file
        raise ValueError(
            f"{path}: expected an HDF5 file with data sets K, R and T, got {error}"
        ) from error
    return read_camera(str(path), matrices, translation="T")


def _require_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path}: expected a file, got none")
    return path
