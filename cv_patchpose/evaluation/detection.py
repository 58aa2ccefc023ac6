"""Detectors as the benchmarks use them: the N strongest points of a view."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose import detectors
from cv_patchpose.evaluation.sequences import View
from cv_patchpose.keypoints import KeypointArrays, arrays_from_keypoints

DETECTORS = ("sift", "gftt", "harris", "fast", "orb", "akaze")
SCALELESS_DETECTORS = ("gftt", "harris", "fast")
# Harris responses spread over more decades than the smaller eigenvalue.
_CORNER_QUALITY = {"gftt": 1e-2, "harris": 1e-5}
_CORNER_DISTANCE_PX = 5.0
# On a turned view the step from photograph to canvas is no corner of the scene.
_TURNED_MARGIN_PX = 4.0
_ALL_POINTS = 1_000_000


@dataclass(frozen=True)
class Detections:
    """The strongest points of an image.

    Attributes:
        points: One keypoint per centre and size, strongest first. Of several orientations it is
            the one the detector lists first; OpenCV's SIFT lists the smallest angle first.
        oriented: The same points with all the orientations the detector found.
    """

    points: KeypointArrays
    oriented: KeypointArrays


def detect(view: View, detector: str, max_points: int, corner_size_px: float) -> Detections:
    """Detect the strongest points of an image, by response.

    Points of detectors without a scale (gftt, harris, fast) get one fixed size.

    Args:
        view: Image; on a turned view points off the photograph are left out.
        detector: One of :data:`DETECTORS`.
        max_points: N, the number of points kept.
        corner_size_px: Size given to points of a detector without scale.
    """
    if detector in _CORNER_QUALITY:
        found = _corners(view.image, detector)
    else:
        found = arrays_from_keypoints(detectors.detect(view.image, detector, _ALL_POINTS))
    if detector in SCALELESS_DETECTORS:
        found = replace(found, size_px=np.full(len(found), corner_size_px, np.float32))
    margin_px = _TURNED_MARGIN_PX if view.is_turned else 0.0
    shown = view.shows(found.xy_px.astype(np.float64), margin_px)
    found = found.take(np.flatnonzero(shown))
    oriented = found.take(found.strongest_index(max_points))
    return Detections(oriented.take(oriented.distinct_index()), oriented)


def harris_corners(image: NDArray[np.uint8]) -> KeypointArrays:
    """Find Harris corners, strongest first.

    Args:
        image: (h, w, 3) uint8, BGR.

    Returns:
        Corners of size 1 without angle, at least 5 px apart.
    """
    return _corners(image, "harris")


def _corners(image: NDArray[np.uint8], kind: str) -> KeypointArrays:
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    xy, quality = cv2.goodFeaturesToTrackWithQuality(
        gray,
        0,
        _CORNER_QUALITY[kind],
        _CORNER_DISTANCE_PX,
        np.full(gray.shape, 255, np.uint8),
        useHarrisDetector=kind == "harris",
    )[:2]
    count = 0 if xy is None else len(xy)
    return KeypointArrays(
        xy_px=np.asarray(xy if count else (), np.float32).reshape(count, 2),
        size_px=np.ones(count, np.float32),
        angle_deg=np.full(count, -1, np.float32),
        response=np.asarray(quality if count else (), np.float32).reshape(count),
        octave=np.zeros(count, np.int32),
        class_id=np.full(count, -1, np.int32),
    )
