"""The networks that can be trained, by name."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

from torch import nn

from cv_patchpose.grids import PolarGrid, SquareGrid
from cv_patchpose.histograms import PoseBins
from cv_patchpose.training.options import TrainConfig
from cv_patchpose.training.polar import PolarNet, PolarNetConfig
from cv_patchpose.training.resnet import ResNetConfig, ResNetPose

NetworkConfig: TypeAlias = PolarNetConfig | ResNetConfig


def network_config(config: TrainConfig) -> NetworkConfig:
    """Shape the network as the training options say.

    Raises:
        ValueError: Scale bins that the network cannot have.
    """
    bins = PoseBins(
        orientation=config.orientation_bins,
        scale=config.scale_bins,
        scale_per_octave=(config.scale_bins - 1) / 4,
    )
    if config.network == "resnet18":
        return ResNetConfig(bins=bins, targets=config.targets, temperature=config.temperature)
    fields = ("stem_channels", "channels", "hidden", "stride", "separable", "aligned")
    return PolarNetConfig.for_bins(bins, **{name: getattr(config, name) for name in fields})


def build_network(shape: NetworkConfig) -> nn.Module:
    """Make a network with random weights."""
    return PolarNet(shape) if isinstance(shape, PolarNetConfig) else ResNetPose(shape)


def shape_to_entry(shape: NetworkConfig) -> dict[str, Any]:
    """Turn a network's shape into plain values for a checkpoint."""
    name = "polar" if isinstance(shape, PolarNetConfig) else "resnet18"
    return {"network": name, **dataclasses.asdict(shape)}


def shape_from_entry(entry: dict[str, Any]) -> NetworkConfig:
    """Read what `shape_to_entry` wrote; the first checkpoints do not name their network: polar.

    Raises:
        TypeError: Foreign or missing entries.
        ValueError: An unknown network.
    """
    entry = dict(entry)
    name = entry.pop("network", "polar")
    grid, bins = entry.pop("grid"), PoseBins(**entry.pop("bins"))
    if name == "polar":
        entry["channels"] = tuple(entry["channels"])
        return PolarNetConfig(grid=PolarGrid(**grid), bins=bins, **entry)
    if name == "resnet18":
        entry["targets"] = tuple(entry["targets"])
        return ResNetConfig(grid=SquareGrid(**grid), bins=bins, **entry)
    raise ValueError(f"network: expected polar or resnet18, got {name!r}")
