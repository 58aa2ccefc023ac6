"""Photographs to train on: read, divided in two, and their candidate keypoints."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cv_patchpose.files import find_images

SMALLEST_SIDE_PX = 96
LONG_SIDE_PX = 640

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A photograph and its candidate keypoints.

    Args:
        image: (H, W) grey or BGR (H, W, 3) uint8.
        xy_px: (K, 2) places of the candidates.
        size_px: (K,) diameters; NaN for corners, which have no scale of their own.
    """

    image: NDArray[np.uint8]
    xy_px: NDArray[np.float64]
    size_px: NDArray[np.float64]


class Photographs:
    """Photographs in memory; the keypoints of each are found at its first visit.

    Args:
        paths: image files.
        images: (H, W) or (H, W, 3) uint8 of each.
    """

    def __init__(self, paths: Sequence[Path], images: Sequence[NDArray[np.uint8]]) -> None:
        self.paths = list(paths)
        self._images = list(images)
        self._cache: dict[int, Photograph] = {}

    def __len__(self) -> int:
        """Count the photographs."""
        return len(self._images)

    def __getitem__(self, index: int) -> Photograph:
        """Return a photograph with its keypoints."""
        if index not in self._cache:
            image = self._images[index]
            self._cache[index] = Photograph(image, *candidate_keypoints(image))
        return self._cache[index]

    def find_all(self) -> None:
        """Find the keypoints of all photographs now, which processes forked later then share."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.__getitem__, range(len(self))))

    def split(self, share: float) -> tuple[Photographs, Photographs]:
        """Divide at least two photographs into some for training and some held out.

        Their names decide: runs that begin with the weights of others hold out what those did.

        Args:
            share: of the photographs held out; both parts get at least one.

        Returns:
            Photographs for training and for validation, in the order of their paths.
        """
        digests = [hashlib.sha256(path.name.encode()).digest() for path in self.paths]
        order = np.array(sorted(range(len(self)), key=digests.__getitem__))
        held = min(len(self) - 1, max(1, round(share * len(self))))
        return self._subset(order[held:]), self._subset(order[:held])

    def describe(self, folder: Path | str) -> dict[str, str | int]:
        """Say which photographs these are: their folder, their number, a hash of their names."""
        names = "\n".join(sorted(path.name for path in self.paths))
        return {
            "folder": Path(folder).resolve().name,
            "photographs": len(self),
            "sha256_of_names": hashlib.sha256(names.encode()).hexdigest(),
        }

    def _subset(self, indices: NDArray[np.intp]) -> Photographs:
        chosen = sorted(indices.tolist())
        return Photographs([self.paths[i] for i in chosen], [self._images[i] for i in chosen])


def read_photographs(
    folder: Path | str, *, color: bool = False, argument: str = "images"
) -> Photographs:
    """Read the photographs below a folder; unreadable and tiny files are skipped and reported.

    Args:
        folder: searched with its subfolders; larger photographs are shrunk to `LONG_SIDE_PX`.
        color: keep three channels.
        argument: name of what the folder was given as, for the messages.

    Raises:
        ValueError: the folder does not exist or holds fewer than two usable photographs.
    """
    paths = find_images(folder, argument)
    with ThreadPoolExecutor() as pool:
        found = zip(paths, pool.map(partial(_read, color=color), paths), strict=True)
        usable = [(path, image) for path, image in found if image is not None]
    skipped = len(paths) - len(usable)
    if len(usable) < 2:
        raise ValueError(
            f"{argument}: expected at least 2 readable photographs of at least "
            f"{SMALLEST_SIDE_PX} px below {folder}, got {len(usable)} ({skipped} skipped)"
        )
    if skipped:
        report = f"{skipped} of {len(paths)} image files skipped: not readable or too small"
        _LOGGER.info(report)
        tqdm.write(report, file=sys.stderr)
    return Photographs(*zip(*usable, strict=True))


def _read(path: Path, *, color: bool) -> NDArray[np.uint8] | None:
    how = cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        image = cv2.imdecode(data, how) if data.size else None
        if image is None:
            return None
        shrink = LONG_SIDE_PX / max(image.shape[:2])
        if shrink < 1:
            image = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    except (OSError, cv2.error):
        return None
    return np.asarray(image, np.uint8) if min(image.shape[:2]) >= SMALLEST_SIDE_PX else None


def candidate_keypoints(
    image: NDArray[np.uint8],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find corners (at two resolutions) and blobs, the places that detectors propose.

    Args:
        image: (H, W) or BGR (H, W, 3) uint8.

    Returns:
        (K, 2) places and (K,) sizes, NaN for corners; each kind in its detector's order.
    """
    if image.ndim == 3:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
    places, sizes = [np.empty((0, 2))], [np.empty(0)]
    for factor in (1, 2):
        small = image if factor == 1 else cv2.pyrDown(image)
        corners = cv2.goodFeaturesToTrack(small, 200, 0.01, 5, useHarrisDetector=factor == 1)
        if corners is not None:
            places.append(corners.reshape(-1, 2).astype(np.float64) * factor)
            sizes.append(np.full(len(corners), np.nan))
    blobs = cv2.SIFT.create(nfeatures=500).detect(image)
    if blobs:
        points = np.array([(*k.pt, k.size) for k in blobs])
        points = points[np.sort(np.unique(points, axis=0, return_index=True)[1])]
        places.append(points[:, :2])
        sizes.append(points[:, 2])
    return np.concatenate(places), np.concatenate(sizes)
