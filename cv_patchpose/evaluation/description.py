"""Description and matching with any of OpenCV's descriptors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.descriptors import create_extractor
from cv_patchpose.evaluation.methods import Route
from cv_patchpose.keypoints import KeypointArrays, keypoints_from_arrays
from cv_patchpose.rectified import describe

# ORB builds a level for every octave up to the largest: SIFT's packed ones ask for 66 GB. No image
# has this many levels of 1.2.
_MOST_ORB_LEVELS = 64


@dataclass(frozen=True)
class Features:
    """Described keypoints.

    Attributes:
        xy_px: (N, 2) locations, pixels.
        descriptors: (N, D), float32 or uint8; RootSIFT for SIFT.
        refused: Whether the descriptor raised an error over the fields it found.
    """

    xy_px: NDArray[np.float64]
    descriptors: NDArray[Any]
    refused: bool = False


def describe_keypoints(
    image: NDArray[np.uint8], keypoints: KeypointArrays, descriptor: str, route: Route = "fields"
) -> Features:
    """Describe posed keypoints.

    Args:
        image: (h, w, 3) uint8, BGR.
        keypoints: With the fields their method gives them.
        descriptor: One of :data:`cv_patchpose.descriptors.DESCRIPTORS`, made by
            :func:`cv_patchpose.descriptors.create_extractor`.
        route: See :class:`cv_patchpose.evaluation.methods.Method`. On "naive", fields that the
            descriptor refuses are not an error.

    Source: RootSIFT after R. Arandjelovic, A. Zisserman, CVPR 2012,
        doi:10.1109/CVPR.2012.6248018.
    """
    extractor = _extractor(descriptor)
    cv_keypoints = keypoints_from_arrays(keypoints)
    try:
        if route == "naive":
            _refuse_deep_pyramids(keypoints, descriptor)
        if route == "patches":
            described, rows = describe(image, cv_keypoints, extractor)
        else:
            described, rows = extractor.compute(image, cv_keypoints)
    except (cv2.error, MemoryError):
        if route != "naive":
            raise
        return Features(np.empty((0, 2)), np.empty((0, 1), np.uint8), refused=True)
    if rows is None:
        return Features(np.empty((0, 2)), np.empty((0, 1), np.uint8))
    xy_px = np.array([keypoint.pt for keypoint in described], np.float64).reshape(-1, 2)
    if descriptor == "sift":
        rows = _root(rows)
    return Features(xy_px, np.nan_to_num(rows, copy=False))  # KAZE makes NaN of some levels


def match_features(features1: Features, features2: Features) -> NDArray[np.int64]:
    """Match features that are each other's nearest: by Hamming distance for bytes, else by L2.

    Returns:
        (K, 2) indices into the two, ascending in the first.
    """
    if not len(features1.descriptors) or not len(features2.descriptors):
        return np.empty((0, 2), np.int64)
    binary = features1.descriptors.dtype == np.uint8
    matcher = cv2.BFMatcher(cv2.NORM_HAMMING if binary else cv2.NORM_L2, crossCheck=True)
    matches = matcher.match(features1.descriptors, features2.descriptors)
    index = np.array([(m.queryIdx, m.trainIdx) for m in matches], np.int64).reshape(-1, 2)
    return index[np.argsort(index[:, 0], kind="stable")]


@lru_cache
def _extractor(name: str) -> Any:
    return create_extractor(name)


def _refuse_deep_pyramids(keypoints: KeypointArrays, descriptor: str) -> None:
    if descriptor == "orb" and (keypoints.octave > _MOST_ORB_LEVELS).any():
        raise MemoryError(f"ORB: expected at most {_MOST_ORB_LEVELS} levels")


def _root(sift: NDArray[np.float32]) -> NDArray[np.float32]:
    total = np.maximum(sift.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray(np.sqrt(sift / total), np.float32)
