"""The polar network: convolutional on the log-polar patch, circular along the angle.

Turning the patch by a whole column step rolls every feature map along its columns, so the
orientation histogram rolls by exactly that much and the scale histogram stays. Zooming moves
the feature maps along their rows, and the scale histogram with them. The orientation is read
from the rows as they are and from rows counted from the scale found, which a zoom leaves alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from cv_patchpose.grids import PolarGrid
from cv_patchpose.histograms import PoseBins

STANDARD_OCTAVES = 6.5  # from the innermost ring to the outermost
DILATION = 3  # of the orientation head's second convolution
KERNEL = 7  # of both of them
REACH = DILATION * (KERNEL // 2)  # to each side; no more than once around the circle


@dataclasses.dataclass(frozen=True)
class PolarNetConfig:
    """Shape of a polar network; stored in checkpoints and model files.

    Args:
        grid: log-polar grid of the input patches.
        bins: orientation and scale bins of the output.
        stem_channels: channels of the first convolution.
        channels: channels of the following 3 x 3 convolutions, in order.
        hidden: width of the two heads.
        stride: of the first convolution, whose kernel is twice as wide and one more: rings and
            directions of the grid per bin.
        separable: the 3 x 3 convolutions are one per channel, followed by 1 x 1.
        aligned: the orientation is also read from rows aligned by the scale.
    """

    grid: PolarGrid = PolarGrid(rows=40, columns=72, rows_per_octave=6, halo=6)
    bins: PoseBins = PoseBins()
    stem_channels: int = 16
    channels: tuple[int, ...] = (32, 32)
    hidden: int = 64
    stride: int = 2
    separable: bool = False
    aligned: bool = True

    def __post_init__(self) -> None:
        """Check that the grid gives a row and a column to each bin."""
        if self.bins.orientation < REACH:
            raise ValueError(
                f"orientation_bins: expected at least {REACH}, got {self.bins.orientation}"
            )
        if self.grid.columns != self.stride * self.bins.orientation:
            raise ValueError(
                f"grid: expected {self.stride} columns per orientation bin "
                f"({self.stride * self.bins.orientation}), got {self.grid.columns}"
            )
        if self.grid.rows_per_octave != self.stride * self.bins.scale_per_octave:
            raise ValueError(
                f"grid: expected {self.stride * self.bins.scale_per_octave} rows per octave, "
                f"got {self.grid.rows_per_octave}"
            )
        halo = self.stride * (1 + len(self.channels))
        if self.grid.halo != halo:
            raise ValueError(f"grid: expected halo {halo} columns, got {self.grid.halo}")
        if self.trunk_rows < self.bins.scale:
            raise ValueError(
                f"grid: {self.grid.rows} rows leave {self.trunk_rows} after the convolutions, "
                f"expected at least {self.bins.scale}"
            )

    @classmethod
    def for_bins(
        cls,
        bins: PoseBins,
        *,
        channels: tuple[int, ...] = (32, 32),
        stride: int = 2,
        **shape: Any,
    ) -> PolarNetConfig:
        """Choose the grid that bins ask for.

        Its rings begin at 1/90 of the radius, or nearer the centre where bins would lack rows.

        Args:
            bins: of the output.
            channels: field of the same name.
            stride: field of the same name.
            shape: the other fields.

        Raises:
            ValueError: Scale bins that rows cannot be counted in.
        """
        rows_per_octave = stride * bins.scale_per_octave
        if rows_per_octave != int(rows_per_octave):
            raise ValueError(
                f"scale_bins: expected a whole number of rows per octave with stride {stride}, got "
                f"{bins.scale_per_octave} bins per octave"
            )
        least = stride * (bins.scale - 1 + 2 * len(channels)) + 2 * stride + 1
        grid = PolarGrid(
            rows=max(round(STANDARD_OCTAVES * rows_per_octave) + 1, least),
            columns=stride * bins.orientation,
            rows_per_octave=int(rows_per_octave),
            halo=stride * (1 + len(channels)),
        )
        return cls(grid, bins, channels=channels, stride=stride, **shape)

    @property
    def trunk_rows(self) -> int:
        """Rows left after the unpadded convolutions."""
        return (self.grid.rows - 2 * self.stride - 1) // self.stride + 1 - 2 * len(self.channels)


def activation(channels: int) -> tuple[nn.Module, nn.Module]:
    """Normalisation, which export folds into the convolution before it, and rectifier."""
    return nn.BatchNorm2d(channels), nn.ReLU()


class CircularConv1d(nn.Module):
    """Convolution along the last axis of (N, C, 1, T), wrapped around."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.reach = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, (1, kernel), dilation=(1, dilation))

    def forward(self, x: Tensor) -> Tensor:
        """Wrap (N, C, 1, T) around by the kernel's reach and convolve; keeps T."""
        wrapped = torch.cat((x[..., -self.reach :], x, x[..., : self.reach]), -1)
        convolved: Tensor = self.conv(wrapped)
        return convolved


