"""The optimizer and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from cv_patchpose.training.options import TrainConfig

WARM_UP_SHARE = 0.02
LAST_LEARNING_RATE_SHARE = 0.003


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Warm up linearly and fall along a cosine, or stay the same throughout.

    Args:
        config: names the peak and the schedule.
        progress: share of the budget used up, 0 to 1.
    """
    if config.schedule == "constant":
        return config.learning_rate
    if progress < WARM_UP_SHARE:
        return config.learning_rate * max(0.02, progress / WARM_UP_SHARE)
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP_SHARE) / (1 - WARM_UP_SHARE)))
    return config.learning_rate * max(cosine, LAST_LEARNING_RATE_SHARE)


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Make the optimizer that the options name."""
    rate, decay = config.learning_rate, config.weight_decay
    fused = True if next(network.parameters()).is_cuda else None  # one kernel instead of many
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            network.parameters(), rate, momentum=config.momentum, weight_decay=decay, fused=fused
        )
    return torch.optim.AdamW(network.parameters(), rate, weight_decay=decay, fused=fused)
