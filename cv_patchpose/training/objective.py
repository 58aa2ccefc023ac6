"""What training minimises and what validation measures, both over pairs of views."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cv_patchpose.gradients import rotation_of_gradients
from cv_patchpose.histograms import PoseBins, PoseHistograms, find_modes, log_scale_prior
from cv_patchpose.homography import nearest_similarity
from cv_patchpose.training.dataset import Batch
from cv_patchpose.training.losses import AlignmentLoss, FineOverlapLoss
from cv_patchpose.training.options import TrainConfig

FINE_SAMPLES_PER_BIN = 4


class Logits(NamedTuple):
    """What a network says of patches, before the softmax; None where it says nothing."""

    scale: Tensor | None
    orientation: Tensor | None


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
    if batch.gradients is not None:
        rotation_deg = rotation_of_gradients(
            batch.jacobian[:, first], batch.jacobian[:, second], batch.gradients[:, None]
        )
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

    def forward(self, logits: Logits, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute both losses; that of a histogram the network does not give is 0.

        Args:
            logits: scale (B, V, S) and orientation (B, V, R).
            batch: the patches' true geometry.

        Returns:
            Scale and orientation loss, nats.
        """
        pairs, rotation_deg, octaves = pair_changes(batch)
        device = next(values.device for values in logits if values is not None)
        return self.compare(
            logits,
            torch.from_numpy(pairs).to(device),
            torch.from_numpy(rotation_deg).float().to(device),
            torch.from_numpy(octaves).float().to(device),
        )

    def compare(
        self, logits: Logits, pairs: Tensor, rotation_deg: Tensor, octaves: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute both losses from what `pair_changes` gives, as tensors on the device."""
        first, second = pairs.T

        def mean(loss: nn.Module, values: Tensor | None, change: Tensor) -> Tensor:
            if values is None:
                return torch.zeros((), device=pairs.device)
            # Not by brackets, whose gradient sorts the indices.
            one, other = (values.index_select(1, view).flatten(0, 1) for view in (first, second))
            return torch.as_tensor(loss(one, other, change.flatten()).mean())

        return (
            mean(self.scale, logits.scale, octaves * self.bins_per_octave),
            mean(self.orientation, logits.orientation, rotation_deg * self.bins_per_degree),
        )


def imitation_loss(logits: Logits, taught: Logits) -> Tensor:
    """Compute the mean divergence of histograms from those that a teacher told, nats.

    Args:
        logits: scale (..., S) and orientation (..., R).
        taught: histograms of the same shapes; None where nothing was told.
    """
    losses = [
        nn.functional.kl_div(values.log_softmax(-1), told.to(values.device), reduction="none")
        for told, values in zip(taught, logits, strict=True)
        if told is not None and values is not None
    ]
    return torch.stack([loss.sum(-1).mean() for loss in losses]).sum()


def taught_by(batch: Batch, targets: Collection[str]) -> Logits:
    """Read what a teacher told of a batch about some targets."""
    told = {"scale": batch.taught_scale, "orientation": batch.taught_orientation}
    return Logits(
        **{
            name: None if values is None or name not in targets else torch.from_numpy(values)
            for name, values in told.items()
        }
    )


def has_bfloat16(device: torch.device) -> bool:
    """Say whether a device computes in bfloat16; False where PyTorch cannot tell."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def apply_network(
    network: nn.Module,
    patches: NDArray[np.float32],
    log_prior: NDArray[np.float32],
    *,
    bfloat16: bool = False,
) -> Logits:
    """Run a network on patches, on the device it is on.

    Args:
        network: patches and prior to scale and orientation logits.
        patches: (N, C, H, W).
        log_prior: (N, S).
        bfloat16: compute in bfloat16, at half the time where the device has it.

    Returns:
        scale (N, S) and orientation (N, R) logits, float32.
    """
    device = next(network.parameters()).device
    inputs = torch.from_numpy(patches).to(device).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
        found = network(inputs, torch.from_numpy(log_prior).to(device))
    return Logits(*(None if values is None else values.float() for values in found))


def run_network(
    network: nn.Module, batch: Batch, bins: PoseBins, *, bfloat16: bool = False
) -> Logits:
    """Run a network on patches of several views.

    Args:
        network: as for `apply_network`.
        batch: B keypoints in V views.
        bins: of the histograms.
        bfloat16: as for `apply_network`.

    Returns:
        (B, V, S) scale and (B, V, R) orientation logits.
    """
    shape = batch.patches.shape[:2]
    prior = log_scale_prior(batch.scale_sigma.ravel(), bins)
    patches = batch.patches.reshape(-1, *batch.patches.shape[2:])
    found = apply_network(network, patches, prior, bfloat16=bfloat16)
    return Logits(*(None if values is None else values.unflatten(0, shape) for values in found))


def histograms_of(logits: Logits, bins: PoseBins) -> PoseHistograms:
    """Turn (N, S) and (N, R) logits into histograms; flat ones where there are none."""
    count = next(len(values) for values in logits if values is not None)

    def read(values: Tensor | None, size: int) -> NDArray[np.float32]:
        if values is None:
            return np.full((count, size), 1 / size, np.float32)
        return np.asarray(values.softmax(-1).cpu().numpy(), np.float32)

    return PoseHistograms(
        scale=read(logits.scale, bins.scale),
        orientation=read(logits.orientation, bins.orientation),
    )


def pose_accuracy(logits: Logits, batch: Batch, bins: PoseBins) -> dict[str, float]:
    """Measure how often two views of a keypoint get poses that agree with the truth.

    Args:
        logits: scale (B, V, S) and orientation (B, V, R).
        batch: the patches' true geometry.
        bins: of the histograms.

    Returns:
        Percentages by metric name, of the histograms that the network gives.

    Source: thresholds of Lee, Jeong, Cho, BMVC 2021, eq. 9.
    """
    views = batch.patches.shape[1]
    flat = Logits(*(None if values is None else values.flatten(0, 1) for values in logits))
    poses = find_modes(histograms_of(flat, bins), bins)
    angle_deg = poses.angle_deg.reshape(-1, views)
    octaves = np.log2(poses.scale).reshape(-1, views)
    pairs, rotation_deg, change = pair_changes(batch)
    first, second = pairs.T
    turn_error = angle_deg[:, second] - angle_deg[:, first] - rotation_deg
    turn_error = np.abs((turn_error + 180) % 360 - 180)
    octave_error = np.abs(octaves[:, second] - octaves[:, first] - change)
    within = {}
    if logits.orientation is not None:
        within["orientation_within_5_deg"] = turn_error <= 5
        within["orientation_within_10_deg"] = turn_error <= 10
    if logits.scale is not None:
        within["scale_within_1_6_octave"] = octave_error <= 1 / 6
        within["scale_within_1_3_octave"] = octave_error <= 1 / 3
    return {name: 100 * float(right.mean()) for name, right in within.items()}
