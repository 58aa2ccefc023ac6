"""Lowe's ratio test for keypoints that share places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.keypoints import arrays_from_keypoints

_SAME_PLACE_PX = 1.0
_MASK_BYTES = 1 << 22  # of the pairs compared at once, which bounds memory
_HAMMING = (cv2.NORM_HAMMING, cv2.NORM_HAMMING2)
_SIFT_LENGTH = 128  # of no binary descriptor of OpenCV: theirs have 64 bytes at most
_NORMS = (cv2.NORM_L1, cv2.NORM_L2, *_HAMMING)


def ratio_test(
    descriptors1: Any,
    descriptors2: Any,
    keypoints2: Sequence[cv2.KeyPoint],
    *,
    ratio: float = 0.8,
    norm: int | None = None,
    mutual: bool = False,
    same_place_px: float = _SAME_PLACE_PX,
) -> tuple[cv2.DMatch, ...]:
    """Match descriptors to nearest ones that are clearly nearer than any at another place.

    Keypoints with several poses or sizes have neighbours at their own place, which are no rivals:
    with them as second best, Lowe's test would throw the match away. So the second best is the
    nearest descriptor of another place.

    Args:
        descriptors1: (N, D) float32 or uint8 array or cv2.UMat; None: none.
        descriptors2: (M, D) of the same type; None: none.
        keypoints2: The M keypoints of `descriptors2`.
        ratio: Most that the nearest distance may be of that to the second best.
        norm: Of cv2, such as cv2.NORM_L1; None: cv2.NORM_L2 for float32 and for SIFT of 8 bits,
            which is uint8 of length 128, else cv2.NORM_HAMMING.
        mutual: Keep only matches that are each other's nearest.
        same_place_px: Within this distance of the nearest one keypoints are at its place.

    Returns:
        At most one match for each of N, in their order. None for a descriptor whose nearest has no
        rival at all, as nothing says then how near is near.

    Raises:
        TypeError: Descriptors that are no arrays, or not keypoints.
        ValueError: Descriptors of other shapes or not of one type, not one keypoint each, a
            keypoint that is not finite, or an option out of range.

    Source: D. Lowe, IJCV 2004, section 7.1, doi:10.1023/B:VISI.0000029664.99615.94; after the
        first geometrically inconsistent neighbour of D. Mishkin et al., MODS, CVIU 2015.
    """
    _check_ratio_options(ratio, same_place_px)
    first = _check_descriptors("descriptors1", descriptors1)
    second = _check_descriptors("descriptors2", descriptors2)
    xy2_px = arrays_from_keypoints(keypoints2, argument="keypoints2").xy_px
    if len(second) != len(keypoints2):
        raise ValueError(
            f"keypoints2: expected one per descriptor, {len(second)}, got {len(keypoints2)}"
        )
    if not len(first) or not len(second):
        return ()
    if first.dtype != second.dtype or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"descriptors2: expected {first.dtype} of length {first.shape[1]} as in descriptors1, "
            f"got {second.dtype} of length {second.shape[1]}"
        )
    norm = _check_norm(norm, first)
    nearest, distance = _nearest(first, second, norm)
    rival_distance = _rival_distances(first, second, norm, nearest, xy2_px, same_place_px)
    kept = (nearest >= 0) & (distance < ratio * rival_distance)
    if mutual:
        kept &= _nearest(second, first, norm)[0][nearest] == np.arange(len(first))
    return tuple(
        cv2.DMatch(int(query), int(nearest[query]), 0, float(distance[query]))
        for query in np.flatnonzero(kept)
    )


def _nearest(
    descriptors1: NDArray[Any],
    descriptors2: NDArray[Any],
    norm: int,
    mask: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Find the nearest of the second for each of the first: index, -1 for none, and distance."""
    dtype = cv2.CV_32S if norm in _HAMMING else cv2.CV_32F
    distance, index = cv2.batchDistance(
        descriptors1, descriptors2, dtype, normType=norm, K=1, mask=mask
    )
    return np.asarray(index[:, 0], np.int32), np.asarray(distance[:, 0], np.float64)


def _rival_distances(
    descriptors1: NDArray[Any],
    descriptors2: NDArray[Any],
    norm: int,
    nearest: NDArray[np.int32],
    xy2_px: NDArray[np.float32],
    same_place_px: float,
) -> NDArray[np.float64]:
    """(N,) distances to the nearest of another place than that of the nearest; 0: there is none."""
    distances = np.empty(len(descriptors1))
    rows = max(1, _MASK_BYTES // (8 * len(descriptors2)))  # offsets take 8 bytes a pair
    for start in range(0, len(distances), rows):
        part = slice(start, start + rows)
        offset = xy2_px - xy2_px[nearest[part], None]
        elsewhere = (np.square(offset).sum(axis=2) > same_place_px**2).astype(np.uint8)
        index, distance = _nearest(descriptors1[part], descriptors2, norm, elsewhere)
        distances[part] = np.where(index >= 0, distance, 0.0)
    return distances


def _check_descriptors(name: str, descriptors: Any) -> NDArray[Any]:
    array = descriptors.get() if isinstance(descriptors, cv2.UMat) else descriptors
    if array is None:
        return np.empty((0, 0), np.float32)
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected an array, cv2.UMat or None, got {type(array).__name__}")
    if array.ndim != 2 or array.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"{name}: expected (N, D) uint8 or float32, got {array.shape} {array.dtype}"
        )
    return np.ascontiguousarray(array)


def _check_ratio_options(ratio: float, same_place_px: float) -> None:
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f"ratio: expected a number above 0 and at most 1, got {ratio!r}")
    if not 0.0 <= same_place_px < np.inf:
        raise ValueError(
            f"same_place_px: expected a finite number of at least 0, got {same_place_px!r}"
        )


def _check_norm(norm: int | None, descriptors: NDArray[Any]) -> int:
    bytewise = descriptors.dtype == np.uint8
    if norm is None:
        binary = bytewise and descriptors.shape[1] != _SIFT_LENGTH
        return int(cv2.NORM_HAMMING if binary else cv2.NORM_L2)
    if norm not in _NORMS or (norm in _HAMMING and not bytewise):
        raise ValueError(
            "norm: expected cv2.NORM_L1, NORM_L2, or for uint8 NORM_HAMMING or NORM_HAMMING2, "
            f"got {norm!r} for {descriptors.dtype}"
        )
    return norm