class ScaleAlignment(nn.Module):
    """Rows of features counted from the scale of the patch instead of its outermost ring.

    The scale is a distribution over S bins, a third octave apart like the rows: the aligned
    features are the mean over it of the features moved by each of its bins. Row S // 2 of the
    result is the one at the scale itself. Rows beyond the patch count as zero.

    Args:
        rows: R, of the features.
        bins: S, of the scale.
    Source: ours.
    """

    taps: Tensor

    def __init__(self, rows: int, bins: int) -> None:
        super().__init__()
        self.rows, self.middle = rows, bins // 2
        # As a convolution whose output channel j, column r is the probability of bin
        # r - j + middle: that is the weight of row r in the aligned row j.
        taps = torch.zeros(rows, 1, 1, rows)
        taps[torch.arange(rows), 0, 0, rows - 1 - torch.arange(rows)] = 1
        self.register_buffer("taps", taps, persistent=False)
        self.padding = rows - 1 - self.middle, 2 * rows - 1 - bins - (rows - 1 - self.middle)

    def forward(self, features: Tensor, scale: Tensor) -> Tensor:
        """Align (N, C, R, T) features by (N, S) probabilities; returns (N, R * C, 1, T)."""
        channels, columns = int(features.shape[1]), int(features.shape[3])  # fixed in exports
        padded = nn.functional.pad(scale, self.padding)[:, None, None]
        weights = nn.functional.conv2d(padded, self.taps.to(scale.dtype))[:, :, 0]
        rows = features.transpose(1, 2).reshape(-1, self.rows, channels * columns)
        return torch.bmm(weights.to(rows.dtype), rows).reshape(-1, self.rows * channels, 1, columns)


class PolarNet(nn.Module):
    """Log-polar patches to scale and orientation logits.

    Args:
        config: shape of the network.
    Source: ours; the histograms are those of Lee, Jeong, Cho, BMVC 2021, eq. 1.
    """

    def __init__(self, config: PolarNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PolarNetConfig()
        width, hidden = config.stem_channels, config.hidden
        layers: list[nn.Module] = [
            nn.Conv2d(1, width, 2 * config.stride + 1, stride=config.stride),
            *activation(width),
        ]
        for channels in config.channels:
            if config.separable:
                layers += [nn.Conv2d(width, width, 3, groups=width), *activation(width)]
            kernel = 1 if config.separable else 3
            layers += [nn.Conv2d(width, channels, kernel), *activation(channels)]
            width = channels
        self.trunk = nn.Sequential(*layers)
        self.absolute = nn.Conv2d(width, hidden, (config.trunk_rows, 1))
        if config.aligned:
            self.alignment = ScaleAlignment(config.trunk_rows, config.bins.scale)
            self.aligned = nn.Conv2d(width * config.trunk_rows, hidden, 1)
        self.orientation = nn.Sequential(
            *activation(hidden),
            CircularConv1d(hidden, hidden, KERNEL),
            *activation(hidden),
            CircularConv1d(hidden, hidden, KERNEL, dilation=DILATION),
            *activation(hidden),
            nn.Conv2d(hidden, 1, 1),
        )
        self.scale_features = nn.Sequential(nn.Conv2d(width, hidden, 1), *activation(hidden))
        self.scale = nn.Sequential(
            nn.Conv2d(2 * hidden, hidden, (5, 1), padding=(2, 0)),
            *activation(hidden),
            nn.Conv2d(hidden, hidden, (5, 1), padding=(2, 0)),
            *activation(hidden),
            nn.Conv2d(hidden, 1, (config.trunk_rows - config.bins.scale + 1, 1)),
        )
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None  # every convolution here has one
                nn.init.zeros_(module.bias)

    def forward(self, patches: Tensor, log_prior: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute the logits of both histograms.

        Args:
            patches: (N, 1, rows, columns + 2 * halo) float32, standardised.
            log_prior: (N, S) float32, what is known of the scale beforehand, as the logarithm of
                a probability up to a constant; zeros: nothing. It helps to read the orientation
                from aligned rows; the scale logits are those of the patch alone.

        Returns:
            scale (N, S) and orientation (N, R) logits.
        """
        features = self.trunk(patches)
        rings = self.scale_features(features)
        profile = torch.cat((rings.mean(-1, keepdim=True), rings.amax(-1, keepdim=True)), 1)
        scale = self.scale(profile).flatten(1)
        rows = self.absolute(features)
        if self.config.aligned:
            posterior = (scale.float() + log_prior).softmax(1)
            rows = rows + self.aligned(self.alignment(features, posterior))
        orientation = self.orientation(rows).flatten(1)
        return scale, orientation
