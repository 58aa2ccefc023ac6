"""The estimators of the paper: one ResNet-18 for the scale, one for the orientation."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from cv_patchpose.grids import SquareGrid
from cv_patchpose.histograms import PoseBins
from cv_patchpose.training.options import TARGETS

FEATURES = 512
HIDDEN = (512, 256, 128)  # of the four-layer perceptron; the paper does not say


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Which of the two networks there are, and what they read; stored in checkpoints.

    Args:
        grid: square grid of the input patches.
        bins: orientation and scale bins of the output.
        targets: "orientation", "scale", or both.
        temperature: the outputs are divided by it before the softmax.
    """

    grid: SquareGrid = SquareGrid()
    bins: PoseBins = PoseBins()
    targets: tuple[str, ...] = TARGETS
    temperature: float = 20.0

    def __post_init__(self) -> None:
        """Check the targets."""
        if not self.targets or not set(self.targets) <= set(TARGETS):
            raise ValueError(f"targets: expected some of {TARGETS}, got {self.targets!r}")


class _Block(nn.Module):
    """Two 3 x 3 convolutions and the way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.around: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.around = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's features."""
        return torch.relu(self.body(x) + self.around(x))


def resnet18_features() -> nn.Sequential:
    """Make ResNet-18 without its classifier: (N, 3, H, W) to (N, 512, H / 32, W / 32).

    Source: He, Zhang, Ren, Sun, CVPR 2016, table 1.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    width = 64
    for channels in (64, 128, 256, FEATURES):
        layers += [_Block(width, channels, channels // width), _Block(channels, channels, 1)]
        width = channels
    return nn.Sequential(*layers)


def _perceptron(outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = FEATURES
    for hidden in HIDDEN:
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class ResNetPose(nn.Module):
    """Square colour patches to scale and orientation logits, by networks that share nothing.

    Args:
        config: which networks there are.
    Source: Lee, Jeong, Cho, BMVC 2021, section 4: ResNet-18 from random weights, global max
        pooling, a perceptron of four layers. The widths of its hidden layers are ours.
    """

    def __init__(self, config: ResNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ResNetConfig()
        bins = {"orientation": config.bins.orientation, "scale": config.bins.scale}
        self.branches = nn.ModuleDict(
            {
                target: nn.Sequential(
                    resnet18_features(),
                    nn.AdaptiveMaxPool2d(1),
                    nn.Flatten(),
                    _perceptron(bins[target]),
                )
                for target in config.targets
            }
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self, patches: Tensor, log_prior: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute the logits of the histograms.

        Args:
            patches: (N, 3, size, size) float32 RGB in [0, 1].
            log_prior: not used; these networks see the patch alone.

        Returns:
            scale (N, S) and orientation (N, R) logits, already divided by the temperature; None
            where there is no such network.
        """
        scale, orientation = (
            self.branches[target](patches) / self.config.temperature
            if target in self.branches
            else None
            for target in ("scale", "orientation")
        )
        return scale, orientation
