"""Where the pose of a keypoint is read, and what its detector says of its scale beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.keypoints import KeypointArrays
from cv_patchpose.metadata import ModelMetadata
from cv_patchpose.options import AssignerOptions

# Smaller sizes of plain points and corners (1, 3) are no descriptor's support.
_SMALLEST_POINT_SIZE_PX = 6.0
# Regions and blobs of one scale per image structure: known, but loosely.
_BLOB_SIGMA_OCTAVES = 0.5
_EQUAL_PX = 1e-3


@dataclass(frozen=True)
class Support:
    """Support of N keypoints.

    Attributes:
        window_px: (N,) diameters of the windows that the model reads.
        size_px: (N,) sizes that scale 1 means.
        prior_sigma: (N,) octaves, how well `size_px` is known; inf: not at all.
    """

    window_px: NDArray[np.float64]
    size_px: NDArray[np.float64]
    prior_sigma: NDArray[np.float64]


def choose_support(
    keypoints: KeypointArrays, metadata: ModelMetadata, options: AssignerOptions
) -> Support:
    """Choose windows and priors from what the keypoints' detector measured.

    - Keypoints with an octave or an angle come from a detector that measures scale (SIFT, ORB,
      AKAZE...): the window is the magnification times their size, the prior the model's.
    - Others of different sizes are regions or blobs (MSER, SimpleBlob, Star...): the same window,
      with a wide prior.
    - Others of one size are points (FAST, GFTT, clicks): one window, no prior.

    An explicit magnification or window holds for all of them.
    """
    size_px = keypoints.size_px.astype(np.float64)
    measured = (keypoints.octave != 0) | (keypoints.angle_deg > 0)  # -1 and 0: no angle measured
    points = _are_points(size_px, measured)
    window_px = size_px * (options.magnification or metadata.magnification)
    if options.window_px is not None:
        window_px = np.full(len(size_px), float(options.window_px))
        size_px = window_px / metadata.magnification
    elif options.magnification is None and points.any():
        window_px[points] = metadata.point_window_px
        size_px[points] = np.maximum(size_px[points], _SMALLEST_POINT_SIZE_PX)
    return Support(window_px, size_px, _prior_sigmas(measured, points, metadata, options))


def _are_points(size_px: NDArray[np.float64], measured: NDArray[np.bool_]) -> NDArray[np.bool_]:
    others = size_px[~measured]
    alike = not len(others) or bool(np.ptp(others) < _EQUAL_PX)
    return ~measured & alike


def _prior_sigmas(
    measured: NDArray[np.bool_],
    points: NDArray[np.bool_],
    metadata: ModelMetadata,
    options: AssignerOptions,
) -> NDArray[np.float64]:
    prior = options.scale_prior_octaves
    if prior is None:
        return np.full(len(measured), np.inf)
    if prior != "auto":
        return np.full(len(measured), float(prior))
    if metadata.scale_prior_octaves is None or options.window_px is not None:
        return np.full(len(measured), np.inf)
    sigma = np.where(measured, metadata.scale_prior_octaves, _BLOB_SIGMA_OCTAVES)
    return np.where(points, np.inf, sigma)
