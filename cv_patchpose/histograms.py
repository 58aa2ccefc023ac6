"""Orientation and scale histograms of patches, and the poses read from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALLEST_PROBABILITY = 1e-12
_LEAST_READ = 1e-6  # what is less probable says no more against its neighbours than this
_FLATNESS = 1e-4  # a histogram whose spread is below this share of its mean says nothing
_POSTERIOR_STEPS_PER_BIN = 8
# A larger product BLAS would share among threads, which go on spinning beside those of the sampler
# and of ONNX Runtime: half as long again for the whole of assign.
_BLAS_ROWS = 128
_NARROWEST_SIGMA = 1e-6
NO_ANGLE_DEG = -1.0


@dataclass(frozen=True)
class PoseBins:
    """Bins of the two histograms of a patch.

    Attributes:
        orientation: Number R of orientation bins; bin i is centred at i * 360 / R degrees.
        scale: Number S of scale bins, centred at (i - (S - 1) / 2) / scale_per_octave octaves.
        scale_per_octave: Scale bins per octave.

    Raises:
        ValueError: A count is not a positive integer, or the bins per octave are none.
    """

    orientation: int = 36
    scale: int = 13
    scale_per_octave: float = 3

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("orientation", "scale"):
            value: Any = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        step: Any = self.scale_per_octave
        if isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 < step < math.inf:
            raise ValueError(f"scale_per_octave: expected a finite number > 0, got {step!r}")

    @property
    def orientation_centers_deg(self) -> NDArray[np.float64]:
        """(R,) centres of the orientation bins, degrees clockwise on screen."""
        return np.arange(self.orientation, dtype=np.float64) * (360.0 / self.orientation)

    @property
    def scale_centers_octaves(self) -> NDArray[np.float64]:
        """(S,) centres of the scale bins, octaves."""
        index = np.arange(self.scale, dtype=np.float64)
        return (index - (self.scale - 1) / 2) / self.scale_per_octave


@dataclass(frozen=True)
class PoseHistograms:
    """Histograms of N patches; rows sum to 1.

    Attributes:
        scale: (N, S) float32.
        orientation: (N, R) float32.
    """

    scale: NDArray[np.float32]
    orientation: NDArray[np.float32]


@dataclass(frozen=True)
class PatchPoses:
    """Poses of keypoints, in the order of the keypoints, the best of each keypoint first.

    Attributes:
        keypoint_index: (M,) int64, non-decreasing index of the keypoint a pose belongs to.
        scale: (M,) float64, factor on the size of the input keypoint.
        angle_deg: (M,) float64 in [0, 360), clockwise on screen; -1 where there is none.
        score: (M,) float64 in [0, 1], probability of the mode.
    """

    keypoint_index: NDArray[np.int64]
    scale: NDArray[np.float64]
    angle_deg: NDArray[np.float64]
    score: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number M of poses."""
        return len(self.keypoint_index)


