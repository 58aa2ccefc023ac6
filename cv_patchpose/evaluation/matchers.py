"""Matching of described keypoints, with and without rejection of outliers."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.description import Features
from cv_patchpose.evaluation.weights import import_torch
from cv_patchpose.ratio_matching import find_nearest, rival_distances

MATCHERS = ("mutual", "adalam")
_FEWEST_RIVALS = 2  # AdaLAM takes a descriptor's second nearest


def match_features(
    features1: Features, features2: Features, matcher: str = "mutual"
) -> NDArray[np.int64]:
    """Match features by Hamming distance for bytes, else by L2.

    Args:
        features1: Of image 1.
        features2: Of image 2.
        matcher: "mutual" for those that are each other's nearest, or "adalam" for nearest ones
            that agree with their neighbours, see :func:`filter_adalam`.

    Returns:
        (K, 2) indices into the two, ascending in the first.
    """
    if not len(features1.descriptors) or not len(features2.descriptors):
        return np.empty((0, 2), np.int64)
    nearest, distance = find_nearest(features1.descriptors, features2.descriptors, _norm(features1))
    back, _ = find_nearest(features2.descriptors, features1.descriptors, _norm(features1))
    mutual = back[nearest] == np.arange(len(nearest))
    if matcher == "adalam":
        return filter_adalam(features1, features2, nearest, distance, mutual)
    index = np.flatnonzero(mutual)
    return np.column_stack([index, nearest[index]]).astype(np.int64)


def filter_adalam(
    features1: Features,
    features2: Features,
    nearest: NDArray[np.int32],
    distance: NDArray[np.float64],
    mutual: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Keep matches that agree in place, scale and orientation with their surroundings.

    Seeds are mutual nearest neighbours of the best ratio around. Several poses at one place are no
    rivals of each other and no support: the second best of the ratio is the nearest at another
    place, and only the best match of each place of image 1 takes part. For one pose per place this
    is AdaLAM as published.

    Args:
        features1: N features of image 1.
        features2: M features of image 2.
        nearest: (N,) index of the nearest of the second.
        distance: (N,) distance to it.
        mutual: (N,) whether the two are each other's nearest.

    Returns:
        (K, 2) indices into the two, ascending in the first.

    Raises:
        ImportError: torch or kornia is missing.

    Source: L. Cavalli et al., "AdaLAM: Revisiting Handcrafted Outlier Detection", ECCV 2020, in the
        implementation of kornia with its default settings.
    """
    torch, feature = import_torch("adalam")
    keypoints1, keypoints2 = features1.keypoints, features2.keypoints
    if min(len(keypoints1), len(keypoints2)) < _FEWEST_RIVALS:
        return np.empty((0, 2), np.int64)
    rival = rival_distances(
        features1.descriptors, features2.descriptors, _norm(features1), nearest, keypoints2.xy_px
    )
    square1, square2 = _squared(distance, features1), _squared(rival, features1)
    ratio = np.where(rival > 0, square1 / np.maximum(square2, 1e-3), 1.0)
    best = _best_of_each_place(keypoints1.xy_px, ratio, mutual)
    chosen = keypoints1.take(best)
    side1, side2 = ((math.sqrt(each.area_px),) * 2 for each in (features1, features2))
    matches: Any = feature.adalam.AdalamFilter().filter_matches(
        torch.from_numpy(chosen.xy_px),
        torch.from_numpy(keypoints2.xy_px),
        torch.from_numpy(nearest[best].astype(np.int64)),
        torch.from_numpy(ratio[best].astype(np.float32)),
        torch.from_numpy(mutual[best]),
        side1,
        side2,
        torch.from_numpy(chosen.angle_deg),
        torch.from_numpy(keypoints2.angle_deg),
        torch.from_numpy(chosen.size_px),
        torch.from_numpy(keypoints2.size_px),
    )
    index = np.unique(matches.numpy().reshape(-1, 2), axis=0)
    return np.column_stack([best[index[:, 0]], index[:, 1]]).astype(np.int64)


def _best_of_each_place(
    xy_px: NDArray[np.float32], ratio: NDArray[np.float64], mutual: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the ascending index of each place's mutual match, or else its best by ratio."""
    order = np.lexsort([ratio, ~mutual])
    _, first = np.unique(xy_px[order], axis=0, return_index=True)
    return np.asarray(np.sort(order[first]), np.int64)


def distinct_places(
    features1: Features, features2: Features, matches: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the places that matches join, each pair of places once.

    Args:
        features1: Of image 1.
        features2: Of image 2.
        matches: (K, 2) indices into the two.

    Returns:
        (M, 2) in image 1 and (M, 2) in image 2, pixels.
    """
    xy = np.hstack([features1.xy_px[matches[:, 0]], features2.xy_px[matches[:, 1]]])
    _, first = np.unique(xy, axis=0, return_index=True)
    kept = xy[np.sort(first)]
    return kept[:, :2], kept[:, 2:]


def _norm(features: Features) -> int:
    return int(cv2.NORM_HAMMING if features.descriptors.dtype == np.uint8 else cv2.NORM_L2)


def _squared(distance: NDArray[np.float64], features: Features) -> NDArray[np.float64]:
    """Squared L2 distances; of bits, the Hamming distance already is one."""
    return distance if features.descriptors.dtype == np.uint8 else np.square(distance)
