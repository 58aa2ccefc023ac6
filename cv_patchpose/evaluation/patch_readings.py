"""What methods say of stored patches, or of points of an image: candidates and fullest bins."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.estimator import PoseEstimator
from cv_patchpose.evaluation.controls import SiftAtPoint
from cv_patchpose.evaluation.interface import Estimates, Image, Method
from cv_patchpose.evaluation.learned import Learned
from cv_patchpose.evaluation.sift_rules import SIFT_MAGNIFICATION, gradient_peaks_deg
from cv_patchpose.histograms import PatchPoses, PoseBins, PoseHistograms, find_modes
from cv_patchpose.keypoints import KeypointArrays, arrays_from_keypoints, keypoints_from_arrays
from cv_patchpose.patches import build_pyramid, sample_patches
from cv_patchpose.patchpose.patch_sets import Patches


@dataclass(frozen=True)
class Readings:
    """What a method says of N patches: candidates, best first, NaN where there are fewer than K.

    Attributes:
        octaves: (N, K), log2 of the scale; (N, 1) of a method that gives one.
        angle_deg: (N, K) or (N, 1) likewise, degrees clockwise on screen.
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
    images = patches[..., ::-1]
    if isinstance(method, Learned):
        estimator = method.assigner.estimator
        histograms = _patch_histograms(estimator, images)
        return _read_histograms(histograms, estimator.metadata.bins, top_k)
    middle = (patches.shape[1] - 1) / 2
    keypoint = arrays_from_keypoints((cv2.KeyPoint(middle, middle, patches.shape[1]),))
    each = []
    for image in map(np.ascontiguousarray, images):
        estimates = method.estimate(image, keypoint)
        each.append(read_points(method, image, keypoint, estimates, top_k))
    return Readings(
        **{name: np.concatenate([vars(r)[name] for r in each]) for name in vars(each[0])}
    )


def read_points(
    method: Method, image: Image, points: KeypointArrays, estimates: Estimates, top_k: int
) -> Readings:
    """Return all that a method says of points of an image.

    Args:
        method: Of one pose per point.
        image: (h, w, 3) uint8, BGR.
        points: N places.
        estimates: The method's, of these points.
        top_k: K, candidates asked for. Those of a network are read from its histograms before any
            prior; SIFT's orientations are peaks; other methods give one.
    """
    if isinstance(method, Learned):
        histograms = method.assigner.histograms(image, keypoints_from_arrays(points))
        bins = method.assigner.estimator.metadata.bins
        return _read_histograms(histograms, bins, top_k, np.log2(points.size_px, dtype=np.float64))
    angle_deg = np.asarray(estimates.angle_deg, np.float64)[:, None]
    if isinstance(method, SiftAtPoint) and top_k > 1:
        window_px = SIFT_MAGNIFICATION * estimates.size_px
        if method.window_px is not None:
            window_px = np.full(len(points), method.window_px)
        angle_deg = gradient_peaks_deg(image, points.xy_px.astype(float), window_px, top_k)
    nothing = np.full(len(points), np.nan)
    return Readings(np.log2(estimates.size_px)[:, None], angle_deg, nothing, nothing)


def _patch_histograms(estimator: PoseEstimator, images: Patches) -> PoseHistograms:
    metadata, size = estimator.metadata, images.shape[1]
    center = [[(size - 1) / 2, (size - 1) / 2]]
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
    return estimator.histograms(np.concatenate(sampled))


def _read_histograms(
    histograms: PoseHistograms,
    bins: PoseBins,
    top_k: int,
    own_octaves: NDArray[np.float64] | None = None,
) -> Readings:
    """Read candidates and fullest bins; the scales are factors on N own sizes, or on 1."""
    count = len(histograms.scale)
    own = np.zeros(count) if own_octaves is None else own_octaves
    scales = find_modes(histograms, bins, top_k=top_k, max_angles=1)
    angles = find_modes(histograms, bins, top_k=top_k, max_scales=1)
    return Readings(
        octaves=own[:, None] + np.log2(_by_rank(scales, scales.scale, (count, top_k))),
        angle_deg=_by_rank(angles, angles.angle_deg, (count, top_k)),
        argmax_octaves=own + bins.scale_centers_octaves[histograms.scale.argmax(1)],
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
