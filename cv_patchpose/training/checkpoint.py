"""Checkpoints: written atomically, read with a check of what they are."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cv_patchpose.files import write_file
from cv_patchpose.training.networks import (
    NetworkConfig,
    build_network,
    describe_differences,
    shape_from_entry,
)
from cv_patchpose.training.options import SynthesisConfig, TrainConfig

CHECKPOINT_NAME = "checkpoint.pt"
CHECKPOINT_FORMAT = 1
FAR = 0.8  # for an average; runs of 18 to 70 minutes from the same weights differed by 0.1 to 0.5
_ENTRIES = (
    "train_config",
    "network_config",
    "network",
    "average",
    "optimizer",
    "step",
    "keypoints",
    "minutes",
    "scale_offset_octaves",
    "photographs",
    "validation_files",
)


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all."""
    buffer = io.BytesIO()
    torch.save({"format": CHECKPOINT_FORMAT, **state}, buffer)
    write_file(path, buffer.getvalue())


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint written by the trainer.

    Args:
        path: Of a checkpoint, or of the folder of a run.

    Raises:
        ValueError: Not a file, not a checkpoint, one of another format, or a damaged one.
    """
    expected = "expected the folder of a run of cv-patchpose train, or a checkpoint.pt from it"
    path = Path(path)
    if path.is_dir():
        path /= CHECKPOINT_NAME
    if not path.is_file():
        raise ValueError(f"checkpoint: {expected}, got {path}: no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's own text is about its versions, and long.
        raise ValueError(
            f"checkpoint: {expected}, got {path}, which is not a training checkpoint"
        ) from error
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(f"checkpoint: {path} is not a checkpoint of format {CHECKPOINT_FORMAT}")
    lacking = [entry for entry in _ENTRIES if entry not in state]
    if lacking:
        raise ValueError(f"checkpoint: {path} lacks {', '.join(lacking)}")
    try:
        config_of(state)
        network_of(state).load_state_dict(state["network"])
    except Exception as error:
        raise ValueError(f"checkpoint: {path} does not hold together ({error})") from error
    return state


def config_of(state: dict[str, Any]) -> TrainConfig:
    """Read the options of a run; those that it does not know have their defaults."""
    entry = dict(state["train_config"])
    for name in ("channels", "targets", "teacher_targets"):
        if name in entry:
            entry[name] = tuple(entry[name])
    return TrainConfig(synthesis=SynthesisConfig(**entry.pop("synthesis")), **entry)


def saved_config(run: Path | str) -> TrainConfig:
    """Read the options of a run from its checkpoint.

    Raises:
        ValueError: the run holds no checkpoint, or a damaged one.
    """
    return config_of(load_checkpoint(run))


def shape_of(state: dict[str, Any]) -> NetworkConfig:
    """Read the shape of a checkpoint's network."""
    return shape_from_entry(state["network_config"])


def network_of(state: dict[str, Any]) -> nn.Module:
    """Build the network of a checkpoint with its averaged weights."""
    network = build_network(shape_of(state))
    network.load_state_dict(state["average"])
    return network


def average_network(states: Sequence[dict[str, Any]]) -> nn.Module:
    """Build the network whose weights are the average of those of some runs.

    Runs that went different ways from the same weights, with other views, losses or teachers, are
    often better on average than any of them is.

    Args:
        states: checkpoints of at least one run; if more, begun with the same weights, or this
            beginning itself.

    Raises:
        ValueError: runs of different networks or magnifications, or whose weights have nothing in
            common.

    Source: Wortsman et al., Model soups, ICML 2022.
    """
    network, shape = network_of(states[0]), shape_of(states[0])
    if len(states) == 1:
        return network
    for number, state in enumerate(states[1:], 2):
        if shape_of(state) != shape:
            raise ValueError(
                "source: expected runs of one network, got one of "
                f"{describe_differences(shape_of(state), shape)}"
            )
        distance = _distance(states[0]["average"], state["average"])
        if not distance < FAR:
            raise ValueError(
                "source: expected runs that began with the same weights (train --init), which can "
                f"be averaged, got weights in number {number} that differ from those of the first "
                f"by {distance:.2f} of their size"
            )
    windows = {config_of(state).synthesis.magnification for state in states}
    if len(windows) > 1:
        raise ValueError(
            "source: expected runs of one magnification, got "
            + " and ".join(f"{window:g}" for window in sorted(windows))
        )
    average = {
        name: torch.stack([state["average"][name] for state in states]).mean(0)
        if values.is_floating_point()
        else values
        for name, values in states[0]["average"].items()
    }
    network.load_state_dict(average)
    return network


def _distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Compare the weights of convolutions and matrices: 0 for the same, sqrt 2 for unrelated."""
    names = [name for name, values in one.items() if values.ndim > 1]
    first, second = (
        torch.cat([weights[name].flatten() for name in names]) for weights in (one, other)
    )
    return float((first - second).norm() / ((first.norm() + second.norm()) / 2))
