"""What methods say of stored patches."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.estimator import PoseEstimator
from cv_patchpose.evaluation.interface import Method
from cv_patchpose.evaluation.learned import Learned
from cv_patchpose.histograms import PatchPoses, find_modes
from cv_patchpose.keypoints import arrays_from_keypoints
from cv_patchpose.patches import build_pyramid, sample_patches
from cv_patchpose.patchpose.patch_sets import Patches


@dataclass(frozen=True)
class Readings:
    """What a method says of N patches: candidates, best first, NaN where there are fewer than K.

    Attributes:
        octaves: (N, K), log2 of the scale.
        angle_deg: (N, K), degrees clockwise on screen.
        argmax_octaves: (N,), centre of the fullest scale bin; NaN without a histogram.
        argmax_deg: (N,), centre of the fullest orientation bin; NaN without a histogram.
    """

    octaves: NDArray[np.float64]
    angle_deg: NDArray[np.float64]
    argmax_octaves: NDArray[np.float64]
    argmax_deg: NDArray[np.float64]


def read_patches(method: Method, patches: Patches, top_k: int) -> Readings:
    """Ask a method for the poses of patches.

    Each patch is an image to it, with one keypoint at its centre and a window of its side; a pixel
    beyond is that of the border.

    Args:
        method: Its window must be the patches' side.
        patches: (N, P, P, 3) uint8, RGB.
        top_k: K, candidates asked for; methods without a histogram give one.
    """
    middle = (patches.shape[1] - 1) / 2
    center = (cv2.KeyPoint(middle, middle, patches.shape[1]),)
    images = patches[..., ::-1]
    if isinstance(method, Learned):
        return _read_histograms(method.assigner.estimator, images, top_k)
    keypoint = arrays_from_keypoints(center)
    estimates = [method.estimate(np.ascontiguousarray(image), keypoint) for image in images]
    nothing = np.full(len(patches), np.nan)
    return Readings(
        octaves=np.log2([estimate.size_px for estimate in estimates]),
        angle_deg=np.array([estimate.angle_deg for estimate in estimates]),
        argmax_octaves=nothing,
        argmax_deg=nothing,
    )


def _read_histograms(estimator: PoseEstimator, images: Patches, top_k: int) -> Readings:
    metadata, size = estimator.metadata, images.shape[1]
    bins, center = metadata.bins, [[(size - 1) / 2, (size - 1) / 2]]
    # The network sees all of them at once, which is much faster.
    sampled = [
        sample_patches(
            build_pyramid(image, color=metadata.color),
            center,
            [size],
            [0.0],
            metadata.grid,
            standardize=metadata.standardize,
        )
        for image in images
    ]
    histograms = estimator.histograms(np.concatenate(sampled))
    scales = find_modes(histograms, bins, top_k=top_k, max_angles=1)
    angles = find_modes(histograms, bins, top_k=top_k, max_scales=1)
    shape = (len(images), top_k)
    return Readings(
        octaves=np.log2(_by_rank(scales, scales.scale, shape)),
        angle_deg=_by_rank(angles, angles.angle_deg, shape),
        argmax_octaves=bins.scale_centers_octaves[histograms.scale.argmax(1)],
        argmax_deg=bins.orientation_centers_deg[histograms.orientation.argmax(1)],
    )


def _by_rank(
    poses: PatchPoses, values: NDArray[np.float64], shape: tuple[int, int]
) -> NDArray[np.float64]:
    """(N, K) values of the poses of N patches, in their order; NaN where there are fewer."""
    first = np.searchsorted(poses.keypoint_index, poses.keypoint_index)
    table = np.full(shape, np.nan)
    table[poses.keypoint_index, np.arange(len(poses)) - first] = values
    return table
