"""Detectors as the benchmarks use them: the N strongest points of a view."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose import detectors
from cv_patchpose.descriptors import rule_for
from cv_patchpose.detectors import DetectorTraits
from cv_patchpose.evaluation.keynet import load_keynet
from cv_patchpose.evaluation.sequences import View
from cv_patchpose.keypoints import KeypointArrays, arrays_from_keypoints

DETECTORS = detectors.DETECTORS
# Key.Net's scale is that of the pyramid level, without a search for the best one.
_PEER_TRAITS = {
    "keynet": DetectorTraits("KeyNet", "scale", scale_sigma_octaves=detectors.LEVEL_SIGMA_OCTAVES)
}
PEER_DETECTORS = tuple(_PEER_TRAITS)
SCALELESS_DETECTORS = ("gftt", "harris", "fast", "agast")
# Descriptors that read what the detector of their name writes. KAZE's makes NaN of some of it.
_PAIRED = ("sift", "orb", "akaze", "brisk")
# Harris responses spread over more decades than the smaller eigenvalue.
_CORNER_QUALITY = {"gftt": 1e-2, "harris": 1e-5}
_CORNER_DISTANCE_PX = 5.0
# On a rotated view the step from photograph to canvas is no corner of the scene.
_TURNED_MARGIN_PX = 4.0
_ALL_POINTS = 1_000_000
_SURPLUS = 4  # what a rotated view's black canvas may take of a baseline's strongest points


@dataclass(frozen=True)
class Detections:
    """The strongest points of an image.

    Attributes:
        points: One keypoint per centre and size, strongest first. Of several orientations it is
            the one the detector lists first; OpenCV's SIFT lists the smallest angle first.
        oriented: The same points with all the orientations the detector found.
        detector: Its name.
    """

    points: KeypointArrays
    oriented: KeypointArrays
    detector: str = "sift"

    @classmethod
    def of_oriented(cls, oriented: KeypointArrays, detector: str) -> Detections:
        """Make them of all orientations, of which the points follow."""
        return cls(oriented.take(oriented.distinct_index()), oriented, detector)

    @property
    def traits(self) -> DetectorTraits:
        """What the fields of its keypoints mean."""
        return _PEER_TRAITS.get(self.detector) or detectors.detector_traits(self.detector)

    @property
    def size_unit(self) -> float:
        """The detector's sizes over the characteristic ones, as SIFT defines them."""
        return self.traits.size_unit

    @property
    def characteristic(self) -> KeypointArrays:
        """The points with characteristic sizes."""
        return self._with_characteristic_sizes(self.points)

    def write_fields(
        self, keypoints: KeypointArrays, descriptor: str, image_size: tuple[int, ...]
    ) -> KeypointArrays:
        """Write what a descriptor reads of a pose of the detector's size, as a careful user would.

        Where detector and descriptor are two halves of one method (SIFT, ORB, AKAZE, BRISK), the
        detector has written all of it, and nothing is changed. Elsewhere size, octave and class_id
        are written by the descriptor's rule, from the detector's size brought to SIFT's measure.

        Args:
            keypoints: Of these detections, with the angles to be described with.
            descriptor: One of :data:`cv_patchpose.descriptors.DESCRIPTORS`.
            image_size: (height, width) of the image they are described on.
        """
        if self.detector == descriptor and descriptor in _PAIRED:
            return keypoints
        sized = self._with_characteristic_sizes(keypoints)
        return rule_for(descriptor).write(sized, (image_size[0], image_size[1]))

    def _with_characteristic_sizes(self, keypoints: KeypointArrays) -> KeypointArrays:
        return replace(keypoints, size_px=keypoints.size_px / np.float32(self.size_unit))


def detect(
    view: View,
    detector: str,
    max_points: int,
    corner_size_px: float,
    peer_weights: Path | None = None,
) -> Detections:
    """Detect the strongest points of an image, by response.

    Points of detectors without a scale (gftt, harris, fast, agast) get one fixed size. The other
    fields are the detector's own, but for angles that it does not measure: those are -1.

    Args:
        view: Image; on a rotated view points off the photograph are left out.
        detector: One of :data:`DETECTORS` or :data:`PEER_DETECTORS`.
        max_points: N, the number of points kept.
        corner_size_px: Size given to points of a detector without scale.
        peer_weights: Folder with the weights of published detectors.
    """
    if detector in PEER_DETECTORS:
        found = load_keynet(peer_weights).detect(view.image, _SURPLUS * max_points)
    elif detector in _CORNER_QUALITY:
        found = _corners(view.image, detector)
    else:
        found = arrays_from_keypoints(detectors.detect(view.image, detector, _ALL_POINTS))
    if detector in SCALELESS_DETECTORS:
        found = replace(found, size_px=np.full(len(found), corner_size_px, np.float32))
    margin_px = _TURNED_MARGIN_PX if view.is_turned else 0.0
    shown = view.shows(found.xy_px.astype(np.float64), margin_px)
    found = found.take(np.flatnonzero(shown))
    oriented = found.take(detectors.strongest_index(found, max_points))
    return Detections.of_oriented(oriented, detector)


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
