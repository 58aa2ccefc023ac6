"""Methods without a model of ours: fixed angles, the detector's pose, estimators by patch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.detection import Detections
from cv_patchpose.evaluation.interface import AffineKeypoints, Estimates, Image, Route
from cv_patchpose.evaluation.sift_rules import (
    SIFT_MAGNIFICATION,
    characteristic_size_px,
    dominant_gradient_deg,
)
from cv_patchpose.homography import nearest_similarity
from cv_patchpose.keypoints import KeypointArrays

# From image, (N, 2) centres and (N,) windows: (N,) degrees clockwise, or (N, 2, 2) shapes.
AngleEstimator = Callable[[Image, NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
ShapeEstimator = AngleEstimator


@dataclass(frozen=True)
class Upright:
    """Angle 0 for all, at the detector's size.

    Attributes:
        predicts_size: Whether estimates carry the detector's size; otherwise all have size 1,
            which predicts that nothing changes.
        route: "fields" or "patches", see :class:`Method`.
    """

    predicts_size: bool = True
    route: Route = "fields"

    def pose(
        self, image: Image, detections: Detections, descriptor: str = "sift"
    ) -> KeypointArrays:
        """Return the points with angle 0; other fields as in :meth:`Detections.write_fields`."""
        points = _with_angles(detections.points, np.zeros(len(detections.points)))
        return detections.write_fields(points, descriptor, image.shape[:2])

    def estimate(self, image: Image, keypoints: KeypointArrays) -> Estimates:
        """Return angle 0 and the detector's size or 1."""
        size = keypoints.size_px.astype(np.float64)
        return Estimates(size if self.predicts_size else np.ones_like(size), np.zeros_like(size))


@dataclass(frozen=True)
class OwnPose:
    """The detector's own pose; where it measured no angle, SIFT's rule at the point.

    Attributes:
        every_orientation: Whether a point comes once for each of its orientations.
        window_px: Support of SIFT's rule, or None for its own multiple of the size.
        route: "fields" or "patches", see :class:`Method`.
    """

    every_orientation: bool = False
    window_px: float | None = None
    route: Route = "fields"

    def pose(
        self, image: Image, detections: Detections, descriptor: str = "sift"
    ) -> KeypointArrays:
        """Return the detector's keypoints; see :meth:`Detections.write_fields`."""
        keypoints = detections.oriented if self.every_orientation else detections.points
        angle_deg = self._angles_deg(image, keypoints, detections.size_unit)
        keypoints = _with_angles(keypoints, angle_deg)
        return detections.write_fields(keypoints, descriptor, image.shape[:2])

    def estimate(self, image: Image, keypoints: KeypointArrays) -> Estimates:
        """Return size and angle as detected; no sizes at fixed windows, whose size is given."""
        size_px = keypoints.size_px.astype(np.float64)
        if self.window_px is not None:
            size_px[:] = np.nan
        return Estimates(size_px, self._angles_deg(image, keypoints))

    def _angles_deg(
        self, image: Image, keypoints: KeypointArrays, size_unit: float = 1.0
    ) -> NDArray[np.float64]:
        angle_deg = keypoints.angle_deg.astype(np.float64)
        if not (angle_deg < 0).any():
            return angle_deg
        rule = AngleOnly(dominant_gradient_deg, SIFT_MAGNIFICATION / size_unit, self.window_px)
        return np.where(angle_deg < 0, rule.estimate(image, keypoints).angle_deg, angle_deg)


@dataclass(frozen=True)
class AngleOnly:
    """An estimator of orientation; sizes stay the detector's.

    Attributes:
        estimator: From image, centres (N, 2) and windows (N,) to degrees clockwise (N,).
        magnification: Window in sizes of the keypoint.
        window_px: One window for all, or None.
        route: "fields" or "patches", see :class:`Method`.
    """

    estimator: AngleEstimator
    magnification: float
    window_px: float | None = None
    route: Route = "fields"

    def pose(
        self, image: Image, detections: Detections, descriptor: str = "sift"
    ) -> KeypointArrays:
        """Return the points with their estimated angles; see :meth:`Detections.write_fields`."""
        estimates = self.estimate(image, detections.characteristic)
        points = _with_angles(detections.points, estimates.angle_deg)
        return detections.write_fields(points, descriptor, image.shape[:2])

    def estimate(self, image: Image, keypoints: KeypointArrays) -> Estimates:
        """Return angles and no sizes."""
        xy_px, window_px = _supports(keypoints, self.magnification, self.window_px)
        angle_deg = _checked(self.estimator(image, xy_px, window_px), "angles", (len(xy_px),))
        return Estimates(np.full(len(xy_px), np.nan), angle_deg)