def find_modes(
    histograms: PoseHistograms,
    bins: PoseBins,
    *,
    top_k: int = 1,
    max_angles: int | None = None,
    max_scales: int | None = None,
    min_ratio: float = 0.0,
    scale_prior_sigma: NDArray[np.floating[Any]] | float = np.inf,
    scale_offset_octaves: float = 0.0,
    smoothing_deg: float = 0.0,
) -> PatchPoses:
    """Read the most probable poses from histograms.

    A mode is a local maximum (circular for orientation); its place is the top of the parabola
    through the logarithms of the peak and its two neighbours, at most half a bin away. Scale
    peaks in the first or last bin stay at the bin's centre. The probability of a mode is the
    mass of its bin and the two neighbours. A pose is a pair of an orientation mode and a scale
    mode, its score the product of their probabilities.

    With a finite prior the scale is the posterior mean of prior times histogram instead: one
    scale per keypoint, whose probability is the posterior mass within 1.5 bins of it.

    A flat histogram says nothing: the scale is then 1, the angle -1, its probability 1 / bins.

    Args:
        histograms: Of N patches.
        bins: Of the histograms.
        top_k: Most poses per keypoint.
        max_angles: Most orientation modes that its poses are made of; None: top_k.
        max_scales: Most scale modes that its poses are made of; None: top_k.
        min_ratio: Poses whose score is below this share of their keypoint's best are left out.
        scale_prior_sigma: (N,) or one number, octaves; standard deviation of a Gaussian prior
            on log2(scale), centred at 0. inf: no prior.
        scale_offset_octaves: Added to every measured log2(scale).
        smoothing_deg: Standard deviation, degrees, of a Gaussian that the logarithms of the
            orientation histogram are smoothed with before; 0: not at all.

    Returns:
        At least one and at most top_k poses per keypoint.

    Raises:
        ValueError: Histograms that do not fit the bins, a non-positive top_k, a negative sigma or
            smoothing.
    """
    _check_shapes(histograms, bins)
    if not smoothing_deg >= 0:
        raise ValueError(f"smoothing_deg: expected degrees of at least 0, got {smoothing_deg!r}")
    if top_k < 1:
        raise ValueError(f"top_k: expected an integer of at least 1, got {top_k!r}")
    sigma = _prior_sigmas(scale_prior_sigma, len(histograms.scale))
    orientation = histograms.orientation
    if smoothing_deg:
        orientation = _smooth(orientation, smoothing_deg * bins.orientation / 360.0)
    angle_deg, angle_mass = _orientation_modes(orientation, bins, max_angles or top_k)
    octaves, scale_mass = np.zeros((2, len(sigma), min(max_scales or top_k, bins.scale)))
    held = np.isfinite(sigma)
    if held.any():
        octaves[held, 0], scale_mass[held, 0] = _posterior_scales(
            histograms.scale[held], bins, sigma[held], scale_offset_octaves
        )
    if not held.all():
        octaves[~held], scale_mass[~held] = _scale_modes(
            histograms.scale[~held], bins, octaves.shape[1], scale_offset_octaves
        )
    flat = is_flat(histograms.scale)
    octaves[flat, 0], scale_mass[flat] = 0.0, 0.0
    scale_mass[flat, 0] = 1.0 / bins.scale
    return _best_pairs(angle_deg, angle_mass, octaves, scale_mass, top_k, min_ratio)


def log_scale_prior(
    sigma_octaves: NDArray[np.floating[Any]], bins: PoseBins, offset_octaves: float = 0.0
) -> NDArray[np.float32]:
    """Write Gaussian priors around scale 1 as logarithms at the scale bins.

    Args:
        sigma_octaves: (N,) standard deviations; inf: nothing is known. Those below a third of a
            bin count as that, so that bins beside the nearest keep some weight.
        bins: Of the histograms.
        offset_octaves: Calibration: scale 1 is where a bin's centre plus this is 0.

    Returns:
        (N, S) float32, 0 at scale 1.
    """
    sigma = np.maximum(sigma_octaves, 1 / (3 * bins.scale_per_octave))[:, None]
    octaves = bins.scale_centers_octaves + offset_octaves
    return np.asarray(-0.5 * (octaves / sigma) ** 2, np.float32)


def _check_shapes(histograms: PoseHistograms, bins: PoseBins) -> None:
    for name, expected in (("scale", bins.scale), ("orientation", bins.orientation)):
        shape = getattr(histograms, name).shape
        if len(shape) != 2 or shape[1] != expected or shape[0] != len(histograms.scale):
            raise ValueError(
                f"histograms.{name}: expected ({len(histograms.scale)}, {expected}), got {shape}"
            )


def _prior_sigmas(sigma: NDArray[np.floating[Any]] | float, count: int) -> NDArray[np.float64]:
    values = np.asarray(sigma, np.float64)
    if values.shape not in ((), (count,)) or not np.all(values >= 0):
        raise ValueError(
            f"scale_prior_sigma: expected ({count},) non-negative octaves, got {sigma!r}"
        )
    return np.broadcast_to(values, (count,))


