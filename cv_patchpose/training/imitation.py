"""A trained network as the teacher of a smaller one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from cv_patchpose.training.checkpoint import load_checkpoint, network_of, shape_of
from cv_patchpose.training.dataset import Batch
from cv_patchpose.training.networks import NetworkConfig
from cv_patchpose.training.objective import Logits, run_network


class Teacher:
    """Gives histograms to imitate.

    Args:
        checkpoint: of a trained network.
        pupil: shape of the network that learns, whose bins must be the same.
        device: to run on.
        bfloat16: compute in bfloat16.

    Raises:
        ValueError: no checkpoint, or other bins.

    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015.
    """

    def __init__(
        self, checkpoint: Path | str, pupil: NetworkConfig, device: torch.device, *, bfloat16: bool
    ) -> None:
        state = load_checkpoint(checkpoint)
        self.shape = shape_of(state)
        if self.shape.bins != pupil.bins:
            raise ValueError(f"teacher: expected {pupil.bins}, got {self.shape.bins}")
        self._network = network_of(state).eval().to(device)
        self._bfloat16 = bfloat16

    def loss(self, logits: Logits, batch: Batch) -> Tensor:
        """Compute the mean divergence of the pupil's histograms from the teacher's, nats.

        Args:
            logits: the pupil's.
            batch: with patches for the teacher.
        """
        assert batch.teacher_patches is not None  # sampled wherever there is a teacher
        own = dataclasses.replace(batch, patches=batch.teacher_patches)
        with torch.no_grad():
            taught = run_network(self._network, own, self.shape.bins, bfloat16=self._bfloat16)
        return sum(
            (_divergence(*pair) for pair in zip(taught, logits, strict=True)), torch.zeros(())
        )


def _divergence(taught: Tensor | None, learned: Tensor | None) -> Tensor:
    if taught is None or learned is None:
        return torch.zeros(())
    target = taught.softmax(-1)
    return (target * (taught.log_softmax(-1) - learned.log_softmax(-1))).sum(-1).mean()
