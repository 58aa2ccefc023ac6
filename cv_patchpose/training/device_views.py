"""Patches of keypoints in many views, made where the networks are trained.

One call makes as many views as minutes of a processor core. The names of the tensors are those
of `dataset.Batch`, and what they hold is drawn as there, but for keypoints that a detector finds
again, which only the processor can look for.
"""

from __future__ import annotations

import itertools
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from cv_patchpose.gradients import REACH, SIFT_SIGMA
from cv_patchpose.grids import PolarGrid
from cv_patchpose.training.device_patches import DevicePyramids, constant, sample_device_polar
from cv_patchpose.training.device_synthesis import (
    Corruption,
    DevicePhotographs,
    draw_homographies,
    map_points,
    render_views,
    send,
)
from cv_patchpose.training.options import SynthesisConfig

DeviceBatch: TypeAlias = dict[str, Tensor]
LEAST_MOMENT = 1e-9  # flat patches have no direction
GRADIENT_GRID = PolarGrid(rows=16, columns=36, rows_per_octave=4, halo=0)


class DeviceViews:
    """Makes the patches of some keypoints of each of some photographs.

    Args:
        photographs: on the device.
        grid: where to sample.
        config: ranges of everything drawn.
        seed: of what is drawn by NumPy; the rest PyTorch draws by its own.
    """

    def __init__(
        self,
        photographs: DevicePhotographs,
        grid: PolarGrid,
        config: SynthesisConfig,
        seed: int | tuple[int, ...],
    ) -> None:
        self.photographs, self.grid, self.config = photographs, grid, config
        self.rng = np.random.default_rng(seed)
        self.device = photographs.images.device
        self.corrupt = Corruption(config, self.device, self.rng)

    @torch.no_grad()
    def make(self, groups: int) -> DeviceBatch:
        """Make views of as many photographs, and the patches of `keypoints_per_view` in each.

        Where fewer are visible in all views of a photograph, some come several times.

        Args:
            groups: photographs.
        """
        config, photographs = self.config, self.photographs
        chosen = self.rng.integers(len(photographs), size=groups)
        centre = (self.rng.random(groups) * photographs.counts[chosen]).astype(int)
        index = send(self.device, chosen)
        centre_px = photographs.xy_px[index, send(self.device, centre)]
        homography, inverse = draw_homographies(centre_px, config.views, config, self.rng)
        zoom, _ = zoom_and_rotation(jacobians(homography, centre_px[:, None])[:, 0])
        exact_views = render_views(
            photographs,
            index.repeat_interleave(config.views),
            inverse.flatten(0, 1),
            zoom.flatten(),
            config.canvas_px,
        )
        clean = np.repeat(self.rng.random(groups) < config.clean, config.views)
        return self._cut(index, homography, exact_views, self.corrupt(exact_views, clean))

    def _cut(
        self, index: Tensor, homography: Tensor, exact_views: Tensor, views: Tensor
    ) -> DeviceBatch:
        config, photographs = self.config, self.photographs
        counts = photographs.device_counts[index]
        kept = self._choose(photographs.xy_px[index], counts, homography)
        xy = photographs.xy_px[index].gather(1, kept[..., None].expand(-1, -1, 2))
        size = photographs.size_px[index].gather(1, kept)
        jacobian = jacobians(homography, xy).flatten(0, 1)
        exact_px = map_points(homography, xy[:, None])[0].transpose(1, 2).flatten(0, 1)
        zoom, _ = zoom_and_rotation(jacobian)
        window = self._windows(size.flatten())[:, None]
        tracked, free = (
            torch.rand(len(window), 1, device=self.device) < share
            for share in (config.tracked, config.free)
        )
        error = config.scale_sigma_octaves * torch.randn_like(zoom)
        anything = config.scale_range_octaves * (2 * torch.rand_like(zoom) - 1)
        followed = zoom.log2() + torch.where(tracked, error, anything)
        window_px = window * torch.where(tracked | free, followed, 0.1 * error).exp2()
        jitter_px = config.jitter * window_px + config.jitter_px
        places = exact_px + torch.randn_like(exact_px) * jitter_px[..., None]
        exact_window = torch.where(tracked, window * zoom, window_px)
        view = torch.arange(len(views), device=self.device).view(-1, 1, config.views)
        view = view.expand(-1, config.keypoints_per_view, -1).flatten()

        def sample(images: Tensor, xy: Tensor, window: Tensor) -> Tensor:
            pyramids = DevicePyramids(images)
            found = sample_device_polar(
                pyramids, view, xy.flatten(0, 1), window.flatten(), self.grid
            )
            return found.view(*window.shape, 1, *found.shape[1:])

        sigma = torch.where(tracked, config.scale_sigma_octaves, torch.inf)
        batch = {
            "patches": sample(views, places, window_px),
            "jacobian": jacobian,
            "log2_window": window_px.log2(),
            "scale_sigma": sigma.expand(-1, config.views).contiguous(),
            "exact_patches": sample(exact_views, exact_px, exact_window),
            "log2_exact_window": exact_window.log2(),
        }
        if config.rotation == "gradients":
            sigma_px = SIFT_SIGMA / config.magnification * window[:, 0]
            photograph = torch.arange(len(index), device=self.device)
            photograph = photograph.repeat_interleave(config.keypoints_per_view)
            pyramids = DevicePyramids(photographs.images[0, index])
            batch["gradients"] = moments_around(pyramids, photograph, xy.flatten(0, 1), sigma_px)
        return batch

    def _choose(self, xy: Tensor, counts: Tensor, homography: Tensor) -> Tensor:
        """Choose keypoints of (G, K, 2) that all views show; returns their (G, B) indices."""
        config = self.config
        mapped, depth = map_points(homography, xy[:, None])
        low, high = config.margin_px, config.canvas_px - 1 - config.margin_px
        inside = (mapped >= low) & (mapped <= high)
        visible = (inside.all(-1) & (depth > 0.2)).all(1)
        visible &= torch.arange(xy.shape[1], device=xy.device) < counts[:, None]
        keys = torch.rand(visible.shape, device=xy.device).where(visible, -1.0)
        most = config.keypoints_per_view
        order = keys.topk(most, 1).indices
        found = visible.sum(1, keepdim=True).clamp(1, most)  # the one at the centre is visible
        return order.gather(1, torch.arange(most, device=xy.device) % found)

    def _windows(self, size_px: Tensor) -> Tensor:
        """Draw windows in the photograph, as `placement` does."""
        config = self.config
        low, high = np.log2(config.window_px)
        corner = torch.rand_like(size_px).mul_(high - low).add_(low).exp2()
        blob = config.magnification * size_px * (0.3 * torch.randn_like(size_px)).exp2()
        window = torch.where(size_px.isnan(), corner, blob)
        return window.clamp(config.window_px[0] / 2, 2 * config.window_px[1])


