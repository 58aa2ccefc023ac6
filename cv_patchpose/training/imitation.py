"""A trained model as the teacher of a smaller network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cv_patchpose.estimator import PoseEstimator
from cv_patchpose.histograms import PoseBins, PoseHistograms, log_scale_prior
from cv_patchpose.patches import ImagePyramid, build_pyramid, sample_patches
from cv_patchpose.training.losses import shift_histogram, upsampling_matrix
from cv_patchpose.training.placement import Placement
from cv_patchpose.training.synthesis import View

FINE_SAMPLES_PER_BIN = 16
LEAST = 1e-3  # probability in an agreement: one view alone cannot rule a bin out


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
        agreement: 0: it tells of each view what it finds in the pupil's patch. Otherwise, of
            keypoints that are tracked or found again, it reads all views as they were before they
            were spoilt, and tells what it finds in them together, with this power, see `Agreement`.

    Raises:
        ModelError: no such model.
        ValueError: other bins, a model of colour patches, or windows between bins.

    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015; the average
        is ours.
    """

    def __init__(
        self,
        model: Path | str,
        bins: PoseBins,
        octaves: Sequence[float] = (0.0,),
        agreement: float = 0.0,
    ) -> None:
        self._agreement = Agreement(bins, agreement) if agreement else None
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

    def tell(
        self, views: Sequence[View], pyramids: Sequence[ImagePyramid], placed: Placement
    ) -> PoseHistograms:
        """Tell the histograms that a pupil should find in V views of B keypoints.

        Args:
            views: of the photograph.
            pyramids: of the views as the pupil sees them.
            placed: where it sees the keypoints.

        Returns:
            Scale (B, V, S) and orientation (B, V, R).
        """
        together = np.isfinite(placed.scale_sigma) & (self._agreement is not None)
        told = self._read(pyramids, placed.xy_px, placed.window_px, placed.scale_sigma, ~together)
        if together.any():
            unspoilt = [build_pyramid(v.unspoilt, color=v.unspoilt.ndim == 3) for v in views]
            windows = placed.exact_window_px
            found = self._read(unspoilt, placed.exact_px, windows, placed.scale_sigma, together)
            rotation_deg = placed.rotation_deg()[together]
            octaves = np.log2(windows / placed.window_px)[together]
            told = _join(told, self._agree(found, rotation_deg, octaves), together)
        return told

    @torch.no_grad()
    def _agree(
        self,
        found: PoseHistograms,
        rotation_deg: NDArray[np.float64],
        octaves: NDArray[np.float64],
    ) -> PoseHistograms:
        assert self._agreement is not None  # asked for
        given = (found.scale, found.orientation, rotation_deg, octaves)
        agreed = self._agreement(*(torch.from_numpy(np.asarray(a, np.float32)) for a in given))
        scale, orientation = (values.numpy() for values in agreed)
        return PoseHistograms(scale=scale, orientation=orientation)

    def _read(
        self,
        pyramids: Sequence[ImagePyramid],
        xy_px: NDArray[np.float64],
        window_px: NDArray[np.float64],
        scale_sigma: NDArray[np.float64],
        which: NDArray[np.bool_],
    ) -> PoseHistograms:
        """Read some of the B keypoints in V views."""
        told = [
            self.histograms(pyramid, xy_px[which, v], window_px[which, v], scale_sigma[which])
            for v, pyramid in enumerate(pyramids)
        ]
        return PoseHistograms(
            scale=np.stack([one.scale for one in told], 1),
            orientation=np.stack([one.orientation for one in told], 1),
        )

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


class Agreement(nn.Module):
    """Lets what a teacher told of several views of the same keypoints agree.

    The geometric mean of the histograms of all views, each turned back to where the keypoint was
    before, raised to a power: at 1 it is as undecided as the views are on average, at V what they
    say together if each of them were evidence of its own. A pupil that learns it of each view
    learns to find in one that is slanted, spoilt or off its place what is found in the others.

    Args:
        bins: of the histograms.
        power: see above.

    Source: ours; a product of experts, Hinton, Neural Computation 2002.
    """

    upsampling: Tensor

    def __init__(self, bins: PoseBins, power: float) -> None:
        super().__init__()
        self.bins, self.power = bins, power
        fine = upsampling_matrix(bins.orientation, FINE_SAMPLES_PER_BIN, circular=True)
        self.register_buffer("upsampling", fine)

    def forward(
        self, scale: Tensor, orientation: Tensor, rotation_deg: Tensor, octaves: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Find what the views say together.

        Args:
            scale: (B, V, S) histograms, read in windows that follow the zoom.
            orientation: (B, V, R) histograms.
            rotation_deg: (B, V) turn of the views, clockwise.
            octaves: (B, V) how much further out the pupil's windows show what those read show.

        Returns:
            Scale (B, V, S), less what falls beyond its bins, and orientation (B, V, R).
        """
        turns = rotation_deg * (self.bins.orientation / 360)
        together = self._mean(self._turn((orientation + LEAST).log(), turns))
        back = self._turn(together.expand_as(orientation), -turns).softmax(-1)
        agreed = self._mean((scale + LEAST).log()).exp().expand_as(scale)
        steps = -octaves * self.bins.scale_per_octave
        return shift_histogram(agreed, steps, circular=False), back

    def _mean(self, logs: Tensor) -> Tensor:
        """Average (B, V, ...) logs of histograms to (B, 1, ...) of one that sums to 1."""
        return (self.power * logs.mean(1, keepdim=True)).log_softmax(-1)

    def _turn(self, values: Tensor, bins: Tensor) -> Tensor:
        """Turn (..., R) circles of values back by (...) bins, interpolated by a cubic."""
        fine = values @ self.upsampling.T
        start = (bins * FINE_SAMPLES_PER_BIN).round().long().unsqueeze(-1)
        steps = FINE_SAMPLES_PER_BIN * torch.arange(values.shape[-1], device=values.device)
        return fine.gather(-1, (start + steps) % fine.shape[-1])


def _join(others: PoseHistograms, some: PoseHistograms, which: NDArray[np.bool_]) -> PoseHistograms:
    """Put the histograms of some keypoints among those of the others."""
    scale, orientation = (
        np.empty((len(which), *values.shape[1:]), np.float32)
        for values in (others.scale, others.orientation)
    )
    scale[~which], orientation[~which] = others.scale, others.orientation
    scale[which], orientation[which] = some.scale, some.orientation
    return PoseHistograms(scale=scale, orientation=orientation)


def move_bins(values: NDArray[np.float32], bins: int, outside: float) -> NDArray[np.float32]:
    """Move (N, S) values up by a whole number of bins; what comes in from beyond is `outside`."""
    moved = np.full_like(values, outside)
    count = values.shape[1] - abs(bins)
    if count > 0:
        moved[:, max(bins, 0) :][:, :count] = values[:, max(-bins, 0) :][:, :count]
    return moved
