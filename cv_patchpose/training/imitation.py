"""A trained model as the teacher of a smaller network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.estimator import PoseEstimator
from cv_patchpose.histograms import PoseBins, PoseHistograms, log_scale_prior
from cv_patchpose.patches import ImagePyramid, sample_patches


class Teacher:
    """Tells the histograms that a model finds, averaged over windows of several sizes.

    What one window leaves open another may decide, at a cost that only the training bears. Of
    a window wider by some octaves the scale histogram comes moved down by as many, and is moved
    back before the average. Only windows of one model are averaged: which direction of a patch
    counts as 0 each model has learned for itself, unless one was trained from the other.

    Args:
        model: name of a bundled model or path of an ONNX file.
        bins: of the network that learns, which must be the model's.
        octaves: log2 of the windows over those of the pupil; each a whole number of scale bins.

    Raises:
        ModelError: no such model.
        ValueError: other bins, a model of colour patches, or windows between bins.

    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015; the average
        is ours.
    """

    def __init__(
        self, model: Path | str, bins: PoseBins, octaves: Sequence[float] = (0.0,)
    ) -> None:
        # One thread: the producers of views, which ask, are threads already.
        self._estimator = PoseEstimator(model, num_threads=1)
        metadata = self._estimator.metadata
        if metadata.bins != bins or metadata.color:
            raise ValueError(
                f"teacher: expected a model of grey patches with {bins}, got {metadata.bins}"
                f"{' of colour patches' if metadata.color else ''}"
            )
        self._shifts = [round(octave * bins.scale_per_octave) for octave in octaves]
        if not np.allclose(self._shifts, np.multiply(octaves, bins.scale_per_octave), atol=0.01):
            raise ValueError(f"teacher_octaves: expected whole scale bins, got {tuple(octaves)}")

    def histograms(
        self,
        pyramid: ImagePyramid,
        xy_px: NDArray[np.float64],
        window_px: NDArray[np.float64],
        scale_sigma: NDArray[np.float64],
    ) -> PoseHistograms:
        """Find the histograms of N places.

        Args:
            pyramid: of the view.
            xy_px: (N, 2) centres.
            window_px: (N,) windows of the pupil.
            scale_sigma: (N,) octaves, how well the scale is known beforehand.
        """
        metadata = self._estimator.metadata
        log_prior = log_scale_prior(scale_sigma, metadata.bins)
        scale = np.zeros((len(xy_px), metadata.bins.scale), np.float32)
        orientation = np.zeros((len(xy_px), metadata.bins.orientation), np.float32)
        for shift in self._shifts:
            patches = sample_patches(
                pyramid,
                xy_px,
                window_px * 2.0 ** (shift / metadata.bins.scale_per_octave),
                np.zeros(len(xy_px)),
                metadata.grid,
                standardize=metadata.standardize,
                num_threads=1,
            )
            found = self._estimator.histograms(patches, move_bins(log_prior, -shift, -np.inf))
            scale += move_bins(found.scale, shift, 0.0)
            orientation += found.orientation
        total = np.maximum(scale.sum(1, keepdims=True), np.finfo(np.float32).tiny)
        return PoseHistograms(
            scale=scale / total, orientation=orientation / np.float32(len(self._shifts))
        )


def move_bins(values: NDArray[np.float32], bins: int, outside: float) -> NDArray[np.float32]:
    """Move (N, S) values up by a whole number of bins; what comes in from beyond is `outside`."""
    moved = np.full_like(values, outside)
    count = values.shape[1] - abs(bins)
    if count > 0:
        moved[:, max(bins, 0) :][:, :count] = values[:, max(-bins, 0) :][:, :count]
    return moved
