"""Polar patches of many views at once: what `patches.sample_polar` gives, by PyTorch on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from cv_patchpose.grids import PolarGrid
from cv_patchpose.patches import VALUE_SCALE, VARIANCE_FLOOR
from cv_patchpose.pyramid import MIN_LEVEL_SIDE_PX

HALF_OCTAVE = (1 / 6, 4 / 6, 1 / 6)
HALVING = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


class DevicePyramids:
    """The levels of the pyramids of many square views, see `pyramid.ImagePyramid`.

    Args:
        images: (B, S, S) grey levels from 0 to 255, whole numbers in any dtype.
    """

    def __init__(self, images: Tensor) -> None:
        octave, levels = images.float(), []
        while True:
            levels += [octave, _filter(octave, HALF_OCTAVE).round_()]
            if (octave.shape[-1] + 1) // 2 < MIN_LEVEL_SIDE_PX:
                break
            octave = _filter(octave, HALVING, 2).round_()
        self.values = torch.cat([level.to(torch.uint8).flatten(1) for level in levels], 1)
        sides = [level.shape[-1] for level in levels]
        starts = [sum(side**2 for side in sides[:number]) for number in range(len(sides))]
        self.sides, self.starts = (constant(n, images.device) for n in (sides, starts))


def constant(values: Sequence[float], device: torch.device) -> Tensor:
    """Return whole numbers as int64 and others as float32, sent to a device only once.

    Sending them would wait for it.
    """
    return _constant(tuple(values), device)


@lru_cache(maxsize=32)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    whole = all(isinstance(value, int) for value in values)
    return torch.tensor(values, dtype=torch.int64 if whole else torch.float32, device=device)


def _filter(images: Tensor, taps: tuple[float, ...], step: int = 1) -> Tensor:
    """Filter (B, S, S) along both axes, borders replicated, and keep every `step`th value."""
    side, reach = images.shape[-1], len(taps) // 2
    padded = functional.pad(images[:, None], (reach,) * 4, mode="replicate")[:, 0]
    # Sums of slices: a convolution of one channel is several times slower on a GPU.
    along_rows = sum(tap * padded[..., i : i + side : step] for i, tap in enumerate(taps))
    assert isinstance(along_rows, Tensor)
    found = sum(tap * along_rows[:, i : i + side : step] for i, tap in enumerate(taps))
    assert isinstance(found, Tensor)
    return found


def sample_device_polar(
    pyramids: DevicePyramids, view: Tensor, xy_px: Tensor, window_px: Tensor, grid: PolarGrid
) -> Tensor:
    """Sample upright, standardised polar patches.

    Args:
        pyramids: of B views.
        view: (N,) int64, the view that each patch is of.
        xy_px: (N, 2) centres.
        window_px: (N,) diameters of the outermost ring.
        grid: rings and directions.

    Returns:
        (N, rows, columns + 2 * halo) float32, as `patches.sample_polar` standardises.
    """
    device = view.device
    radii, spacing = (constant(values.tolist(), device) for values in (grid.radii, grid.spacing))
    direction = torch.arange(grid.columns, device=device) * (2 * torch.pi / grid.columns)
    ring_px = window_px[:, None] * radii
    level = (2 * torch.log2(window_px[:, None] * spacing) + 0.5).floor().long()
    level = level.clamp(0, len(pyramids.sides) - 1)
    shrink = 0.5 ** (level // 2).float()
    side = pyramids.sides[level][..., None]
    first = view[:, None] * pyramids.values.shape[1] + pyramids.starts[level]

    def place(centre: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        exact = (centre[:, None, None] + ring_px[..., None] * offset) * shrink[..., None]
        exact = torch.minimum(exact.clamp(min=0), side - 1)
        low = torch.minimum(exact.long(), side - 2)
        return low, exact - low

    left, right_share = place(xy_px[:, 0], direction.cos())
    top, lower_share = place(xy_px[:, 1], direction.sin())
    index = first[..., None] + top * side + left
    values = pyramids.values.view(-1)

    def line(index: Tensor) -> Tensor:
        return torch.lerp(values[index].float(), values[index + 1].float(), right_share)

    patches = torch.lerp(line(index), line(index + side), lower_share) * VALUE_SCALE["uint8"]
    mean = patches.mean((1, 2), keepdim=True)
    variance = patches.var((1, 2), keepdim=True, correction=0)
    patches = (patches - mean) / (variance + VARIANCE_FLOOR).sqrt()
    halo = grid.halo
    return torch.cat((patches[..., -halo:], patches, patches[..., :halo]), -1) if halo else patches
