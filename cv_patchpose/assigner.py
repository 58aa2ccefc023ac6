"""Scale and orientation for OpenCV keypoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.descriptors import rule_for
from cv_patchpose.estimator import PoseEstimator
from cv_patchpose.histograms import (
    NO_ANGLE_DEG,
    PatchPoses,
    PoseHistograms,
    find_modes,
    is_flat,
    log_scale_prior,
)
from cv_patchpose.keypoints import KeypointArrays, arrays_from_keypoints, keypoints_from_arrays
from cv_patchpose.patches import (
    ImagePyramid,
    PolarGrid,
    build_pyramid,
    sample_polar,
    sample_square,
)

_CHUNK = 1024  # keypoints sampled at once, which bounds memory


@dataclass(frozen=True)
class _Settings:
    """Checked options of an assigner; see `PatchPoseAssigner`."""

    top_k: int
    assign_scale: bool
    assign_orientation: bool
    magnification: float | None
    window_px: float | None
    scale_prior_octaves: float | Literal["auto"]
    num_threads: int | None


class PatchPoseAssigner:
    """Gives OpenCV keypoints a learned scale and orientation.

    Can be pickled. Not changed by use: one object serves any number of images and threads.

    Args:
        model: "polar" or the path of an exported ONNX file.
        descriptor: What the keypoints are described with: "sift" or a cv2.SIFT object.
        top_k: Most poses per keypoint; further ones are written as further keypoints.
        assign_scale: Write the size; if not, keypoints keep theirs.
        assign_orientation: Write the angle; if not, keypoints keep theirs.
        magnification: Diameter of the support window over the keypoint's size; None: the model's.
        window_px: One window diameter for all keypoints, pixels, whatever their size.
        providers: Execution providers of ONNX Runtime; see `PoseEstimator`.
        num_threads: Of the sampler and of ONNX Runtime; None: cv2.getNumThreads().
        scale_prior_octaves: Standard deviation of a Gaussian prior on log2 of the scale, which
            holds the size near the detector's; None: no prior. "auto": the model's for keypoints
            whose detector measured a scale (octave not 0, or angle above 0), none for others (FAST,
            GFTT, plain points) and with window_px.

    Raises:
        ModelError: The model is missing, foreign or broken.
        ValueError: An option out of range, or a descriptor without a rule.
        TypeError: An option of the wrong type.

    Source: after J. Lee, Y. Jeong, M. Cho, Self-Supervised Learning of Image Scale and
        Orientation, BMVC 2021; the sampling grid and the prior are ours.
    """

    def __init__(
        self,
        model: str | Path = "polar",
        *,
        descriptor: Any = "sift",
        top_k: int = 1,
        assign_scale: bool = True,
        assign_orientation: bool = True,
        magnification: float | None = None,
        window_px: float | None = None,
        providers: Sequence[str] | None = None,
        num_threads: int | None = None,
        scale_prior_octaves: float | Literal["auto"] | None = "auto",
    ) -> None:
        self._rule = rule_for(descriptor)
        self._settings = _Settings(
            top_k=_check_top_k(top_k),
            assign_scale=bool(assign_scale),
            assign_orientation=bool(assign_orientation),
            magnification=_check_positive("magnification", magnification),
            window_px=_check_positive("window_px", window_px),
            scale_prior_octaves=_check_prior(scale_prior_octaves),
            num_threads=num_threads,
        )
        _check_window(self._settings)
        self._estimator = PoseEstimator(model, providers=providers, num_threads=num_threads)

    @property
    def estimator(self) -> PoseEstimator:
        """The model in use, with its metadata and execution providers."""
        return self._estimator

    def assign(self, image: Any, keypoints: Sequence[cv2.KeyPoint]) -> tuple[cv2.KeyPoint, ...]:
        """Return keypoints with learned size and angle, ready for the descriptor.

        The order is kept; further poses of a keypoint stand behind its best one. Keypoints of one
        centre and size, which detectors emit for several orientations, would become the same: only
        the first of them is used, unless the angle is kept. A keypoint about which the model knows
        nothing keeps its size or angle. class_id is the index of the keypoint in the input.

        Args:
            image: (H, W), (H, W, 1), BGR or BGRA; uint8, uint16 or float32; array or cv2.UMat.
            keypoints: List or tuple of N cv2.KeyPoint on the image; not changed.

        Raises:
            TypeError: Not an image, or not keypoints.
            ValueError: An image or a keypoint that cannot be used.
        """
        pyramid, arrays = self._read(image, keypoints)
        distinct = np.arange(len(arrays))
        if self._settings.assign_orientation:
            distinct = arrays.distinct_index()
        chosen = arrays.take(distinct)
        poses = self._poses(pyramid, chosen)
        posed = chosen.take(poses.keypoint_index)
        if self._settings.assign_scale:
            posed = replace(posed, size_px=(posed.size_px * poses.scale).astype(np.float32))
        if self._settings.assign_orientation:
            posed = replace(posed, angle_deg=_written_angles(poses.angle_deg, posed.angle_deg))
        if self._rule.class_id_is_free:
            source = distinct[poses.keypoint_index]
            posed = replace(posed, class_id=source.astype(np.int32))
        return keypoints_from_arrays(self._rule.write(posed, _image_size(pyramid)))

    def estimate(self, image: Any, keypoints: Sequence[cv2.KeyPoint]) -> PatchPoses:
        """Estimate the poses of keypoints without writing them.

        Args:
            image: As for `assign`.
            keypoints: As for `assign`; each one is estimated, also where several coincide.

        Returns:
            At least one and at most top_k poses per keypoint; see `find_modes`. They differ in what
            `assign` writes. `scale` is a factor on the keypoint's size. The angle is -1 where the
            model knows nothing.

        Raises:
            TypeError: Not an image, or not keypoints.
            ValueError: An image or a keypoint that cannot be used.
        """
        return self._poses(*self._read(image, keypoints))

    def histograms(self, image: Any, keypoints: Sequence[cv2.KeyPoint]) -> PoseHistograms:
        """Estimate the pose histograms of N keypoints, before any prior or calibration.

        Args:
            image: As for `assign`.
            keypoints: As for `assign`; each one is estimated, also where several coincide.

        Returns:
            Scale (N, S) and orientation (N, R); rows sum to 1.

        Raises:
            TypeError: Not an image, or not keypoints.
            ValueError: An image or a keypoint that cannot be used.
        """
        pyramid, arrays = self._read(image, keypoints)
        nothing_known = np.zeros((len(arrays), self._estimator.metadata.bins.scale), np.float32)
        return self._histograms(pyramid, arrays, nothing_known)

    def _read(
        self, image: Any, keypoints: Sequence[cv2.KeyPoint]
    ) -> tuple[ImagePyramid, KeypointArrays]:
        pyramid = build_pyramid(image, color=self._estimator.metadata.color)
        return pyramid, arrays_from_keypoints(keypoints, image_size=_image_size(pyramid))

    def _histograms(
        self, pyramid: ImagePyramid, keypoints: KeypointArrays, log_prior: NDArray[np.float32]
    ) -> PoseHistograms:
        index = np.arange(len(keypoints))
        parts = [index[i : i + _CHUNK] for i in range(0, max(len(index), 1), _CHUNK)]
        chunks = [
            self._estimator.histograms(
                self._sample(pyramid, keypoints.take(part)), log_prior[part]
            )
            for part in parts
        ]
        return PoseHistograms(
            scale=np.concatenate([chunk.scale for chunk in chunks]),
            orientation=np.concatenate([chunk.orientation for chunk in chunks]),
        )

    def _sample(self, pyramid: ImagePyramid, keypoints: KeypointArrays) -> NDArray[np.float32]:
        metadata, threads = self._estimator.metadata, self._settings.num_threads
        window_px = self._windows(keypoints)
        angle_deg = np.zeros(len(keypoints))
        if isinstance(metadata.grid, PolarGrid):
            return sample_polar(
                pyramid, keypoints.xy_px, window_px, angle_deg, metadata.grid,
                standardize=metadata.standardize, num_threads=threads,
            )  # fmt: skip
        return sample_square(
            pyramid, keypoints.xy_px, window_px, angle_deg, metadata.grid, num_threads=threads
        )

    def _windows(self, keypoints: KeypointArrays) -> NDArray[np.float64]:
        """(N,) diameters of the support windows, pixels."""
        if self._settings.window_px is not None:
            return np.full(len(keypoints), self._settings.window_px)
        magnification = self._settings.magnification or self._estimator.metadata.magnification
        return keypoints.size_px.astype(np.float64) * magnification

    def _poses(self, pyramid: ImagePyramid, keypoints: KeypointArrays) -> PatchPoses:
        """Estimate poses; their scales are factors on the keypoints' sizes."""
        settings, metadata = self._settings, self._estimator.metadata
        offset_octaves = metadata.scale_offset_octaves
        if settings.magnification is not None:  # the calibration holds for the model's own
            offset_octaves += math.log2(settings.magnification / metadata.magnification)
        prior_sigma = self._prior_sigmas(keypoints)
        log_prior = log_scale_prior(prior_sigma, metadata.bins, offset_octaves)
        histograms = self._histograms(pyramid, keypoints, log_prior)
        poses = find_modes(
            histograms,
            metadata.bins,
            top_k=settings.top_k,
            max_angles=None if settings.assign_orientation else 1,
            max_scales=None if settings.assign_scale else 1,
            min_ratio=metadata.second_mode_ratio,
            scale_prior_sigma=prior_sigma,
            scale_offset_octaves=offset_octaves,
        )
        if settings.window_px is None:
            return poses
        reference_px = settings.window_px / metadata.magnification
        factor = np.where(is_flat(histograms.scale), 1.0, reference_px / keypoints.size_px)
        return replace(poses, scale=poses.scale * factor[poses.keypoint_index])

    def _prior_sigmas(self, keypoints: KeypointArrays) -> NDArray[np.float64]:
        """(N,) octaves; inf: no prior."""
        prior = self._settings.scale_prior_octaves
        if prior != "auto":
            return np.full(len(keypoints), prior)
        sigma = self._estimator.metadata.scale_prior_octaves
        if sigma is None or self._settings.window_px is not None:
            return np.full(len(keypoints), np.inf)
        # Detectors that measure no angle write -1 or 0.
        measured = (keypoints.octave != 0) | (keypoints.angle_deg > 0)
        return np.where(measured, sigma, np.inf)