@dataclass(frozen=True)
class SiftAtPoint:
    """SIFT's rules for both scale and orientation, at points that anything found.

    The orientation is read in the window, or at the size found where there is no fixed one.

    Attributes:
        magnification: Window of the scale's rule in sizes of the keypoint.
        window_px: One window for all, or None.
        route: "fields" or "patches", see :class:`Method`.
    """

    magnification: float
    window_px: float | None = None
    route: Route = "fields"

    def pose(
        self, image: Image, detections: Detections, descriptor: str = "sift"
    ) -> KeypointArrays:
        """Return the points with sizes and angles; see :meth:`Detections.write_fields`."""
        found = self.estimate(image, detections.characteristic)
        size_px = (found.size_px * detections.size_unit).astype(np.float32)
        points = replace(_with_angles(detections.points, found.angle_deg), size_px=size_px)
        return detections.write_fields(points, descriptor, image.shape[:2])

    def estimate(self, image: Image, keypoints: KeypointArrays) -> Estimates:
        """Return sizes and angles."""
        xy_px, window_px = _supports(keypoints, self.magnification, self.window_px)
        size_px = characteristic_size_px(image, xy_px, window_px)
        support_px = SIFT_MAGNIFICATION * size_px if self.window_px is None else window_px
        return Estimates(size_px, dominant_gradient_deg(image, xy_px, support_px))


@dataclass(frozen=True)
class AffineShape:
    """An estimator of affine shape; areas stay the detector's.

    Descriptors of patches read the shape; others, which know no shapes, its nearest similarity.

    Attributes:
        estimator: From image, centres (N, 2) and windows (N,) to shapes (N, 2, 2) as in
            :class:`cv_patchpose.evaluation.interface.AffineKeypoints`.
        magnification: Window in sizes of the keypoint.
        window_px: One window for all, or None.
        route: "fields" or "patches", see :class:`Method`.
    """

    estimator: ShapeEstimator
    magnification: float
    window_px: float | None = None
    route: Route = "fields"

    def pose(
        self, image: Image, detections: Detections, descriptor: str = "sift"
    ) -> AffineKeypoints:
        """Return the points with shapes and angles; see :meth:`Detections.write_fields`."""
        shape = self._shapes(image, detections.characteristic)
        turned = _with_angles(detections.points, nearest_similarity(shape)[1])
        written = detections.write_fields(turned, descriptor, image.shape[:2])
        return AffineKeypoints(**vars(written), shape=shape)

    def estimate(self, image: Image, keypoints: KeypointArrays) -> Estimates:
        """Return the angles of the nearest similarities and no sizes."""
        angle_deg = nearest_similarity(self._shapes(image, keypoints))[1]
        return Estimates(np.full(len(keypoints), np.nan), angle_deg)

    def _shapes(self, image: Image, keypoints: KeypointArrays) -> NDArray[np.float64]:
        shape = self.estimator(image, *_supports(keypoints, self.magnification, self.window_px))
        return _checked(shape, "shapes", (len(keypoints), 2, 2))


def _checked(found: Any, what: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Refuse what an estimator, perhaps a user's, must not return: it would be scored silently."""
    values = np.asarray(found, np.float64)
    if values.shape != shape:
        raise ValueError(f"estimator: expected {what} of shape {shape}, got {values.shape}")
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
        raise ValueError(
            f"estimator: expected finite {what}, got NaN or infinity for {len(bad)} of "
            f"{len(values)} points, the first {bad[0]}"
        )
    return values


def _supports(
    keypoints: KeypointArrays, magnification: float, fixed_px: float | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, 2) centres and (N,) windows."""
    window_px = keypoints.size_px.astype(np.float64) * magnification
    if fixed_px is not None:
        window_px = np.full(len(keypoints), fixed_px)
    return keypoints.xy_px.astype(np.float64), window_px


def _with_angles(keypoints: KeypointArrays, angle_deg: NDArray[np.float64]) -> KeypointArrays:
    angle = (angle_deg % 360.0).astype(np.float32)
    return replace(keypoints, angle_deg=np.where(angle < 360.0, angle, np.float32(0)))
