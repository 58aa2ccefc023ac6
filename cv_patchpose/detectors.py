"""OpenCV's detectors by name, and their strongest points."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.keypoints import KeypointArrays, arrays_from_keypoints, keypoints_from_arrays

# name: class of the cv2 object; OpenCV 5 moved some from cv2 to cv2.xfeatures2d
_CLASSES = {
    "sift": "SIFT",
    "orb": "ORB",
    "akaze": "AKAZE",
    "kaze": "KAZE",
    "brisk": "BRISK",
    "fast": "FastFeatureDetector",
    "agast": "AgastFeatureDetector",
    "gftt": "GFTTDetector",
    "harris": "GFTTDetector",
    "mser": "MSER",
    "blob": "SimpleBlobDetector",
    "star": "StarDetector",
    "msd": "MSDDetector",
    "harrislaplace": "HarrisLaplaceFeatureDetector",
    "tbmr": "TBMR",
}
DETECTORS = tuple(_CLASSES)

# The others measure no angle: they write -1 or 0, or (MSD, TBMR) radians of something else.
_ORIENTED = ("sift", "orb", "akaze", "brisk")
# Harris responses spread over more decades than the smaller eigenvalue.
_HARRIS_QUALITY = 1e-5


def detect(image: Any, detector: str, max_points: int) -> tuple[cv2.KeyPoint, ...]:
    """Detect the strongest points of an image, each with all its orientations.

    Args:
        image: (H, W) or BGR, uint8.
        detector: One of `DETECTORS`, at OpenCV's default settings; "harris" is GFTT with Harris'
            response.
        max_points: Most points; a point with several orientations counts once. Detectors that
            write no response (MSER, SimpleBlob, TBMR) give an even choice of theirs.

    Returns:
        Keypoints, strongest point first. The angle is -1 where the detector measures none,
        whatever it writes.

    Raises:
        ValueError: An unknown detector or a non-positive number of points.
        ImportError: This OpenCV lacks the detector.
    """
    if max_points < 1:
        raise ValueError(f"max_points: expected at least 1, got {max_points}")
    found = arrays_from_keypoints(_create(detector, max_points).detect(image, None))
    if detector not in _ORIENTED:
        found = replace(found, angle_deg=np.full(len(found), -1, np.float32))
    return keypoints_from_arrays(found.take(strongest_index(found, max_points)))


def strongest_index(keypoints: KeypointArrays, count: int) -> NDArray[np.int64]:
    """Return the (M,) index of the strongest places, as `KeypointArrays.strongest_index` does.

    Where all responses are the same, places are taken at even steps of the detector's order: it
    runs through the image or through the regions, and any end of it is one part of those.
    """
    if len(keypoints) and np.ptp(keypoints.response) == 0:
        distinct = keypoints.distinct_index()
        if len(distinct) > count:
            return distinct[np.arange(count) * len(distinct) // count]
    return keypoints.strongest_index(count)


def _create(name: str, max_points: int) -> Any:
    if name not in DETECTORS:
        raise ValueError(f"detector: expected one of {', '.join(DETECTORS)}, got {name!r}")
    options: dict[str, Any] = {
        "orb": {"nfeatures": max_points},
        "gftt": {"maxCorners": max_points},
        "harris": {
            "maxCorners": max_points,
            "useHarrisDetector": True,
            "qualityLevel": _HARRIS_QUALITY,
        },
    }.get(name, {})
    return _find_class(_CLASSES[name]).create(**options)


def _find_class(name: str) -> Any:
    for room in (cv2, getattr(cv2, "xfeatures2d", None)):
        if hasattr(room, name):
            return getattr(room, name)
    raise ImportError(
        f"OpenCV {cv2.__version__} is built without {name}: "
        "pip install opencv-contrib-python instead of opencv-python"
    )