def is_flat(probability: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which of (N, B) histograms say nothing: (N,) bool, all bins are alike."""
    least = _FLATNESS / probability.shape[1]
    flat = np.asarray(np.abs(probability[:, 0] - probability[:, -1]) <= least)
    flat[flat] = np.ptp(probability[flat], axis=1) <= least  # of few: whole rows take time
    return flat


def _smooth(probability: NDArray[np.float32], sigma_bins: float) -> NDArray[np.float32]:
    """Average the logarithms of (N, B) circular histograms over neighbouring bins."""
    logs = np.log(np.maximum(probability, _LEAST_READ))
    weights = _circular_gaussian(probability.shape[1], sigma_bins)
    smooth = np.empty_like(logs)
    for first in range(0, len(logs), _BLAS_ROWS):
        rows = slice(first, first + _BLAS_ROWS)
        np.matmul(logs[rows], weights, out=smooth[rows])
    np.exp(smooth, out=smooth)
    smooth /= smooth.sum(1, keepdims=True)
    return smooth


@lru_cache(maxsize=16)
def _circular_gaussian(bins: int, sigma_bins: float) -> NDArray[np.float32]:
    """(B, B) weights; rows sum to 1."""
    index = np.arange(bins)
    apart = np.abs(index[:, None] - index)
    weights = np.exp(-0.5 * (np.minimum(apart, bins - apart) / sigma_bins) ** 2)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def _orientation_modes(
    probability: NDArray[np.float32], bins: PoseBins, top_k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, K) angles in degrees and masses, best first; mass 0 where there is no mode."""
    wrapped = np.concatenate([probability[:, -1:], probability, probability[:, :1]], 1)
    peak, mass = _top_peaks(wrapped, top_k)
    offset = _sub_bin_offset(wrapped, peak)
    angle_deg = np.mod((peak + offset) * (360.0 / bins.orientation), 360.0)
    angle_deg[angle_deg >= 360.0] = 0.0  # the remainder of a tiny negative number
    flat = is_flat(probability)
    angle_deg[flat, 0], mass[flat] = NO_ANGLE_DEG, 0.0
    mass[flat, 0] = 1.0 / bins.orientation
    return angle_deg, mass


def _scale_modes(
    probability: NDArray[np.float32], bins: PoseBins, top_k: int, offset_octaves: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, K) octaves and masses, best first; mass 0 where there is no mode."""
    padded = np.pad(probability, ((0, 0), (1, 1)))
    peak, mass = _top_peaks(padded, top_k)
    inside = (peak > 0) & (peak < bins.scale - 1)
    offset = np.where(inside, _sub_bin_offset(padded, peak), 0.0)
    octaves = (peak + offset - (bins.scale - 1) / 2) / bins.scale_per_octave
    return np.asarray(octaves + offset_octaves, np.float64), mass


def _top_peaks(
    padded: NDArray[np.float32], top_k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(N, K) bins and masses of the local maxima of (N, B + 2) padded histograms."""
    left, centre, right = padded[:, :-2], padded[:, 1:-1], padded[:, 2:]
    mass = np.minimum(left + centre + right, 1.0).astype(np.float64)
    mass[(centre <= left) | (centre < right)] = 0.0
    peak = _largest(mass, min(top_k, mass.shape[1]))
    return peak, np.take_along_axis(mass, peak, 1)


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """(N, count) places of the largest of (N, B) values, in order, the first of equal ones first.

    A few are wanted: finding them one by one is much faster than sorting.
    """
    left, rows = values, np.arange(len(values))
    found = np.empty((len(values), count), np.int64)
    for rank in range(count):
        found[:, rank] = left.argmax(1)
        if rank == 0 and count > 1:
            left = values.copy()
        if rank < count - 1:
            left[rows, found[:, rank]] = -np.inf
    return found


def _sub_bin_offset(padded: NDArray[np.float32], peak: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, K) in [-0.5, 0.5]: top of the parabola through three log-probabilities."""
    left, centre, right = (
        np.log(np.maximum(np.take_along_axis(padded, peak + i, 1), _SMALLEST_PROBABILITY)).astype(
            np.float64
        )
        for i in range(3)
    )
    curvature = np.minimum(left - 2 * centre + right, -_SMALLEST_PROBABILITY)
    return np.clip(0.5 * (left - right) / curvature, -0.5, 0.5)


def _posterior_scales(
    probability: NDArray[np.float32],
    bins: PoseBins,
    sigma: NDArray[np.float64],
    offset_octaves: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) posterior means in octaves and the posterior masses within 1.5 bins of them.

    The log-probabilities are interpolated linearly, because the prior may be narrower than a bin.
    """
    grid, weights = _posterior_grid(bins, offset_octaves)
    log_probability = np.log(np.maximum(probability, _SMALLEST_PROBABILITY))
    log_posterior = np.empty((len(probability), len(grid)), np.float32)
    for first in range(0, len(probability), _BLAS_ROWS):
        rows = slice(first, first + _BLAS_ROWS)
        np.matmul(log_probability[rows], weights, out=log_posterior[rows])
    narrowness = (1 / np.maximum(sigma, _NARROWEST_SIGMA)).astype(np.float32)[:, None]
    if (narrowness == narrowness[0]).all():  # as is usual: one row of them will do
        narrowness = narrowness[:1]
    log_posterior -= np.float32(0.5) * (grid * narrowness) ** 2
    log_posterior -= log_posterior.max(1, keepdims=True)
    posterior = np.exp(log_posterior, out=log_posterior)
    total = posterior.sum(1)
    mean = np.einsum("ng,g->n", posterior, grid) / total
    near = np.abs(grid - mean[:, None]) <= 1.5 / bins.scale_per_octave
    mass = np.einsum("ng,ng->n", posterior, near.astype(np.float32)) / total
    return mean.astype(np.float64), np.minimum(mass, 1.0).astype(np.float64)


@lru_cache(maxsize=64)
def _posterior_grid(
    bins: PoseBins, offset_octaves: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(G,) octaves, and (S, G) weights that interpolate the bins at them.

    They are multiples of a step over the bins and 0, so that factor 1 is one of them.
    """
    centers = bins.scale_centers_octaves + offset_octaves
    step = 1.0 / (bins.scale_per_octave * _POSTERIOR_STEPS_PER_BIN)
    first = np.floor(min(centers[0], 0.0) / step)
    last = np.ceil(max(centers[-1], 0.0) / step)
    grid = np.arange(first, last + 1) * step
    weights = np.stack([np.interp(grid, centers, row) for row in np.eye(bins.scale)])
    return grid.astype(np.float32), weights.astype(np.float32)


def _best_pairs(
    angle_deg: NDArray[np.float64],
    angle_mass: NDArray[np.float64],
    octaves: NDArray[np.float64],
    scale_mass: NDArray[np.float64],
    top_k: int,
    min_ratio: float,
) -> PatchPoses:
    """Pair (N, K) orientation modes with (N, L) scale modes and keep the best pairs."""
    pair_count = angle_mass.shape[1] * scale_mass.shape[1]
    score = (angle_mass[:, :, None] * scale_mass[:, None, :]).reshape(-1, pair_count)
    order = _largest(score, min(top_k, pair_count))
    score = np.take_along_axis(score, order, 1)
    kept = (score > 0.0) & (score >= min_ratio * score[:, :1])
    keypoint, rank = np.nonzero(kept)
    pair = order[keypoint, rank]
    scale_count = octaves.shape[1]
    return PatchPoses(
        keypoint_index=keypoint.astype(np.int64),
        scale=np.exp2(octaves[keypoint, pair % scale_count]),
        angle_deg=angle_deg[keypoint, pair // scale_count],
        score=score[keypoint, rank],
    )
