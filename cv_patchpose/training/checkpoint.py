"""Checkpoints: written atomically, read with a check of what they are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from cv_patchpose.histograms import PoseBins
from cv_patchpose.patches import PolarGrid
from cv_patchpose.training.network import PolarNet, PolarNetConfig

CHECKPOINT_NAME = "checkpoint.pt"
CHECKPOINT_FORMAT = 1


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint beside its place, then move it there, so that none is half-written."""
    temporary = path.with_suffix(".tmp")
    torch.save({"format": CHECKPOINT_FORMAT, **state}, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint written by the trainer.

    Raises:
        ValueError: Not a file, not a checkpoint, or one of another format.
    """
    if not Path(path).is_file():
        raise ValueError(f"checkpoint: expected a file, got {str(path)!r}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"checkpoint: {path} is not a training checkpoint ({error})") from error
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(f"checkpoint: {path} is not a checkpoint of format {CHECKPOINT_FORMAT}")
    return state


def network_of(state: dict[str, Any]) -> PolarNet:
    """Build the network of a checkpoint with its averaged weights."""
    entry = dict(state["network_config"])
    config = PolarNetConfig(
        grid=PolarGrid(**entry.pop("grid")), bins=PoseBins(**entry.pop("bins")), **entry
    )
    network = PolarNet(config)
    network.load_state_dict(state["average"])
    return network


def current_commit() -> str:
    """Name the commit of the source tree, or say nothing where there is none."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
