"""Scale and orientation for OpenCV keypoints."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.descriptors import FieldRule, rule_for
from cv_patchpose.detectors import DetectorTraits, detector_traits
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
from cv_patchpose.options import AssignerOptions
from cv_patchpose.patches import ImagePyramid, build_pyramid, sample_patches
from cv_patchpose.pyramid import stretch_contrast
from cv_patchpose.support import Support, choose_support

_BLANK_SPREAD = 1e-4  # far below one step of 8 bits, also in patches of unit variance
_WIDER = 2.0  # a window that shows nothing may end before what is around
# Narrow peaks, one beside the other, are the doubts of a network about one direction.
_SMOOTHING_DEG = 15.0
_CHUNK = 1024  # keypoints whose patches and histograms are in memory at once, or a GPU's batch


class PatchPoseAssigner:
    """Gives OpenCV keypoints a learned scale and orientation.

    Can be pickled. Use changes nothing but of which descriptors it has warned, once each: one
    object serves any number of images and threads.

    Args:
        model: "polar"; "polar-large", more exact in some measures at several times the cost;
            "resnet18", the network of the paper; or the path of an exported ONNX file.
        descriptor: What the keypoints are described with: the name of an OpenCV descriptor, or a
            cv2 extractor object, whose settings are read; see `descriptors.rule_for`.
        detector: What found the keypoints: one of `detectors.DETECTORS` or a cv2 detector object,
            whose sizes have a measure of their own (ORB's and BRISK's are windows), or the
            `detectors.DetectorTraits` of another library's. None: told from the fields and the
            descriptor, see `support.choose_support`; name MSD and TBMR, BRISK and KAZE where they
            are not the descriptor, and ORB and AKAZE at settings that are not the descriptor's.
        top_k: Most poses per keypoint; further ones are written as further keypoints.
        assign_scale: Write the size found; if not, keypoints keep theirs, in the descriptor's
            measure: divided by their detector's unit and multiplied by the descriptor's. With SIFT,
            points taken for regions so lose a factor of 1.41; see `support.choose_support`.
        assign_orientation: Write the angle; if not, keypoints keep theirs.
        keep_duplicates: Pose keypoints of one centre and size, which detectors emit for several
            orientations, one by one; if not, only the first of them.
        magnification: Diameter of the support window over the keypoint's size; None: the model's,
            and the model's one window for points that have no scale of their own.
        window_px: One window diameter for all keypoints, pixels, whatever their size.
        providers: Execution providers of ONNX Runtime; see `PoseEstimator`.
        num_threads: Of the sampler and of ONNX Runtime; None: cv2.getNumThreads() at each call.
        scale_prior_octaves: Standard deviation of a Gaussian prior on log2 of the scale, which
            holds the size near the detector's; None: no prior. "auto": the model's for keypoints
            whose detector measured a scale (octave not 0, or angle above 0), a wide one for regions
            and blobs, none for points of one size (FAST, GFTT, clicks) and with window_px; see
            `support.choose_support`.
        passes: How often a pose is read, 1 to 16; each time but the first in the window of the size
            that was found the time before, about which a prior then holds, or in one an octave
            wider where nothing was to be seen. "auto": twice for points of one size whose size is
            to be written, unless a window, a magnification or a prior is given, and once for all
            others.

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
        detector: Any = None,
        top_k: int = 1,
        assign_scale: bool = True,
        assign_orientation: bool = True,
        keep_duplicates: bool = False,
        magnification: float | None = None,
        window_px: float | None = None,
        providers: Sequence[str] | None = None,
        num_threads: int | None = None,
        scale_prior_octaves: float | Literal["auto"] | None = "auto",
        passes: int | Literal["auto"] = "auto",
    ) -> None:
        self._rule = rule_for(descriptor)
        self._traits = None if detector is None else detector_traits(detector)
        self._options = AssignerOptions(
            top_k=top_k,
            assign_scale=assign_scale,
            assign_orientation=assign_orientation,
            keep_duplicates=keep_duplicates,
            magnification=magnification,
            window_px=window_px,
            scale_prior_octaves=scale_prior_octaves,
            passes=passes,
            num_threads=num_threads,
        )
        self._told: set[str] = set()
        self._estimator = PoseEstimator(model, providers=providers, num_threads=num_threads)

    @property
    def estimator(self) -> PoseEstimator:
        """The model in use, with its metadata and execution providers."""
        return self._estimator

    def assign(
        self,
        image: Any,
        keypoints: Sequence[cv2.KeyPoint],
        *,
        descriptor: Any = None,
        detector: Any = None,
    ) -> tuple[cv2.KeyPoint, ...]:
        """Return keypoints with learned size and angle, ready for the descriptor.

        The order is kept; further poses of a keypoint stand behind its best one. Keypoints of one
        centre and size, which detectors emit for several orientations, would become the same: only
        the first of them is used, unless the angle or the duplicates are to be kept. A keypoint
        about which the model knows nothing keeps its size or angle. class_id is the index of the
        keypoint in the input where the descriptor does not read it.

        Args:
            image: (H, W), (H, W, 1), BGR or BGRA; uint8, uint16 or float32; array or cv2.UMat.
                uint16 images that span less than a quarter of their range (10 or 12 bits, thermal)
                and float32 ones that do, or go beyond [0, 1], are stretched.
            keypoints: List or tuple of N cv2.KeyPoint on the image; not changed.
            descriptor: Another one than the constructor's for these keypoints.
            detector: Likewise.

        Raises:
            TypeError: Not an image, or not keypoints.
            ValueError: An image or a keypoint that cannot be used; an unknown descriptor or
                detector.
        """
        rule, traits = self._rule_and_traits(descriptor, detector)
        self._tell_what_is_lost(rule)
        pyramid, arrays = self._read(image, keypoints)
        distinct = np.arange(len(arrays))
        if self._options.assign_orientation and not self._options.keep_duplicates:
            distinct = arrays.distinct_index()
        chosen = arrays.take(distinct)
        # Not kept beside what is written: it takes 40 bytes a keypoint.
        poses = self._poses(pyramid, chosen, self._support(chosen, rule, traits))
        posed = chosen.take(poses.keypoint_index)
        size_px = posed.size_px * poses.scale
        if not self._options.assign_scale:  # their own, but as the descriptor's rule takes them
            own_px = self._support(chosen, rule, traits).own_px
            size_px = own_px[poses.keypoint_index]
        posed = replace(posed, size_px=size_px.astype(np.float32))
        if self._options.assign_orientation:
            posed = replace(posed, angle_deg=_written_angles(poses.angle_deg, posed.angle_deg))
        if rule.class_id_is_free:
            source = distinct[poses.keypoint_index]
            posed = replace(posed, class_id=source.astype(np.int32))
        return keypoints_from_arrays(rule.write(posed, _image_size(pyramid)))

    def estimate(
        self,
        image: Any,
        keypoints: Sequence[cv2.KeyPoint],
        *,
        descriptor: Any = None,
        detector: Any = None,
    ) -> PatchPoses:
        """Estimate the poses of keypoints without writing them.

        Args:
            image: As for `assign`.
            keypoints: As for `assign`; each one is estimated, also where several coincide.
            descriptor: As for `assign`.
            detector: As for `assign`.

        Returns:
            At least one and at most top_k poses per keypoint; see `find_modes`. They differ in what
            `assign` writes. `scale` is a factor on the keypoint's size. The angle is -1 where the
            model knows nothing.

        Raises:
            TypeError: Not an image, or not keypoints.
            ValueError: An image or a keypoint that cannot be used; an unknown descriptor or
                detector.
        """
        rule, traits = self._rule_and_traits(descriptor, detector)
        pyramid, arrays = self._read(image, keypoints)
        return self._poses(pyramid, arrays, self._support(arrays, rule, traits))

    def histograms(
        self,
        image: Any,
        keypoints: Sequence[cv2.KeyPoint],
        *,
        descriptor: Any = None,
        detector: Any = None,
    ) -> PoseHistograms:
        """Estimate the pose histograms of N keypoints as the model gives them.

        Without prior, calibration and smoothing; those of the first pass, see `passes`.

        Args:
            image: As for `assign`.
            keypoints: As for `assign`; each one is estimated, also where several coincide.
            descriptor: As for `assign`.
            detector: As for `assign`.

        Returns:
            Scale (N, S) and orientation (N, R); rows sum to 1.

        Raises:
            TypeError: Not an image, or not keypoints.
            ValueError: An image or a keypoint that cannot be used; an unknown descriptor or
                detector.
        """
        rule, traits = self._rule_and_traits(descriptor, detector)
        pyramid, arrays = self._read(image, keypoints)
        support = self._support(arrays, rule, traits)
        chunks = [
            self._histograms(self._sample(pyramid, arrays.xy_px[chunk], support.window_px[chunk]))
            for chunk in self._chunks(len(arrays))
        ]
        return PoseHistograms(
            scale=np.concatenate([chunk.scale for chunk in chunks]),
            orientation=np.concatenate([chunk.orientation for chunk in chunks]),
        )

    def _rule_and_traits(
        self, descriptor: Any, detector: Any
    ) -> tuple[FieldRule, DetectorTraits | None]:
        """Return those of one call, the constructor's where none are given."""
        rule = self._rule if descriptor is None else rule_for(descriptor)
        return rule, self._traits if detector is None else detector_traits(detector)

    def _tell_what_is_lost(self, rule: FieldRule) -> None:
        """Warn, once for each descriptor, that it will not see all of what is written."""
        lost = []
        if self._options.assign_orientation and not rule.keeps_angle:
            lost.append("angle")
        if self._options.assign_scale and not rule.keeps_scale:
            lost.append("size")
        if not lost or rule.name in self._told:
            return
        self._told.add(rule.name)
        warnings.warn(
            f"{rule.name} ignores the {' and the '.join(lost)} of keypoints: the learned one does "
            "not reach it. cv_patchpose.describe(image, keypoints, extractor) describes rectified "
            'patches instead; give it keypoints assigned for descriptor="sift"',
            UserWarning,
            stacklevel=3,
        )

    def _read(
        self, image: Any, keypoints: Sequence[cv2.KeyPoint]
    ) -> tuple[ImagePyramid, KeypointArrays]:
        metadata = self._estimator.metadata
        pyramid = build_pyramid(stretch_contrast(image), color=metadata.color)
        return pyramid, arrays_from_keypoints(keypoints, image_size=_image_size(pyramid))

    def _chunks(self, count: int) -> list[slice]:
        """Cut keypoints into parts, at least one of them."""
        size = max(_CHUNK, self._estimator.batch)
        return [slice(first, first + size) for first in range(0, max(count, 1), size)]

    def _sample(
        self, pyramid: ImagePyramid, xy_px: NDArray[np.float32], window_px: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        metadata = self._estimator.metadata
        return sample_patches(
            pyramid, xy_px, window_px, np.zeros(len(xy_px)), metadata.grid,
            standardize=metadata.standardize, num_threads=self._options.num_threads,
        )  # fmt: skip

    def _histograms(
        self, patches: NDArray[np.float32], log_prior: NDArray[np.float32] | None = None
    ) -> PoseHistograms:
        """Run the model; blank patches have even histograms, whatever it makes of nothing."""
        histograms = self._estimator.histograms(patches, log_prior)
        blank = _are_blank(patches)
        for probability in (histograms.scale, histograms.orientation):
            probability[blank] = 1 / probability.shape[1]
        return histograms

    def _support(
        self, keypoints: KeypointArrays, rule: FieldRule, traits: DetectorTraits | None
    ) -> Support:
        return choose_support(keypoints, self._estimator.metadata, self._options, traits, rule)

    def _poses(
        self, pyramid: ImagePyramid, keypoints: KeypointArrays, support: Support
    ) -> PatchPoses:
        """Estimate poses; their scales are factors on the keypoints' sizes."""
        chunks = [
            self._chunk_poses(pyramid, keypoints, support, chunk)
            for chunk in self._chunks(len(keypoints))
        ]
        return PatchPoses(
            **{
                field: np.concatenate([getattr(chunk, field) for chunk in chunks])
                for field in vars(chunks[0])
            }
        )

    def _chunk_poses(
        self, pyramid: ImagePyramid, keypoints: KeypointArrays, support: Support, chunk: slice
    ) -> PatchPoses:
        xy_px, passes = keypoints.xy_px[chunk], support.passes[chunk]
        window_px, size_px = support.window_px[chunk].copy(), support.size_px[chunk].copy()
        prior_sigma = support.prior_sigma[chunk]
        for done in range(1, passes.max(initial=1)):
            again = passes > done
            before, flat = self._read_poses(
                pyramid, xy_px[again], window_px[again], prior_sigma[again], top_k=1
            )
            change = np.where(flat, _WIDER, before.scale)
            window_px[again] *= change
            size_px[again] *= change
        poses, flat = self._read_poses(
            pyramid, xy_px, window_px, prior_sigma, top_k=self._options.top_k
        )
        factor = np.where(flat, support.own_px[chunk], size_px) / keypoints.size_px[chunk]
        return replace(
            poses,
            keypoint_index=poses.keypoint_index + chunk.start,
            scale=poses.scale * factor[poses.keypoint_index],
        )

    def _read_poses(
        self,
        pyramid: ImagePyramid,
        xy_px: NDArray[np.float32],
        window_px: NDArray[np.float64],
        prior_sigma: NDArray[np.float64],
        *,
        top_k: int,
    ) -> tuple[PatchPoses, NDArray[np.bool_]]:
        """Read poses, whose scales count from the windows; and (N,) where scale is not known."""
        options, metadata = self._options, self._estimator.metadata
        offset_octaves = metadata.scale_offset_octaves
        if options.magnification is not None:  # the calibration holds for the model's own
            offset_octaves += math.log2(options.magnification / metadata.magnification)
        patches = self._sample(pyramid, xy_px, window_px)
        histograms = self._histograms(
            patches, log_scale_prior(prior_sigma, metadata.bins, offset_octaves)
        )
        poses = find_modes(
            histograms,
            metadata.bins,
            top_k=top_k,
            max_angles=None if options.assign_orientation else 1,
            max_scales=None if options.assign_scale else 1,
            min_ratio=metadata.second_mode_ratio,
            scale_prior_sigma=prior_sigma,
            scale_offset_octaves=offset_octaves,
            smoothing_deg=_SMOOTHING_DEG,
        )
        return poses, is_flat(histograms.scale)


def _written_angles(
    pose_deg: NDArray[np.float64], own_deg: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the poses' angles, the keypoints' own where there is none."""
    return np.where(pose_deg == NO_ANGLE_DEG, own_deg, pose_deg).astype(np.float32)


def _image_size(pyramid: ImagePyramid) -> tuple[int, int]:
    height, width = pyramid.levels[0].shape[:2]
    return height, width


def _are_blank(patches: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N,) bool: all samples of the (N, C, H, W) patches are alike."""
    # The last row, the outermost ring of polar ones, is seldom blank, and so the rest seldom read.
    blank = np.asarray(np.ptp(patches[:, 0, -1], axis=1) <= _BLANK_SPREAD)
    blank[blank] = np.ptp(patches[blank], axis=(1, 2, 3)) <= _BLANK_SPREAD
    return blank
