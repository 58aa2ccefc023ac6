"""Matching of posed keypoints: RootSIFT, nearest neighbours, inliers of a geometry."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.errors import naming
from cv_patchpose.pose_matching import consistent_matches, match_logos
from cv_patchpose.pyramid import read_pixels
from cv_patchpose.ratio_matching import ratio_test

__all__ = [
    "GEOMETRIES",
    "Matches",
    "consistent_matches",
    "describe_root_sift",
    "find_inliers",
    "match_keypoints",
    "match_logos",
    "match_mutual",
    "ratio_test",
]

GEOMETRIES = ("homography", "fundamental")

_INLIER_PX = 3.0
_CONFIDENCE = 0.9999
_ITERATIONS = 10_000
_FEWEST_MATCHES = 8


@dataclass(frozen=True)
class Matches:
    """Matches between two images.

    Attributes:
        keypoints: Numbers of described keypoints in the two images.
        xy1_px: (M, 2) float32, places in image 1.
        xy2_px: (M, 2) float32, places in image 2.
        inlier: (M,) bool, agrees with the geometry that fits most.
    """

    keypoints: tuple[int, int]
    xy1_px: NDArray[np.float32]
    xy2_px: NDArray[np.float32]
    inlier: NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number M of matches."""
        return len(self.xy1_px)


def match_keypoints(
    image1: NDArray[np.uint8],
    keypoints1: Sequence[cv2.KeyPoint],
    image2: NDArray[np.uint8],
    keypoints2: Sequence[cv2.KeyPoint],
    *,
    geometry: str = "homography",
) -> Matches:
    """Describe and match posed keypoints and find the matches that agree.

    Keypoints that are at one place, with several poses, and match one place count once.

    Args:
        image1: (H, W) or BGR, uint8.
        keypoints1: Of image 1, with the fields SIFT reads.
        image2: (H, W) or BGR, uint8.
        keypoints2: Of image 2, with the fields SIFT reads.
        geometry: "homography" for planes and turning cameras, "fundamental" for other scenes.

    Raises:
        TypeError: Not an image.
        ValueError: An unknown geometry, or an image that cannot be used.
    """
    with naming({"image": "image1"}):
        xy1_px, descriptors1 = describe_root_sift(image1, keypoints1)
    with naming({"image": "image2"}):
        xy2_px, descriptors2 = describe_root_sift(image2, keypoints2)
    index = match_mutual(descriptors1, descriptors2)
    xy1_px, xy2_px = xy1_px[index[:, 0]], xy2_px[index[:, 1]]
    _, first = np.unique(np.column_stack([xy1_px, xy2_px]), axis=0, return_index=True)
    kept = np.sort(first)
    xy1_px, xy2_px = xy1_px[kept], xy2_px[kept]
    return Matches(
        keypoints=(len(descriptors1), len(descriptors2)),
        xy1_px=xy1_px,
        xy2_px=xy2_px,
        inlier=find_inliers(xy1_px, xy2_px, geometry=geometry),
    )


def describe_root_sift(
    image: NDArray[np.uint8], keypoints: Sequence[cv2.KeyPoint]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Describe keypoints with RootSIFT.

    Args:
        image: (H, W) or BGR, uint8.
        keypoints: With the fields SIFT reads; not changed.

    Returns:
        Places (N, 2) in pixels and descriptors (N, 128) of length 1.

    Raises:
        TypeError: Not an image.
        ValueError: An image that cannot be used.

    Source: R. Arandjelovic, A. Zisserman, CVPR 2012, doi:10.1109/CVPR.2012.6248018.
    """
    read_pixels(image)  # SIFT describes None without complaint
    described, sift = cv2.SIFT.create().compute(image, tuple(keypoints))
    if sift is None:
        return np.empty((0, 2), np.float32), np.empty((0, 128), np.float32)
    xy_px = np.array([keypoint.pt for keypoint in described], np.float32)
    total = np.maximum(sift.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return xy_px, np.sqrt(sift / total).astype(np.float32)


def match_mutual(
    descriptors1: NDArray[np.float32], descriptors2: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Match descriptors that are each other's nearest neighbour.

    Args:
        descriptors1: (N, D), rows of length 1.
        descriptors2: (M, D), rows of length 1.

    Returns:
        (K, 2) indices into the two, ascending in the first.
    """
    if not len(descriptors1) or not len(descriptors2):
        return np.empty((0, 2), np.int64)
    similarity = descriptors1 @ descriptors2.T
    nearest = similarity.argmax(axis=1)
    index = np.arange(len(descriptors1))
    mutual = similarity.argmax(axis=0)[nearest] == index
    return np.asarray(np.column_stack([index, nearest])[mutual], np.int64)


def find_inliers(
    xy1_px: NDArray[Any], xy2_px: NDArray[Any], *, geometry: str = "homography"
) -> NDArray[np.bool_]:
    """Find the matches that agree with the geometry most of them agree with.

    Args:
        xy1_px: (M, 2) places in image 1.
        xy2_px: (M, 2) places in image 2.
        geometry: "homography" or "fundamental".

    Returns:
        (M,) bool; all False with fewer than 8 matches, or where nothing fits.

    Raises:
        ValueError: An unknown geometry.

    Source: D. Barath et al., MAGSAC++, CVPR 2020, doi:10.1109/CVPR42600.2020.00138; OpenCV's.
    """
    if geometry not in GEOMETRIES:
        raise ValueError(f"geometry: expected one of {', '.join(GEOMETRIES)}, got {geometry!r}")
    mask = None
    if len(xy1_px) >= _FEWEST_MATCHES:
        fit: Any = cv2.findHomography if geometry == "homography" else cv2.findFundamentalMat
        with contextlib.suppress(cv2.error):  # raised where no geometry fits
            mask = fit(
                xy1_px,
                xy2_px,
                cv2.USAC_MAGSAC,
                _INLIER_PX,
                maxIters=_ITERATIONS,
                confidence=_CONFIDENCE,
            )[1]
    if mask is None:
        return np.zeros(len(xy1_px), bool)
    return np.asarray(mask).ravel().astype(bool)
