"""Description with any of OpenCV's descriptors or a published one of patches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose import descriptors
from cv_patchpose.descriptors import create_extractor
from cv_patchpose.evaluation.interface import Route
from cv_patchpose.evaluation.patch_descriptors import PATCH_DESCRIPTORS, load_patch_descriptor
from cv_patchpose.keypoints import KeypointArrays, arrays_from_keypoints, keypoints_from_arrays
from cv_patchpose.rectified import describe

DESCRIPTORS = (*descriptors.DESCRIPTORS, *descriptors.VARIANTS, *PATCH_DESCRIPTORS)
# ORB builds a level for every octave up to the largest: SIFT's packed ones ask for 66 GB. No image
# has this many levels of 1.2.
_MOST_ORB_LEVELS = 64


@dataclass(frozen=True)
class Features:
    """Described keypoints.

    Attributes:
        keypoints: N keypoints, in the order of the rows.
        descriptors: (N, D), float32 or uint8; RootSIFT for SIFT.
        refused: Whether the descriptor raised an error over the fields it found.
        area_px: Pixels of the photograph they are from; the canvas of a rotated one is larger.
        seconds: Time that each stage took.
    """

    keypoints: KeypointArrays
    descriptors: NDArray[Any]
    refused: bool = False
    area_px: float = math.nan
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def xy_px(self) -> NDArray[np.float64]:
        """(N, 2) locations, pixels."""
        return self.keypoints.xy_px.astype(np.float64)


def describe_keypoints(
    image: NDArray[np.uint8],
    keypoints: KeypointArrays,
    descriptor: str,
    route: Route = "fields",
    peer_weights: Path | None = None,
) -> Features:
    """Describe posed keypoints.

    Args:
        image: (h, w, 3) uint8, BGR.
        keypoints: With the fields their method gives them.
        descriptor: One of :data:`DESCRIPTORS`, made by
            :func:`cv_patchpose.descriptors.create_extractor` if it is OpenCV's.
        route: See :class:`cv_patchpose.evaluation.interface.Method`; for OpenCV's descriptors. On
            "naive", fields that the descriptor refuses are not an error.
        peer_weights: Folder with the weights of a descriptor of patches.

    Source: RootSIFT after R. Arandjelovic, A. Zisserman, CVPR 2012,
        doi:10.1109/CVPR.2012.6248018.
    """
    if descriptor in PATCH_DESCRIPTORS:
        rows = load_patch_descriptor(descriptor, peer_weights)(image, keypoints)
        return Features(keypoints, rows)
    none = keypoints.take(np.arange(0))
    try:
        described, rows = _compute(image, keypoints, descriptor, route)
    except (cv2.error, MemoryError):
        if route != "naive":
            raise
        return Features(none, np.empty((0, 1), np.uint8), refused=True)
    if rows is None:
        return Features(none, np.empty((0, 1), np.uint8))
    if descriptor in ("sift", "sift-fine"):
        rows = _root(rows)
    # KAZE makes NaN of some levels
    return Features(arrays_from_keypoints(described), np.nan_to_num(rows, copy=False))


def _compute(
    image: NDArray[np.uint8], keypoints: KeypointArrays, descriptor: str, route: Route
) -> tuple[Sequence[cv2.KeyPoint], Any]:
    extractor = _extractor(descriptor)
    cv_keypoints = keypoints_from_arrays(keypoints)
    if route == "patches":
        return describe(image, cv_keypoints, extractor)
    if route == "naive":
        _refuse_deep_pyramids(keypoints, descriptor)
    described, rows = extractor.compute(image, cv_keypoints)
    return described, rows


@lru_cache
def _extractor(name: str) -> Any:
    return create_extractor(name)


def _refuse_deep_pyramids(keypoints: KeypointArrays, descriptor: str) -> None:
    if descriptor == "orb" and (keypoints.octave > _MOST_ORB_LEVELS).any():
        raise MemoryError(f"ORB: expected at most {_MOST_ORB_LEVELS} levels")


def _root(sift: NDArray[np.float32]) -> NDArray[np.float32]:
    total = np.maximum(sift.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray(np.sqrt(sift / total), np.float32)
