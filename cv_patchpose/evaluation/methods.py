"""The estimators a benchmark compares, behind one small interface."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.assigner import PatchPoseAssigner
from cv_patchpose.estimator import BUNDLED_MODELS
from cv_patchpose.evaluation.detection import Detections
from cv_patchpose.evaluation.gradient_histogram import SIFT_MAGNIFICATION, dominant_gradient_deg
from cv_patchpose.evaluation.peers import OriNet
from cv_patchpose.keypoints import KeypointArrays, arrays_from_keypoints, keypoints_from_arrays

Image = NDArray[np.uint8]
Route = Literal["fields", "naive", "patches"]
AngleEstimator = Callable[[Image, NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]

CONTROLS = ("identity", "upright", "detector", "detector-all", "gradient-histogram", "orinet")
ORINET_MAGNIFICATION = 12.0
_ROUTES: dict[str | None, Route] = {"@naive": "naive", "@describe": "patches"}
_LEARNED_SPEC = re.compile(
    r"(?P<model>.+?)(:(?P<top_k>\d+))?(?P<how>@angle|@scale|@naive|@describe)?"
)


@dataclass(frozen=True)
class Estimates:
    """One pose per keypoint; NaN where a method does not say.

    Attributes:
        size_px: (N,) characteristic sizes.
        angle_deg: (N,) degrees clockwise on screen.
    """

    size_px: NDArray[np.float64]
    angle_deg: NDArray[np.float64]


class Method(Protocol):
    """Gives keypoints their scale and orientation."""

    @property
    def route(self) -> Route:
        """How the descriptor learns of the pose.

        "fields": by fields written for it. "naive": by size and angle alone, the other fields left
        as the detector wrote them, which the descriptor may refuse. "patches": by rectified patches
        instead of the image; sizes are then characteristic ones.
        """

    def pose(
        self, image: Image, detections: Detections, descriptor: str = "sift"
    ) -> KeypointArrays:
        """Return the points as this method would have them described, perhaps several of each."""

    def estimate(self, image: Image, keypoints: KeypointArrays) -> Estimates:
        """Return one pose for each keypoint."""


@dataclass(frozen=True)
class MethodSettings:
    """What a benchmark tells its methods.

    Attributes:
        window_px: One support window for all keypoints, or None for a multiple of their size.
        scale_prior_octaves: Deviation of the prior on scale around the keypoint's size, None for
            a flat one, or "auto" for the assigner's own choice.
        peer_weights: Folder with the weights of published estimators.
    """

    window_px: float | None = None
    scale_prior_octaves: float | Literal["auto"] | None = "auto"
    peer_weights: Path | None = None


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
        return _write(points, detections, descriptor, image, self.route)

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
        return _write(keypoints, detections, descriptor, image, self.route)

    def estimate(self, image: Image, keypoints: KeypointArrays) -> Estimates:
        """Return size and angle as detected."""
        angle_deg = self._angles_deg(image, keypoints)
        return Estimates(keypoints.size_px.astype(np.float64), angle_deg)

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
        return _write(points, detections, descriptor, image, self.route)

    def estimate(self, image: Image, keypoints: KeypointArrays) -> Estimates:
        """Return angles and no sizes."""
        xy_px = keypoints.xy_px.astype(np.float64)
        window_px = keypoints.size_px.astype(np.float64) * self.magnification
        if self.window_px is not None:
            window_px = np.full(len(xy_px), self.window_px)
        angle_deg = self.estimator(image, xy_px, window_px)
        return Estimates(np.full(len(xy_px), np.nan), angle_deg)


@dataclass(frozen=True)
class Learned:
    """One of this package's networks.

    Attributes:
        assigner: Holds the model and how its poses are written.
        route: See :class:`Method`.
    """

    assigner: PatchPoseAssigner
    route: Route = "fields"

    def pose(
        self, image: Image, detections: Detections, descriptor: str = "sift"
    ) -> KeypointArrays:
        """Return the points as the assigner writes them, or with nothing but size and angle new."""
        points = keypoints_from_arrays(detections.points)
        target = descriptor if self.route == "fields" else "sift"
        with warnings.catch_warnings():
            # What a descriptor does not read is what is measured here.
            warnings.simplefilter("ignore", UserWarning)
            assigned = self.assigner.assign(
                image, points, descriptor=target, detector=detections.detector
            )
        posed = arrays_from_keypoints(assigned)
        if self.route != "naive":
            return posed
        own = detections.points.take(posed.class_id)
        size_px = posed.size_px * np.float32(detections.size_unit)
        return replace(own, size_px=size_px, angle_deg=posed.angle_deg)

    def estimate(self, image: Image, keypoints: KeypointArrays) -> Estimates:
        """Return the best pose of each keypoint."""
        poses = self.assigner.estimate(image, keypoints_from_arrays(keypoints))
        index, best = np.unique(poses.keypoint_index, return_index=True)
        size_px, angle_deg = np.full((2, len(keypoints)), np.nan)
        size_px[index] = poses.scale[best] * keypoints.size_px[index]
        angle_deg[index] = poses.angle_deg[best]
        return Estimates(size_px, angle_deg)


def load_method(spec: str, settings: MethodSettings) -> Method:
    """Make a method from its name.

    Args:
        spec: One of :data:`CONTROLS`, or one of the bundled models or a path to an ONNX file,
            followed by ``:K`` for the K best poses and by ``@angle`` or ``@scale`` to write only
            that, or ``@naive`` to leave all fields but these two as the detector wrote them. Any
            may be followed by ``@describe`` instead, to describe rectified patches.
        settings: What the benchmark asks for.

    Raises:
        ValueError: Unknown name; lists the accepted ones.
    """
    window_px = settings.window_px
    name = spec.removesuffix("@describe")
    route: Route = "fields" if name == spec else "patches"
    controls: dict[str, Callable[[], Method]] = {
        "identity": lambda: Upright(predicts_size=False, route=route),
        "upright": lambda: Upright(route=route),
        "detector": lambda: OwnPose(window_px=window_px, route=route),
        "detector-all": lambda: OwnPose(every_orientation=True, window_px=window_px, route=route),
        "gradient-histogram": lambda: AngleOnly(
            dominant_gradient_deg, SIFT_MAGNIFICATION, window_px, route
        ),
        "orinet": lambda: AngleOnly(
            OriNet(settings.peer_weights), ORINET_MAGNIFICATION, window_px, route
        ),
    }
    return controls[name]() if name in controls else _load_learned(spec, settings)


def require_one_pose(specs: Sequence[str]) -> None:
    """Refuse methods that give several poses per point.

    Raises:
        ValueError: Names the first of them.
    """
    for spec in specs:
        match = _LEARNED_SPEC.fullmatch(spec)
        if spec.startswith("detector-all") or (match and match["top_k"] not in (None, "1")):
            raise ValueError(f"methods: expected one pose per point, got {spec!r}")


def _load_learned(spec: str, settings: MethodSettings) -> Learned:
    match = _LEARNED_SPEC.fullmatch(spec)
    if match is None or not (match["model"] in BUNDLED_MODELS or match["model"].endswith(".onnx")):
        raise ValueError(
            f"methods: expected {', '.join(CONTROLS + BUNDLED_MODELS)} or a path to an ONNX file, "
            f"with :K, @angle, @scale or @naive behind a learned one, @describe behind any, "
            f"got {spec!r}"
        )
    if match["model"] not in BUNDLED_MODELS and not Path(match["model"]).is_file():
        raise ValueError(f"methods: expected an ONNX file, got {match['model']!r}")
    options: dict[str, Any] = {
        "top_k": int(match["top_k"] or 1),
        "assign_scale": match["how"] != "@angle",
        "assign_orientation": match["how"] != "@scale",
        "window_px": settings.window_px,
        "scale_prior_octaves": settings.scale_prior_octaves,
    }
    return Learned(
        PatchPoseAssigner(match["model"], **options), _ROUTES.get(match["how"], "fields")
    )


def _write(
    keypoints: KeypointArrays, detections: Detections, descriptor: str, image: Image, route: Route
) -> KeypointArrays:
    """Write the fields for the descriptor; on patches, sizes as SIFT defines them."""
    target = descriptor if route == "fields" else "sift"
    return detections.write_fields(keypoints, target, image.shape[:2])


def _with_angles(keypoints: KeypointArrays, angle_deg: NDArray[np.float64]) -> KeypointArrays:
    angle = (angle_deg % 360.0).astype(np.float32)
    return replace(keypoints, angle_deg=np.where(angle < 360.0, angle, np.float32(0)))
