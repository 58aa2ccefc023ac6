"""Matching of described keypoints, with and without rejection of outliers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.description import Features
from cv_patchpose.evaluation.weights import import_torch

MATCHERS = ("mutual", "adalam")
_LEAST_RIVAL = np.float32(1e-3)  # as in kornia: two rivals at no distance decide nothing


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
    squared = squared_distances(features1.descriptors, features2.descriptors)
    if matcher == "adalam":
        return filter_adalam(features1, features2, squared)
    nearest, mutual = _nearest(squared)
    index = np.flatnonzero(mutual)
    return np.column_stack([index, nearest[index]])


def squared_distances(
    descriptors1: NDArray[Any], descriptors2: NDArray[Any]
) -> NDArray[np.float32]:
    """Squared L2 distances between descriptors; of bits, the Hamming distances already are that.

    Args:
        descriptors1: (N, D), float32 or uint8 of bits.
        descriptors2: (M, D) of the same type.

    Returns:
        (N, M).
    """
    rows1, rows2 = (
        np.unpackbits(rows, axis=1).astype(np.float32) if rows.dtype == np.uint8 else rows
        for rows in (descriptors1, descriptors2)
    )
    square1, square2 = np.square(rows1).sum(axis=1), np.square(rows2).sum(axis=1)
    squared = square1[:, None] + square2 - 2 * rows1 @ rows2.T
    return np.asarray(np.maximum(squared, 0), np.float32)


def filter_adalam(
    features1: Features, features2: Features, squared: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Keep matches that agree in place, scale and orientation with their surroundings.

    Seeds are mutual nearest neighbours of the best ratio around. Several poses at one place are no
    rivals of each other and no support: the second best of the ratio is the nearest at another
    place, and only the best match of each place of image 1 takes part. For one pose per place this
    is AdaLAM as published.

    Args:
        features1: N features of image 1.
        features2: M features of image 2.
        squared: (N, M) squared distances.

    Returns:
        (K, 2) indices into the two, ascending in the first.

    Raises:
        ImportError: torch or kornia is missing.

    Source: L. Cavalli et al., "AdaLAM: Revisiting Handcrafted Outlier Detection", ECCV 2020, in the
        implementation of kornia with its default settings.
    """
    torch, feature = import_torch("adalam")
    nearest, mutual = _nearest(squared)
    ratio = _ratios(squared, nearest, features2.keypoints.xy_px)
    best = _best_of_each_place(features1.keypoints.xy_px, ratio, mutual)
    chosen1, chosen2 = features1.keypoints.take(best), features2.keypoints
    side1, side2 = ((math.sqrt(each.area_px),) * 2 for each in (features1, features2))
    matches: Any = feature.adalam.AdalamFilter().filter_matches(
        torch.from_numpy(chosen1.xy_px),
        torch.from_numpy(chosen2.xy_px),
        torch.from_numpy(nearest[best]),
        torch.from_numpy(ratio[best]),
        torch.from_numpy(mutual[best]),
        side1,
        side2,
        torch.from_numpy(chosen1.angle_deg),
        torch.from_numpy(chosen2.angle_deg),
        torch.from_numpy(chosen1.size_px),
        torch.from_numpy(chosen2.size_px),
    )
    index = np.unique(matches.numpy().reshape(-1, 2), axis=0)
    return np.column_stack([best[index[:, 0]], index[:, 1]])


def _nearest(squared: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(N,) index of the nearest of M, and whether the two are each other's nearest."""
    nearest = squared.argmin(axis=1)
    return nearest, squared.argmin(axis=0)[nearest] == np.arange(len(nearest))


def _ratios(
    squared: NDArray[np.float32], nearest: NDArray[np.int64], xy2_px: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(N,) squared distance to the nearest over that to the nearest of another place; at most 1."""
    _, place = np.unique(xy2_px, axis=0, return_inverse=True)
    place = place.ravel()
    rivals = np.where(place == place[nearest, None], np.float32(np.inf), squared).min(axis=1)
    ratio = squared[np.arange(len(nearest)), nearest] / np.maximum(rivals, _LEAST_RIVAL)
    # Without a rival nothing says how near is near.
    return np.where(np.isfinite(rivals), np.minimum(ratio, 1), np.float32(1)).astype(np.float32)


def _best_of_each_place(
    xy_px: NDArray[np.float32], ratio: NDArray[np.float32], mutual: NDArray[np.bool_]
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
