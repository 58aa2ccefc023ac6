"""The estimators a benchmark compares, behind one small interface."""

from __future__ import annotations

import re
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
AngleEstimator = Callable[[Image, NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]

CONTROLS = ("identity", "upright", "detector", "detector-all", "gradient-histogram", "orinet")
ORINET_MAGNIFICATION = 12.0
_LEARNED_SPEC = re.compile(r"(?P<model>.+?)(:(?P<top_k>\d+))?(?P<fields>@angle|@scale)?")


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

    def pose(self, image: Image, detections: Detections) -> KeypointArrays:
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
    """

    predicts_size: bool = True

    def pose(self, image: Image, detections: Detections) -> KeypointArrays:
        """Return the points with angle 0."""
        return _with_angles(detections.points, np.zeros(len(detections.points)))

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
    """

    every_orientation: bool = False
    window_px: float | None = None

    def pose(self, image: Image, detections: Detections) -> KeypointArrays:
        """Return the detector's keypoints."""
        keypoints = detections.oriented if self.every_orientation else detections.points
        return _with_angles(keypoints, self.estimate(image, keypoints).angle_deg)

    def estimate(self, image: Image, keypoints: KeypointArrays) -> Estimates:
        """Return size and angle as detected."""
        angle_deg = keypoints.angle_deg.astype(np.float64)
        if (angle_deg < 0).any():
            rule = AngleOnly(dominant_gradient_deg, SIFT_MAGNIFICATION, self.window_px)
            angle_deg = np.where(
                angle_deg < 0, rule.estimate(image, keypoints).angle_deg, angle_deg
            )
        return Estimates(keypoints.size_px.astype(np.float64), angle_deg)


@dataclass(frozen=True)
class AngleOnly:
    """An estimator of orientation; sizes stay the detector's.

    Attributes:
        estimator: From image, centres (N, 2) and windows (N,) to degrees clockwise (N,).
        magnification: Window in sizes of the keypoint.
        window_px: One window for all, or None.
    """

    estimator: AngleEstimator
    magnification: float
    window_px: float | None = None

    def pose(self, image: Image, detections: Detections) -> KeypointArrays:
        """Return the points with their estimated angles."""
        points = detections.points
        return _with_angles(points, self.estimate(image, points).angle_deg)

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
    """

    assigner: PatchPoseAssigner

    def pose(self, image: Image, detections: Detections) -> KeypointArrays:
        """Return the points as the assigner writes them."""
        points = keypoints_from_arrays(detections.points)
        return arrays_from_keypoints(self.assigner.assign(image, points))

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
            that.
        settings: What the benchmark asks for.

    Raises:
        ValueError: Unknown name; lists the accepted ones.
    """
    window_px = settings.window_px
    controls: dict[str, Callable[[], Method]] = {
        "identity": lambda: Upright(predicts_size=False),
        "upright": Upright,
        "detector": lambda: OwnPose(window_px=window_px),
        "detector-all": lambda: OwnPose(every_orientation=True, window_px=window_px),
        "gradient-histogram": lambda: AngleOnly(
            dominant_gradient_deg, SIFT_MAGNIFICATION, window_px
        ),
        "orinet": lambda: AngleOnly(OriNet(settings.peer_weights), ORINET_MAGNIFICATION, window_px),
    }
    return controls[spec]() if spec in controls else _load_learned(spec, settings)


def require_one_pose(specs: Sequence[str]) -> None:
    """Refuse methods that give several poses per point.

    Raises:
        ValueError: Names the first of them.
    """
    for spec in specs:
        match = _LEARNED_SPEC.fullmatch(spec)
        if spec == "detector-all" or (match and match["top_k"] not in (None, "1")):
            raise ValueError(f"methods: expected one pose per point, got {spec!r}")


def _load_learned(spec: str, settings: MethodSettings) -> Learned:
    match = _LEARNED_SPEC.fullmatch(spec)
    if match is None or not (match["model"] in BUNDLED_MODELS or match["model"].endswith(".onnx")):
        raise ValueError(
            f"methods: expected {', '.join(CONTROLS + BUNDLED_MODELS)} or a path to an ONNX file, "
            f"with :K, @angle or @scale behind a learned one, got {spec!r}"
        )
    if match["model"] not in BUNDLED_MODELS and not Path(match["model"]).is_file():
        raise ValueError(f"methods: expected an ONNX file, got {match['model']!r}")
    options: dict[str, Any] = {
        "top_k": int(match["top_k"] or 1),
        "assign_scale": match["fields"] != "@angle",
        "assign_orientation": match["fields"] != "@scale",
        "window_px": settings.window_px,
        "scale_prior_octaves": settings.scale_prior_octaves,
    }
    return Learned(PatchPoseAssigner(match["model"], **options))


def _with_angles(keypoints: KeypointArrays, angle_deg: NDArray[np.float64]) -> KeypointArrays:
    angle = (angle_deg % 360.0).astype(np.float32)
    return replace(keypoints, angle_deg=np.where(angle < 360.0, angle, np.float32(0)))
