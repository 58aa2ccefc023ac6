"""The ring network: rings are channels, convolutions run around the circle.

Its first convolution sees a whole sector of the log-polar patch at once, all radii of a few
directions, and everything after it happens along one axis: a few wide matrix products instead of
many small ones, which is what a processor does best. Turning the patch by a whole column step
rolls the orientation histogram by exactly that much and leaves the scale histogram alone, as with
the polar network; what a zoom does, the network has to learn.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from cv_patchpose.grids import PolarGrid
from cv_patchpose.histograms import PoseBins
from cv_patchpose.training.polar import STANDARD_OCTAVES, CircularConv1d, activation

SECTOR = 5  # directions that the first convolution sees
KERNEL = 3  # of the others
HALO = (SECTOR + KERNEL) // 2 - 1
ROWS_MULTIPLE = 8  # what ONNX Runtime's convolutions are fast on


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

    grid: PolarGrid = PolarGrid(rows=24, columns=36, rows_per_octave=3, halo=3)
    bins: PoseBins = PoseBins()
    stem_channels: int = 64
    channels: tuple[int, ...] = (64, 64, 64)
    hidden: int = 64

    def __post_init__(self) -> None:
        """Check that the grid gives the first convolution its columns."""
        if (self.grid.columns, self.grid.halo) != (self.bins.orientation, HALO):
            raise ValueError(
                f"grid: expected {self.bins.orientation} columns and a halo of {HALO}, got "
                f"{self.grid.columns} and {self.grid.halo}"
            )
        if len(self.channels) < 2:
            raise ValueError(f"channels: expected at least two, got {self.channels!r}")
        if KERNEL ** (len(self.channels) - 1) > self.bins.orientation:
            raise ValueError(
                f"channels: expected few enough layers to reach around {self.bins.orientation} "
                f"orientation bins, got {self.channels!r}"
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
            halo=HALO,
        )
        return cls(grid, bins, **shape)


class RingNet(nn.Module):
    """Log-polar patches to scale and orientation logits, at the least cost.

    Args:
        config: shape of the network.
    Source: ours; the histograms are those of Lee, Jeong, Cho, BMVC 2021, eq. 1.
    """

    around: Tensor

    def __init__(self, config: RingNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or RingNetConfig()
        hidden, width = config.hidden, config.stem_channels
        first = config.channels[0]
        self.stem = nn.Sequential(  # within the halo: wrapping around costs time
            nn.Conv2d(config.grid.rows, width, (1, SECTOR)),
            *activation(width),
            nn.Conv2d(width, first, (1, KERNEL)),
            *activation(first),
        )
        self.layers = nn.ModuleList()
        for number, (width, channels) in enumerate(pairwise(config.channels), start=1):
            conv = CircularConv1d(width, channels, KERNEL, dilation=KERNEL**number)
            self.layers.append(nn.Sequential(conv, nn.BatchNorm2d(channels)))
        width = config.channels[-1]
        before_last = config.channels[-2]
        self.context = nn.Sequential(
            nn.Conv2d(2 * before_last, hidden, 1),
            *activation(hidden),
            nn.Conv2d(hidden, hidden, 1),
            *activation(hidden),
        )
        self.condition = nn.Conv2d(hidden, width, 1)
        self.scale = nn.Conv2d(hidden, config.bins.scale, 1)
        self.orientation = nn.Conv2d(width, 1, 1)
        # cv2.dnn adds to a convolution only what has its shape, and forgets that an expansion of
        # one batch is not that of the next.
        self.register_buffer("around", torch.ones(1, 1, 1, config.bins.orientation), False)
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
        features = self.stem(patches.transpose(1, 2))
        for layer in self.layers[:-1]:
            features = _rectify(layer(features), features)
        pooled = torch.cat((features.mean(-1, keepdim=True), features.amax(-1, keepdim=True)), 1)
        context = self.context(pooled)
        condition = self.condition(context) * self.around
        features = _rectify(self.layers[-1](features) + condition, features)
        return self.scale(context).flatten(1), self.orientation(features).flatten(1)


def _rectify(found: Tensor, before: Tensor) -> Tensor:
    """Add what a layer was given, where the channels agree, and rectify."""
    return torch.relu(found + before if found.shape[1] == before.shape[1] else found)
