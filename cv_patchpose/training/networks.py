"""The networks that can be trained, by name."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

from torch import nn

from cv_patchpose.grids import PolarGrid, SquareGrid
from cv_patchpose.histograms import PoseBins
from cv_patchpose.training.options import NETWORKS, TrainConfig
from cv_patchpose.training.polar import PolarNet, PolarNetConfig
from cv_patchpose.training.resnet import ResNetConfig, ResNetPose
from cv_patchpose.training.rings import RingNet, RingNetConfig

NetworkConfig: TypeAlias = PolarNetConfig | RingNetConfig | ResNetConfig


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
    fields = ["stem_channels", "channels", "hidden"]
    if config.network == "rings":
        return RingNetConfig.for_bins(bins, **{name: getattr(config, name) for name in fields})
    fields += ["stride", "separable", "aligned"]
    return PolarNetConfig.for_bins(bins, **{name: getattr(config, name) for name in fields})


def build_network(shape: NetworkConfig) -> nn.Module:
    """Make a network with random weights."""
    if isinstance(shape, PolarNetConfig):
        return PolarNet(shape)
    return RingNet(shape) if isinstance(shape, RingNetConfig) else ResNetPose(shape)


def shape_to_entry(shape: NetworkConfig) -> dict[str, Any]:
    """Turn a network's shape into plain values for a checkpoint."""
    return {"network": _NAMES[type(shape)], **dataclasses.asdict(shape)}


def describe_differences(one: NetworkConfig, other: NetworkConfig) -> str:
    """Name the fields by which a network's shape differs from another, and both values."""
    ours, theirs = (_flat(shape_to_entry(shape)) for shape in (one, other))
    if ours["network"] != theirs["network"]:
        return f"network {ours['network']} and not {theirs['network']}"
    return ", ".join(
        f"{name} {value} and not {theirs[name]}"
        for name, value in ours.items()
        if value != theirs[name]
    )


def _flat(entry: dict[str, Any]) -> dict[str, str]:
    """Write values as text, those of a nested entry one by one."""
    found: dict[str, str] = {}
    for name, value in entry.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": str(v) for inner, v in value.items()}
        else:
            found[name] = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return found


_NAMES = {PolarNetConfig: "polar", RingNetConfig: "rings", ResNetConfig: "resnet18"}


def shape_from_entry(entry: dict[str, Any]) -> NetworkConfig:
    """Read what `shape_to_entry` wrote; the first checkpoints do not name their network: polar.

    Raises:
        TypeError: Foreign or missing entries.
        ValueError: An unknown network.
    """
    entry = dict(entry)
    name = entry.pop("network", "polar")
    grid, bins = entry.pop("grid"), PoseBins(**entry.pop("bins"))
    if name in ("polar", "rings"):
        kind = PolarNetConfig if name == "polar" else RingNetConfig
        entry["channels"] = tuple(entry["channels"])
        return kind(grid=PolarGrid(**grid), bins=bins, **entry)
    if name == "resnet18":
        entry["targets"] = tuple(entry["targets"])
        return ResNetConfig(grid=SquareGrid(**grid), bins=bins, **entry)
    raise ValueError(f"network: expected one of {', '.join(NETWORKS)}, got {name!r}")
