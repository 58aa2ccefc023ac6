"""SIFT's rule for orientation, on the sampler's patches: the control for learned ones."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.patches import SquareGrid, build_pyramid, sample_square

# SIFT weighs gradients by a Gaussian of 1.5 sigma, cut at three of its deviations; in diameters
# (2 sigma) the window is 4.5 wide. It looks at the image blurred to sigma: 1 / 9 of the window.
SIFT_MAGNIFICATION = 4.5
_BINS = 36
_GRID = SquareGrid(size=32)
_SMOOTHING = np.array([1, 4, 6, 4, 1]) / 16


def dominant_gradient_deg(
    image: NDArray[np.uint8], xy_px: NDArray[np.float64], window_px: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Find the strongest peak of each window's histogram of gradient directions.

    Args:
        image: (h, w, 3) uint8, BGR.
        xy_px: (N, 2) centres, pixels.
        window_px: (N,) diameters of the support.

    Returns:
        (N,) direction towards brighter values, degrees clockwise on screen in [0, 360).

    Source:
        Lowe, "Distinctive image features from scale-invariant keypoints", IJCV 2004, section 5,
        https://doi.org/10.1023/B:VISI.0000029664.99615.94.
    """
    upright = np.zeros(len(xy_px))
    patches = sample_square(build_pyramid(image), xy_px, window_px, upright, _GRID)[:, 0]
    histograms = np.array([_orientation_histogram(patch) for patch in patches])
    return _peaks_deg(histograms.reshape(-1, _BINS))


def _orientation_histogram(patch: NDArray[np.float32]) -> NDArray[np.float64]:
    """(36,) smoothed histogram of a (P, P) patch, bin i centred at 10 i degrees."""
    size = len(patch)
    patch = np.asarray(cv2.GaussianBlur(patch, (0, 0), size / 9), np.float32)
    gradient_y, gradient_x = np.gradient(patch)
    offset = np.arange(size) - (size - 1) / 2
    squared_radius = offset[:, None] ** 2 + offset**2
    weight = np.exp(-squared_radius / (2 * (size / 6) ** 2)) * (squared_radius <= (size / 2) ** 2)
    magnitude = weight * np.hypot(gradient_x, gradient_y)
    position = np.arctan2(gradient_y, gradient_x) * (_BINS / (2 * np.pi))
    lower = np.floor(position)
    share = position - lower
    index = lower.astype(int) % _BINS
    histogram = np.bincount(index.ravel(), (magnitude * (1 - share)).ravel(), _BINS)
    histogram += np.bincount((index + 1).ravel() % _BINS, (magnitude * share).ravel(), _BINS)
    wrapped = np.concatenate([histogram[-2:], histogram, histogram[:2]])
    return np.convolve(wrapped, _SMOOTHING, "valid")


def _peaks_deg(histograms: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) angle of the highest bin, refined by the parabola through it and its neighbours."""
    row = np.arange(len(histograms))
    peak = histograms.argmax(1)
    centre = histograms[row, peak]
    left, right = histograms[row, peak - 1], histograms[row, (peak + 1) % _BINS]
    curvature = left - 2 * centre + right
    shift = np.where(curvature < 0, 0.5 * (left - right) / np.where(curvature < 0, curvature, 1), 0)
    return np.asarray((peak + shift) * (360 / _BINS) % 360)
