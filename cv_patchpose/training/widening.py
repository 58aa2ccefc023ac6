"""Wider networks that begin with the function of a trained one."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from cv_patchpose.training.networks import NetworkConfig, build_network
from cv_patchpose.training.rings import RingNetConfig


def can_widen(narrow: NetworkConfig, wide: NetworkConfig) -> bool:
    """Tell whether networks of rings of one shape can be made of those of another.

    Grid, bins and the number of layers must be the same, layers that add what they are given must
    do so in both, and no layer may become narrower.
    """
    if not isinstance(narrow, RingNetConfig) or not isinstance(wide, RingNetConfig):
        return False
    widths, wider = _widths(narrow), _widths(wide)
    return (
        (narrow.grid, narrow.bins, _adds(narrow)) == (wide.grid, wide.bins, _adds(wide))
        and len(widths) == len(wider)
        and all(one <= other for one, other in zip(widths, wider, strict=True))
    )


def _widths(shape: RingNetConfig) -> tuple[int, ...]:
    return (shape.stem_channels, *shape.channels, shape.hidden)


def _adds(shape: RingNetConfig) -> list[bool]:
    return [inputs == outputs for inputs, outputs in pairwise(shape.channels)]


@torch.no_grad()
def widen(narrow: nn.Module, shape: NetworkConfig) -> nn.Module:
    """Make a wider network that computes the same.

    New channels have random weights, and what was there before does not listen to them yet.

    Args:
        narrow: trained network of rings.
        shape: of a wider one, see `can_widen`.

    Source: after T. Chen, I. Goodfellow, J. Shlens, Net2Net, ICLR 2016, who split channels instead.
    """
    wide = build_network(shape)
    trained = narrow.state_dict()
    for name, weights in wide.state_dict().items():
        news, olds = [weights], [trained[name]]
        if name == "context.0.weight":  # listens to the mean and to the maximum of each channel
            news, olds = ([*whole.chunk(2, 1)] for whole in (weights, trained[name]))
        for new, old in zip(news, olds, strict=True):
            if new.dim() > 1:
                new[: len(old), old.shape[1] :] = 0
            new[tuple(slice(size) for size in old.shape)] = old
    return wide