class DevicePool:
    """Keypoints kept on a device for mixing; the newest take the places of the oldest.

    Args:
        capacity: keypoints kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.filled, self._next = capacity, 0, 0
        self._kept: DeviceBatch = {}

    def put(self, batch: DeviceBatch) -> None:
        """Keep a batch, patches in half precision; no larger than the capacity."""
        count = len(batch["patches"])
        for name, values in batch.items():
            if name not in self._kept:
                dtype = torch.float16 if name.endswith("patches") else values.dtype
                shape = self.capacity, *values.shape[1:]
                self._kept[name] = torch.empty(shape, dtype=dtype, device=values.device)
            room = min(count, self.capacity - self._next)
            self._kept[name][self._next : self._next + room] = values[:room]
            self._kept[name][: count - room] = values[room:]
        self._next = (self._next + count) % self.capacity
        self.filled = min(self.capacity, self.filled + count)

    def draw(self, count: int) -> DeviceBatch:
        """Draw keypoints at random."""
        device = self._kept["patches"].device
        drawn = torch.randint(self.filled, (count,), device=device)
        return {name: values[drawn] for name, values in self._kept.items()}


def jacobians(homography: Tensor, xy: Tensor) -> Tensor:
    """Differentiate (G, V, 3, 3) homographies at (G, K, 2) points; returns (G, K, V, 2, 2)."""
    mapped, depth = map_points(homography, xy[:, None])
    rows = homography[:, :, None, 2, None, :2]
    numerator = homography[:, :, None, :2, :2] - mapped[..., None] * rows
    return (numerator / depth[..., None, None]).transpose(1, 2)


def zoom_and_rotation(jacobian: Tensor) -> tuple[Tensor, Tensor]:
    """Read (...) scales and angles in degrees, as `homography.nearest_similarity` does."""
    (a, b), (c, d) = (row.unbind(-1) for row in jacobian.unbind(-2))
    return (a * d - b * c).abs().sqrt(), torch.rad2deg(torch.atan2(c - b, a + d))


def moments_around(
    pyramids: DevicePyramids, image: Tensor, xy_px: Tensor, sigma_px: Tensor
) -> Tensor:
    """Measure what `gradients.gradient_moments` does, up to a factor, from polar patches.

    A gradient times its distance from the centre is what a patch changes by along log radius and
    angle. The area of a sample grows with the square of the distance, which is so accounted for.

    Args:
        pyramids: of the images.
        image: (N,) int64, the image that each point is of.
        xy_px: (N, 2) points.
        sigma_px: (N,) standard deviations of the Gaussians by which gradients count.
    """
    grid = GRADIENT_GRID
    patches = sample_device_polar(pyramids, image, xy_px, 2 * REACH * sigma_px, grid)
    outward = torch.gradient(patches, dim=1)[0] * (grid.rows_per_octave / np.log(2))
    around = (patches.roll(-1, 2) - patches.roll(1, 2)) * (grid.columns / (4 * np.pi))
    angle = torch.arange(grid.columns, device=image.device) * (2 * np.pi / grid.columns)
    right = outward * angle.cos() - around * angle.sin()
    down = outward * angle.sin() + around * angle.cos()
    distance = constant((2 * REACH * grid.radii).tolist(), image.device)[:, None]
    weight = (-(distance**2) / 2).exp()
    mixed = (weight * right * down).sum((1, 2))
    own = [(weight * values**2).sum((1, 2)) + LEAST_MOMENT for values in (right, down)]
    return torch.stack((own[0], mixed, mixed, own[1]), -1).view(-1, 2, 2)


def rotation_of_gradients(first: Tensor, second: Tensor, moments: Tensor) -> Tensor:
    """Compute what `gradients.rotation_of_gradients` does, on the device."""
    back1, back2 = _adjugate(first), _adjugate(second)
    return zoom_and_rotation(_product(_product(back2.mT, moments), back1))[1]


def rotation_from_photograph(batch: DeviceBatch) -> Tensor:
    """Compute what `Placement.rotation_deg` does, on the device."""
    jacobian = batch["jacobian"]
    if "gradients" not in batch:
        return zoom_and_rotation(jacobian)[1]
    upright = torch.eye(2, device=jacobian.device)
    return rotation_of_gradients(upright, jacobian, batch["gradients"][:, None])


def _adjugate(maps: Tensor) -> Tensor:
    """Return the inverses of (..., 2, 2) times their determinants."""
    (a, b), (c, d) = (row.unbind(-1) for row in maps.unbind(-2))
    return torch.stack((torch.stack((d, -b), -1), torch.stack((-c, a), -1)), -2)


def _product(one: Tensor, other: Tensor) -> Tensor:
    """Multiply (..., 2, 2); as sums, see `map_points`."""
    return (one[..., None] * other[..., None, :, :]).sum(-2)


def compare_views(batch: DeviceBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what `objective.pair_changes` does, on the device."""
    jacobian, log2_window = batch["jacobian"], batch["log2_window"]
    combinations = list(itertools.combinations(range(jacobian.shape[1]), 2))
    pairs = constant([*itertools.chain(*combinations)], jacobian.device).view(-1, 2)
    first, second = pairs.unbind(1)
    one, other = jacobian[:, first], jacobian[:, second]
    _, rotation_deg = zoom_and_rotation(_product(other, _adjugate(one)))
    if "gradients" in batch:
        rotation_deg = rotation_of_gradients(one, other, batch["gradients"][:, None])
    log2_zoom = zoom_and_rotation(jacobian)[0].log2() - log2_window
    return pairs, rotation_deg, log2_zoom[:, second] - log2_zoom[:, first]
