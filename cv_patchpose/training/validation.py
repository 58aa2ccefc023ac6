"""Validation: the same batches of held-out photographs every time, clean and spoilt."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from cv_patchpose.histograms import PoseBins
from cv_patchpose.patches import PolarGrid
from cv_patchpose.training.dataset import Batch, PairStream
from cv_patchpose.training.objective import pose_accuracy, run_network
from cv_patchpose.training.options import SynthesisConfig
from cv_patchpose.training.photographs import Photographs

BATCH_SIZE = 64
SEED = 12345


def validation_batches(
    photographs: Photographs, grid: PolarGrid, config: SynthesisConfig, keypoints: int
) -> dict[str, list[Batch]]:
    """Make batches of clean views and of views as spoilt as those of the training.

    Args:
        photographs: held out.
        grid: where to sample.
        config: ranges of the training's views.
        keypoints: about how many to measure, at least one batch.

    Returns:
        Batches by kind of view.
    """
    kinds = {
        "clean": dataclasses.replace(config, clean=1.0),
        "spoilt": dataclasses.replace(config, clean=0.0),
    }
    batches = {}
    for name, synthesis in kinds.items():
        stream = iter(
            PairStream(
                photographs, grid, synthesis, batch_size=BATCH_SIZE, pool_size=BATCH_SIZE, seed=SEED
            )
        )
        batches[name] = [next(stream) for _ in range(max(1, keypoints // BATCH_SIZE))]
    return batches


@torch.no_grad()
def measure(
    network: torch.nn.Module, batches: dict[str, list[Batch]], bins: PoseBins
) -> dict[str, float]:
    """Measure `pose_accuracy` of a network in evaluation mode.

    Returns:
        Percentages by kind of view and metric.
    """
    row = {}
    for name, group in batches.items():
        measured = [pose_accuracy(*run_network(network, b, bins), b, bins) for b in group]
        for metric in measured[0]:
            row[f"{name}_{metric}"] = float(np.mean([m[metric] for m in measured]))
    return row
