"""The polar network: convolutional on the log-polar patch, circular along the angle.

Turning the patch by a whole column step rolls every feature map along its columns, so the
orientation histogram rolls by exactly that much and the scale histogram stays. Zooming moves
the feature maps along their rows, and the scale histogram with them. The orientation is read
from the rows as they are and from rows counted from the scale found, which a zoom leaves alone.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from cv_patchpose.grids import PolarGrid
from cv_patchpose.histograms import PoseBins

ANGLE_STRIDE = 2
RADIUS_STRIDE = 2
STANDARD_OCTAVES = 6.5  # from the innermost ring to the outermost


@dataclasses.dataclass(frozen=True)
class PolarNetConfig:
    """Shape of a polar network; stored in checkpoints and model files.

    Args:
        grid: log-polar grid of the input patches.
        bins: orientation and scale bins of the output.
        stem_channels: channels of the strided first convolution.
        channels: channels of the following 3 x 3 convolutions, in order.
        hidden: width of the two heads.
    """

    grid: PolarGrid = PolarGrid(rows=40, columns=72, rows_per_octave=6, halo=6)
    bins: PoseBins = PoseBins()
    stem_channels: int = 16
    channels: tuple[int, ...] = (32, 32)
    hidden: int = 64

    def __post_init__(self) -> None:
        if self.grid.columns != ANGLE_STRIDE * self.bins.orientation:
            raise ValueError(
                f"grid: expected {ANGLE_STRIDE} columns per orientation bin "
                f"({ANGLE_STRIDE * self.bins.orientation}), got {self.grid.columns}"
            )
        if self.grid.rows_per_octave != RADIUS_STRIDE * self.bins.scale_per_octave:
            raise ValueError(
                f"grid: expected {RADIUS_STRIDE * self.bins.scale_per_octave} rows per octave, "
                f"got {self.grid.rows_per_octave}"
            )
        if self.grid.halo != 2 + 2 * len(self.channels):
            raise ValueError(
                f"grid: expected halo {2 + 2 * len(self.channels)} columns, got {self.grid.halo}"
            )
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
        stem_channels: int = 16,
        channels: tuple[int, ...] = (32, 32),
        hidden: int = 64,
    ) -> PolarNetConfig:
        """Choose the grid that bins ask for.

        Its rings begin at 1/90 of the radius, or nearer the centre where bins would lack rows.

        Raises:
            ValueError: Scale bins of which an octave does not hold a whole or half number.
        """
        rows_per_octave = RADIUS_STRIDE * bins.scale_per_octave
        if rows_per_octave != int(rows_per_octave):
            raise ValueError(
                f"bins: expected a whole or half number per octave, got {bins.scale_per_octave}"
            )
        least = RADIUS_STRIDE * (bins.scale - 1 + 2 * len(channels)) + 5
        grid = PolarGrid(
            rows=max(round(STANDARD_OCTAVES * rows_per_octave) + 1, least),
            columns=ANGLE_STRIDE * bins.orientation,
            rows_per_octave=int(rows_per_octave),
            halo=2 + 2 * len(channels),
        )
        return cls(grid, bins, stem_channels, channels, hidden)

    @property
    def trunk_rows(self) -> int:
        """Rows left after the unpadded convolutions."""
        return (self.grid.rows - 5) // RADIUS_STRIDE + 1 - 2 * len(self.channels)


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
        return torch.as_tensor(self.conv(wrapped))


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
            nn.Conv2d(1, width, 5, stride=(RADIUS_STRIDE, ANGLE_STRIDE)),
            *activation(width),
        ]
        for channels in config.channels:
            layers += [nn.Conv2d(width, channels, 3), *activation(channels)]
            width = channels
        self.trunk = nn.Sequential(*layers)
        self.alignment = ScaleAlignment(config.trunk_rows, config.bins.scale)
        self.absolute = nn.Conv2d(width, hidden, (config.trunk_rows, 1))
        self.aligned = nn.Conv2d(width * config.trunk_rows, hidden, 1)
        self.orientation = nn.Sequential(
            *activation(hidden),
            CircularConv1d(hidden, hidden, 7),
            *activation(hidden),
            CircularConv1d(hidden, hidden, 7, dilation=3),
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

    def forward(self, patches: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the logits of both histograms.

        Args:
            patches: (N, 1, rows, columns + 2 * halo) float32, standardised.
            log_prior: (N, S) float32, what is known of the scale beforehand, as the logarithm of
                a probability up to a constant; zeros: nothing. It helps to read the orientation;
                the scale logits are those of the patch alone.

        Returns:
            scale (N, S) and orientation (N, R) logits.
        """
        features = self.trunk(patches)
        rings = self.scale_features(features)
        profile = torch.cat((rings.mean(-1, keepdim=True), rings.amax(-1, keepdim=True)), 1)
        scale = self.scale(profile).flatten(1)
        posterior = (scale.float() + log_prior).softmax(1)
        rows = self.absolute(features) + self.aligned(self.alignment(features, posterior))
        orientation = self.orientation(rows).flatten(1)
        return scale, orientation
