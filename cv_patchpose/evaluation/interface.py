"""What a method is: the one interface behind which every estimator is compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.detection import Detections
from cv_patchpose.keypoints import KeypointArrays

Image = NDArray[np.uint8]
Route = Literal["fields", "naive", "patches"]


@dataclass(frozen=True)
class AffineKeypoints(KeypointArrays):
    """Keypoints with an affine shape, which patch descriptors read instead of the angle.

    Attributes:
        shape: (N, 2, 2) float64 of determinant 1: times half a patch's side it is the linear part
            of kornia's frame. The angle is that of the nearest similarity.
    """

    shape: NDArray[np.float64]


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
    """Gives keypoints their scale and orientation.

    What only measures an angle needs no class of its own:
    :class:`cv_patchpose.evaluation.controls.AngleOnly` makes a method of a function.
    """

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
        """Return the points as this method would have them described, perhaps several of each.

        Args:
            image: (h, w, 3) uint8, BGR.
            detections: The points.
            descriptor: Whose fields are written: one of OpenCV's, or "sift" where what describes
                reads no fields but characteristic sizes and angles.
        """

    def estimate(self, image: Image, keypoints: KeypointArrays) -> Estimates:
        """Return one pose for each keypoint."""


@dataclass(frozen=True)
class MethodSettings:
    """What a benchmark asks of its methods.

    Attributes:
        window_px: One support window for all keypoints, or None for a multiple of their size.
        scale_prior_octaves: Deviation of the prior on scale around the keypoint's size, None for
            a flat one, or "auto" for the assigner's own choice.
        peer_weights: Folder with the weights of published estimators.
    """

    window_px: float | None = None
    scale_prior_octaves: float | Literal["auto"] | None = "auto"
    peer_weights: Path | None = None
