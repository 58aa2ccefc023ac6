"""What training minimises and what validation measures, both over pairs of views."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cv_patchpose.histograms import PoseBins, PoseHistograms, find_modes, log_scale_prior
from cv_patchpose.homography import nearest_similarity
from cv_patchpose.training.dataset import Batch
from cv_patchpose.training.losses import AlignmentLoss, FineOverlapLoss
from cv_patchpose.training.options import TrainConfig

FINE_SAMPLES_PER_BIN = 4


def pair_changes(batch: Batch) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Compute the true change between every two views of each keypoint.

    Args:
        batch: B keypoints in V views.

    Returns:
        (P, 2) view indices with first < second, (B, P) rotation in degrees clockwise, and
        (B, P) change of log2 scale relative to the windows: the second view's content lies that
        many octaves further out in its window.
    """
    pairs = np.array(list(itertools.combinations(range(batch.jacobian.shape[1]), 2)))
    first, second = pairs.T
    relative = batch.jacobian[:, second] @ np.linalg.inv(batch.jacobian[:, first])
    zoom, rotation_deg = nearest_similarity(relative)
    widening = batch.log2_window[:, second] - batch.log2_window[:, first]
    return pairs, rotation_deg, np.log2(zoom) - widening


class PoseLoss(nn.Module):
    """Mean losses of scale and orientation over all pairs of views.

    Args:
        bins: of the histograms.
        config: names the loss, its tolerances and its floor.
    """

    def __init__(self, bins: PoseBins, config: TrainConfig) -> None:
        super().__init__()
        self.bins_per_degree = bins.orientation / 360
        self.bins_per_octave = bins.scale_per_octave
        if config.loss == "alignment":
            self.orientation: nn.Module = AlignmentLoss(circular=True)
            self.scale: nn.Module = AlignmentLoss(circular=False)
            return
        self.orientation = FineOverlapLoss(
            bins.orientation,
            factor=FINE_SAMPLES_PER_BIN,
            sigma_bins=config.sigma_deg * self.bins_per_degree,
            circular=True,
            floor=config.floor,
        )
        self.scale = FineOverlapLoss(
            bins.scale,
            factor=FINE_SAMPLES_PER_BIN,
            sigma_bins=config.sigma_octaves * self.bins_per_octave,
            circular=False,
            floor=config.floor,
        )

    def forward(self, scale: Tensor, orientation: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute both losses.

        Args:
            scale: (B, V, S) logits.
            orientation: (B, V, R) logits.
            batch: the patches' true geometry.

        Returns:
            Scale and orientation loss, nats.
        """
        pairs, rotation_deg, octaves = pair_changes(batch)
        first, second = torch.from_numpy(pairs).T
        losses = (
            loss(
                logits[:, first].flatten(0, 1),
                logits[:, second].flatten(0, 1),
                torch.from_numpy(change).float().flatten(),
            ).mean()
            for loss, logits, change in (
                (self.scale, scale, octaves * self.bins_per_octave),
                (self.orientation, orientation, rotation_deg * self.bins_per_degree),
            )
        )
        return next(losses), next(losses)


def has_bfloat16() -> bool:
    """Say whether the processor computes in bfloat16; False where PyTorch cannot tell."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def run_network(
    network: nn.Module, batch: Batch, bins: PoseBins, *, bfloat16: bool = False
) -> tuple[Tensor, Tensor]:
    """Run a network on patches of several views.

    Args:
        network: (N, C, H, W) patches and (N, S) prior to scale and orientation logits.
        batch: B keypoints in V views.
        bins: of the histograms.
        bfloat16: compute in bfloat16, at half the time where the processor has it.

    Returns:
        (B, V, S) scale and (B, V, R) orientation logits, float32.
    """
    patches = torch.from_numpy(batch.patches).flatten(0, 1)
    prior = torch.from_numpy(log_scale_prior(batch.scale_sigma.ravel(), bins))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        scale, orientation = network(patches.contiguous(memory_format=torch.channels_last), prior)
    shape = batch.patches.shape[:2]
    return scale.float().unflatten(0, shape), orientation.float().unflatten(0, shape)


def histograms_of(scale: Tensor, orientation: Tensor) -> PoseHistograms:
    """Turn (N, S) and (N, R) logits into histograms."""
    return PoseHistograms(
        scale=scale.softmax(-1).numpy(), orientation=orientation.softmax(-1).numpy()
    )


def pose_accuracy(
    scale: Tensor, orientation: Tensor, batch: Batch, bins: PoseBins
) -> dict[str, float]:
    """Measure how often two views of a keypoint get poses that agree with the truth.

    Args:
        scale: (B, V, S) logits.
        orientation: (B, V, R) logits.
        batch: the patches' true geometry.
        bins: of the histograms.

    Returns:
        Percentages by metric name.

    Source: thresholds of Lee, Jeong, Cho, BMVC 2021, eq. 9.
    """
    views = scale.shape[1]
    poses = find_modes(histograms_of(scale.flatten(0, 1), orientation.flatten(0, 1)), bins)
    angle_deg = poses.angle_deg.reshape(-1, views)
    octaves = np.log2(poses.scale).reshape(-1, views)
    pairs, rotation_deg, change = pair_changes(batch)
    first, second = pairs.T
    turn_error = angle_deg[:, second] - angle_deg[:, first] - rotation_deg
    turn_error = np.abs((turn_error + 180) % 360 - 180)
    octave_error = np.abs(octaves[:, second] - octaves[:, first] - change)
    return {
        "orientation_within_5_deg": 100 * float((turn_error <= 5).mean()),
        "orientation_within_10_deg": 100 * float((turn_error <= 10).mean()),
        "scale_within_1_6_octave": 100 * float((octave_error <= 1 / 6).mean()),
        "scale_within_1_3_octave": 100 * float((octave_error <= 1 / 3).mean()),
    }
