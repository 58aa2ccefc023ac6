"""OpenCV's detectors by name, and their strongest points."""

from __future__ import annotations

from typing import Any

import cv2

from cv_patchpose.keypoints import arrays_from_keypoints, keypoints_from_arrays

DETECTORS = ("sift", "orb", "akaze", "fast", "gftt")


def detect(image: Any, detector: str, max_points: int) -> tuple[cv2.KeyPoint, ...]:
    """Detect the strongest points of an image, each with all its orientations.

    Args:
        image: (H, W) or BGR, uint8.
        detector: One of `DETECTORS`, at OpenCV's default settings.
        max_points: Most points; a point with several orientations counts once.

    Returns:
        Keypoints, strongest point first.

    Raises:
        ValueError: An unknown detector or a non-positive number of points.
    """
    if max_points < 1:
        raise ValueError(f"max_points: expected at least 1, got {max_points}")
    found = arrays_from_keypoints(_create(detector, max_points).detect(image, None))
    return keypoints_from_arrays(found.take(found.strongest_index(max_points)))


def _create(name: str, max_points: int) -> Any:
    if name == "sift":
        return cv2.SIFT.create()
    if name == "orb":
        return cv2.ORB.create(nfeatures=max_points)
    if name == "akaze":  # moved in OpenCV 5
        return (cv2.AKAZE if hasattr(cv2, "AKAZE") else cv2.xfeatures2d.AKAZE).create()
    if name == "fast":
        return cv2.FastFeatureDetector.create()
    if name == "gftt":
        return cv2.GFTTDetector.create(maxCorners=max_points)
    raise ValueError(f"detector: expected one of {', '.join(DETECTORS)}, got {name!r}")