def _image_size(pyramid: ImagePyramid) -> tuple[int, int]:
    height, width = pyramid.levels[0].shape[:2]
    return height, width


def _written_angles(
    pose_deg: NDArray[np.float64], own_deg: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the poses' angles in [0, 360), the keypoints' own where there is none."""
    written = np.where(pose_deg == NO_ANGLE_DEG, own_deg, pose_deg).astype(np.float32)
    return np.where(written >= 360.0, np.float32(0.0), written)


def _check_top_k(top_k: int) -> int:
    if not isinstance(top_k, (int, np.integer)) or isinstance(top_k, bool) or top_k < 1:
        raise ValueError(f"top_k: expected an integer of at least 1, got {top_k!r}")
    return int(top_k)


def _check_positive(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name}: expected a number or None, got {value!r}")
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0 or None, got {value!r}")
    return float(value)


def _check_prior(prior: float | Literal["auto"] | None) -> float | Literal["auto"]:
    if prior is None:
        return math.inf
    if isinstance(prior, str):
        if prior == "auto":
            return "auto"
    elif isinstance(prior, (int, float, np.number)) and prior >= 0:
        return float(prior)
    raise ValueError(
        f'scale_prior_octaves: expected "auto", a number of at least 0 or None, got {prior!r}'
    )


def _check_window(settings: _Settings) -> None:
    if settings.window_px is None:
        return
    if settings.magnification is not None:
        raise ValueError("window_px: expected None together with magnification, got both")
    if settings.scale_prior_octaves not in ("auto", math.inf):
        raise ValueError(
            'scale_prior_octaves: expected "auto" or None together with window_px, '
            f"got {settings.scale_prior_octaves}"
        )
