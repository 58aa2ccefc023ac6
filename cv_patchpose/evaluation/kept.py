"""Detections and poses of images kept in files, which runs that differ in the rest share."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cv_patchpose.evaluation.fingerprints import (
    fingerprint,
    fingerprint_points,
    fingerprint_poses,
)
from cv_patchpose.evaluation.interface import AffineKeypoints
from cv_patchpose.files import write_file
from cv_patchpose.keypoints import KeypointArrays

Timed = tuple[KeypointArrays, float]


@dataclass(frozen=True)
class Kept:
    """Where keypoints are kept, and what decides them besides the image.

    Attributes:
        folder: Where the files are.
        points: Digest of how points are detected.
        poses: Digest of each method, under its name.
    """

    folder: Path
    points: str
    poses: tuple[tuple[str, str], ...]

    def get(self, image: str, pose: tuple[str, str] | None, find: Callable[[], Timed]) -> Timed:
        """Return keypoints and the seconds it took to find them, from a file if it is there.

        Args:
            image: Digest of the image.
            pose: Method and descriptor that the fields are for; None for the points as detected.
            find: Finds them where no file has them.
        """
        about = [image, self.points, cv2.getNumThreads()]  # the seconds depend on the threads
        if pose is not None:
            method, target = pose
            about += [dict(self.poses)[method], target]
        path = self.folder / f"{fingerprint(about)}.npz"
        found = _read(path)
        if found is None:
            found = find()
            _write(path, *found)
        return found


def keep_in(folder: Path | None, options: Any) -> Kept | None:
    """Prepare to keep the keypoints of a pipeline.

    Args:
        folder: Made when something is kept; None to keep nothing.
        options: Of the pipeline.

    Raises:
        OSError: The folder cannot be made, or a model cannot be read.
    """
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    poses = tuple((method, fingerprint_poses(method, options)) for method in options.methods)
    return Kept(folder, fingerprint_points(options), poses)


def _read(path: Path) -> Timed | None:
    """Read a file; one that cannot be read is as good as none."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            fields = dict(file)
        seconds = float(fields.pop("seconds"))
        kind = AffineKeypoints if "shape" in fields else KeypointArrays
        return kind(**fields), seconds
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, keypoints: KeypointArrays, seconds: float) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, seconds=np.float64(seconds), **vars(keypoints))
    write_file(path, buffer.getvalue())
