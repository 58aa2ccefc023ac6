"""The ring network: rings are channels, convolutions run around the circle.

Its first convolution sees a whole sector of the log-polar patch at once, all radii of a few
directions, and everything after it happens along one axis: a few wide matrix products instead of
many small ones, which is what a processor does best. Turning the patch by a whole column step
rolls the orientation histogram by exactly that much and leaves the scale histogram alone, as with
the polar network; what a zoom does, the network has to learn.
"""

from __future__ import annotations

import copy
import dataclasses
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d
from torch.nn.utils import fuse_conv_bn_eval

from cv_patchpose.grids import PolarGrid
from cv_patchpose.histograms import PoseBins
from cv_patchpose.training.polar import STANDARD_OCTAVES, activation

SECTOR = 5  # directions that the first convolution sees
KERNEL = 3  # of the others
ROWS_MULTIPLE = 8  # what ONNX Runtime's convolutions are fast on
EIGHT_BIT_PARTS = ("stem", "layers", "closing")  # whose convolutions may count in eight bits


def halo_of(layers: int) -> int:
    """Count the columns that all convolutions but the last take away on each side.

    Args:
        layers: convolutions after the first, each reaching three times as far as the one before.
    """
    reaches = [KERNEL // 2 * int(KERNEL**number) for number in range(layers - 1)]
    return SECTOR // 2 + sum(reaches)


@dataclasses.dataclass(frozen=True)
class RingNetConfig:
    """Shape of a ring network; stored in checkpoints and model files.

    Args:
        grid: log-polar grid of the input patches.
        bins: orientation and scale bins of the output.
        stem_channels: channels of the first convolution.
        channels: at least two; channels of the following convolutions, each of which reaches
            three times as far around the circle as the one before.
        hidden: width of what is known of the whole patch, from which the scale is read.
    """

    grid: PolarGrid = PolarGrid(rows=24, columns=36, rows_per_octave=3, halo=6)
    bins: PoseBins = PoseBins()
    stem_channels: int = 64
    channels: tuple[int, ...] = (64, 64, 64)
    hidden: int = 64

    def __post_init__(self) -> None:
        """Check that the grid gives the convolutions their columns."""
        if len(self.channels) < 2:
            raise ValueError(f"channels: expected at least two, got {self.channels!r}")
        if KERNEL ** (len(self.channels) - 1) > self.bins.orientation:
            raise ValueError(
                f"channels: expected few enough layers to reach around {self.bins.orientation} "
                f"orientation bins, got {self.channels!r}"
            )
        halo = halo_of(len(self.channels))
        if (self.grid.columns, self.grid.halo) != (self.bins.orientation, halo):
            raise ValueError(
                f"grid: expected {self.bins.orientation} columns and a halo of {halo}, got "
                f"{self.grid.columns} and {self.grid.halo}"
            )

    @classmethod
    def for_bins(cls, bins: PoseBins, **shape: Any) -> RingNetConfig:
        """Choose the grid that bins ask for; its rings begin at 1/90 of the radius or within.

        Args:
            bins: of the output.
            shape: the other fields.
        """
        rows_per_octave = max(1, round(bins.scale_per_octave))
        least = round(STANDARD_OCTAVES * rows_per_octave) + 1
        grid = PolarGrid(
            rows=-(-least // ROWS_MULTIPLE) * ROWS_MULTIPLE,
            columns=bins.orientation,
            rows_per_octave=rows_per_octave,
            halo=halo_of(len(shape.get("channels", cls.channels))),
        )
        return cls(grid, bins, **shape)


class RingLayer(nn.Module):
    """Convolution along the circle, normalised, plus what it was given where channels agree.

    Args:
        inputs: channels given.
        outputs: channels made.
        reach: columns to its outer neighbours.
        circle: columns of the closed circle; 0 for a part of it, of which `reach` columns are used
            up on each side.
    """

    def __init__(self, inputs: int, outputs: int, reach: int, circle: int = 0) -> None:
        super().__init__()
        self.reach, self.circle = reach, circle
        self.adds = inputs == outputs
        self.conv = nn.Conv2d(inputs, outputs, (1, KERNEL), dilation=(1, reach))
        self.norm: nn.Module = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, 1, T); not yet rectified."""
        reach = self.reach
        if self.circle:
            x = torch.cat((x[..., -reach:], x, x[..., :reach]), -1)
        found: Tensor = self.norm(self.conv(x))
        return found + x[..., reach:-reach] if self.adds else found

    @torch.no_grad()
    def fold(self) -> None:
        """Make it one convolution that computes the same."""
        assert isinstance(self.norm, nn.BatchNorm2d)  # not folded yet
        self.conv = fuse_conv_bn_eval(self.conv, self.norm)
        self.norm = nn.Identity()
        if self.adds:  # what is added is its middle weight
            self.conv.weight[:, :, 0, KERNEL // 2] += torch.eye(self.conv.out_channels)
            self.adds = False


class RingNet(nn.Module):
    """Log-polar patches to scale and orientation logits, at the least cost.

    Args:
        config: shape of the network.
    Source: ours; the histograms are those of Lee, Jeong, Cho, BMVC 2021, eq. 1.
    """

    def __init__(self, config: RingNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or RingNetConfig()
        hidden, width = config.hidden, config.stem_channels
        first = config.channels[0]
        self.stem = nn.Sequential(
            nn.Conv2d(config.grid.rows, width, (1, SECTOR)),
            *activation(width),
            nn.Conv2d(width, first, (1, KERNEL)),
            *activation(first),
        )
        # Closing the circle costs time: only the last layer does, the others use up the halo.
        *within, (before_last, width) = pairwise(config.channels)
        reaches = [int(KERNEL**number) for number in range(1, len(config.channels))]
        self.layers = nn.ModuleList(
            RingLayer(*channels, reach) for channels, reach in zip(within, reaches, strict=False)
        )
        self.closing = RingLayer(before_last, width, reaches[-1], config.grid.columns)
        self.context = nn.Sequential(
            nn.Conv2d(2 * before_last, hidden, 1),
            *activation(hidden),
            nn.Conv2d(hidden, hidden, 1),
            *activation(hidden),
        )
        self.condition = nn.Conv2d(hidden, width, 1)
        self.scale = nn.Conv2d(hidden, config.bins.scale, 1)
        self.orientation = nn.Conv2d(width, 1, 1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None  # every convolution here has one
                nn.init.zeros_(module.bias)

    def forward(self, patches: Tensor, log_prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the logits of both histograms.

        Args:
            patches: (N, 1, rows, columns + 2 * halo) float32, standardised.
            log_prior: not read; the signature is that of the polar network.

        Returns:
            scale (N, S) and orientation (N, R) logits.
        """
        grid = self.config.grid
        width = grid.columns + 2 * grid.halo
        if patches.shape[2:] != (grid.rows, width):  # a reshape would mix patches
            raise ValueError(
                f"patches: expected {grid.rows} x {width}, got {tuple(patches.shape[2:])}"
            )
        features = self.stem(patches.reshape(-1, grid.rows, 1, width))
        for layer in self.layers:
            features = torch.relu(layer(features))
        pooled = torch.cat((adaptive_avg_pool2d(features, 1), adaptive_max_pool2d(features, 1)), 1)
        context = self.context(pooled)
        # Channels last, as convolutions in eight bits leave them, is what the rest is fastest in.
        condition = self.condition(context).permute(0, 2, 3, 1)
        features = torch.relu(self.closing(features).permute(0, 2, 3, 1) + condition)
        orientation = features @ self.orientation.weight[0, :, 0]
        if self.orientation.bias is not None:
            orientation = orientation + self.orientation.bias
        return self.scale(context).flatten(1), orientation.flatten(1)

    def folded(self) -> RingNet:
        """Copy the network for running: fewer steps, the same histograms but for rounding.

        The orientation logits lose what is added to all of them, which no softmax sees.
        """
        folded = copy.deepcopy(self).eval()
        for layer in (*folded.layers, folded.closing):
            assert isinstance(layer, RingLayer)
            layer.fold()
        folded.orientation.bias = None
        return folded
