"""SIFT's rules for orientation and scale, on the sampler's patches: controls for learned ones."""

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
_SCALE_GRID = SquareGrid(size=64)
_SCALES_PER_OCTAVE = 6
# Blobs from two samples wide to what fits into the patch: 3 sigma on each side.
_SIGMAS = 2.0 ** (np.arange(0, 20) / _SCALES_PER_OCTAVE)
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
    return gradient_peaks_deg(image, xy_px, window_px, 1)[:, 0]


def gradient_peaks_deg(
    image: NDArray[np.uint8],
    xy_px: NDArray[np.float64],
    window_px: NDArray[np.float64],
    count: int,
) -> NDArray[np.float64]:
    """Find the highest peaks of each window's histogram of gradient directions.

    Args:
        image: (h, w, 3) uint8, BGR.
        xy_px: (N, 2) centres, pixels.
        window_px: (N,) diameters of the support.
        count: K, peaks of each.

    Returns:
        (N, K) directions as of :func:`dominant_gradient_deg`, the highest peak first; NaN where
        there are fewer.
    """
    upright = np.zeros(len(xy_px))
    patches = sample_square(build_pyramid(image), xy_px, window_px, upright, _GRID)[:, 0]
    histograms = np.array([_orientation_histogram(patch) for patch in patches])
    return _peaks_deg(histograms.reshape(-1, _BINS), count)


def characteristic_size_px(
    image: NDArray[np.uint8], xy_px: NDArray[np.float64], window_px: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Find the size at which each window's centre is most of a blob.

    Args:
        image: (h, w, 3) uint8, BGR.
        xy_px: (N, 2) centres, pixels.
        window_px: (N,) sides of the support; sizes lie between 1/32 and 1/3.5 of them.

    Returns:
        (N,) 2 sigma of the scale-normalised Laplacian whose answer is strongest, pixels.

    Source:
        Lindeberg, "Feature detection with automatic scale selection", IJCV 1998,
        https://doi.org/10.1023/A:1008045108935; SIFT's differences of Gaussians approximate it.
    """
    upright = np.zeros(len(xy_px))
    patches = sample_square(build_pyramid(image), xy_px, window_px, upright, _SCALE_GRID)
    kernels = np.stack([_laplacian(sigma).ravel() for sigma in _SIGMAS])
    answer = np.abs(patches.reshape(len(xy_px), kernels.shape[1]) @ kernels.T)
    best = answer[:, 1:-1].argmax(1) + 1
    row = np.arange(len(answer))
    shift = _top_of_parabola(*(answer[row, best + step] for step in (-1, 0, 1)))
    octaves = (best + np.clip(shift, -0.5, 0.5)) / _SCALES_PER_OCTAVE
    return np.asarray(2 * 2.0**octaves * window_px / _SCALE_GRID.size, np.float64)


def _laplacian(sigma: float) -> NDArray[np.float64]:
    """(P, P) scale-normalised Laplacian of a Gaussian about the patch's centre; sums to 0."""
    offset = np.arange(_SCALE_GRID.size) - (_SCALE_GRID.size - 1) / 2
    squared = (offset[:, None] ** 2 + offset**2) / sigma**2
    kernel = (squared - 2) * np.exp(-squared / 2) / sigma**2
    weight = np.exp(-squared / 2)
    return np.asarray(kernel - weight * (kernel.sum() / weight.sum()), np.float64)


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


def _peaks_deg(histograms: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """(N, K) angles of the highest peaks, refined by the parabola through each and its neighbours.

    The highest bin is the first of them, also of a histogram that is flat.
    """
    left, right = np.roll(histograms, 1, 1), np.roll(histograms, -1, 1)
    height = np.where((histograms > left) & (histograms >= right), histograms, -np.inf)
    height[np.arange(len(histograms)), histograms.argmax(1)] = np.inf
    bins = np.argsort(-height, axis=1, kind="stable")[:, :count]
    values = (np.take_along_axis(table, bins, 1) for table in (left, histograms, right))
    angle_deg = (bins + _top_of_parabola(*values)) * (360 / _BINS) % 360
    angle_deg[np.isinf(np.take_along_axis(-height, bins, 1)) & (bins != bins[:, :1])] = np.nan
    return np.pad(angle_deg, ((0, 0), (0, max(0, count - _BINS))), constant_values=np.nan)


def _top_of_parabola(
    left: NDArray[np.float64], centre: NDArray[np.float64], right: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Steps from the middle one of three samples to the top of the parabola through them."""
    curvature = left - 2 * centre + right
    bent = curvature < 0
    return np.where(bent, 0.5 * (left - right) / np.where(bent, curvature, 1), 0)
