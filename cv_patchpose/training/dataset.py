"""Batches of patches of the same keypoints in several views, made on the fly from photographs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.grids import PolarGrid, SquareGrid
from cv_patchpose.homography import local_jacobian, project
from cv_patchpose.patches import build_pyramid, sample_patches
from cv_patchpose.training.imitation import Teacher
from cv_patchpose.training.options import SynthesisConfig
from cv_patchpose.training.photographs import Photograph, Photographs
from cv_patchpose.training.synthesis import random_view


@dataclasses.dataclass(frozen=True)
class Batch:
    """Patches of B keypoints in V views each.

    Args:
        patches: (B, V, C, H, W) float32, as the network takes them.
        jacobian: (B, V, 2, 2) from photograph to view at the keypoint.
        log2_window: (B, V) log2 of the support window, pixels of the view.
        scale_sigma: (B, V) octaves, standard deviation of what is known of the scale beforehand;
            inf: nothing.
        taught_scale: (B, V, S) float32, a teacher's histograms; None without one.
        taught_orientation: (B, V, R) float32, likewise.
        second_patches: (B, V, C, H, W) float32, the same places on a second grid; None without.
    """

    patches: NDArray[np.float32]
    jacobian: NDArray[np.float64]
    log2_window: NDArray[np.float64]
    scale_sigma: NDArray[np.float64]
    taught_scale: NDArray[np.float32] | None = None
    taught_orientation: NDArray[np.float32] | None = None
    second_patches: NDArray[np.float32] | None = None


def sample_views(
    photograph: Photograph,
    grid: PolarGrid | SquareGrid,
    config: SynthesisConfig,
    rng: np.random.Generator,
    teacher: Teacher | None = None,
    second_grid: PolarGrid | None = None,
) -> Batch | None:
    """Cut the patches of some keypoints out of several random views of one photograph.

    Args:
        photograph: image and candidate keypoints.
        grid: where to sample; square patches are in colour where the photograph is.
        config: ranges of everything drawn.
        rng: random generator.
        teacher: tells its histograms of the same places.
        second_grid: sampled too, for a second network that sees the same places.

    Returns:
        A batch of at most `config.keypoints_per_view` keypoints, or None when no candidate is
        visible in all views.
    """
    if len(photograph.xy_px) == 0:
        return None
    center = photograph.xy_px[rng.integers(len(photograph.xy_px))]
    if rng.random() < config.clean:
        config = dataclasses.replace(config, corruption=0.0)
    views = [random_view(photograph.image, center, config, rng) for _ in range(config.views)]
    chosen = _visible_everywhere(photograph, [v.homography for v in views], config, rng)
    if len(chosen) == 0:
        return None
    xy = photograph.xy_px[chosen]
    window = _reference_windows(photograph.size_px[chosen], config, rng)
    tracked, free = rng.random((2, len(xy))) < ((config.tracked,), (config.free,))
    sigma = np.where(tracked, config.scale_sigma_octaves, np.inf)
    patches, second_patches, jacobians, log2_windows, taught = [], [], [], [], []
    for view in views:
        jacobian = local_jacobian(view.homography, xy)
        zoom = np.sqrt(np.linalg.det(jacobian))
        window_px = window * 2.0 ** _window_changes(zoom, tracked, free, config, rng)
        place = project(view.homography, xy)
        jitter_px = config.jitter * window_px + config.jitter_px
        place = place + rng.normal(size=place.shape) * jitter_px[:, None]
        pyramid = build_pyramid(view.image, color=view.image.ndim == 3)
        sample = functools.partial(
            sample_patches, pyramid, place, window_px, np.zeros(len(xy)), num_threads=1
        )
        patches.append(sample(grid, standardize=isinstance(grid, PolarGrid)))
        if second_grid:
            second_patches.append(sample(second_grid, standardize=True))
        if teacher:
            taught.append(teacher.histograms(pyramid, place, window_px, sigma))
        jacobians.append(jacobian)
        log2_windows.append(np.log2(window_px))
    return Batch(
        patches=np.stack(patches, 1),
        jacobian=np.stack(jacobians, 1),
        log2_window=np.stack(log2_windows, 1),
        scale_sigma=np.repeat(sigma[:, None], config.views, 1),
        taught_scale=np.stack([t.scale for t in taught], 1) if teacher else None,
        taught_orientation=np.stack([t.orientation for t in taught], 1) if teacher else None,
        second_patches=np.stack(second_patches, 1) if second_grid else None,
    )


def _visible_everywhere(
    photograph: Photograph,
    homographies: list[NDArray[np.float64]],
    config: SynthesisConfig,
    rng: np.random.Generator,
) -> NDArray[np.intp]:
    visible = np.ones(len(photograph.xy_px), bool)
    low, high = config.margin_px, config.canvas_px - 1 - config.margin_px
    for homography in homographies:
        depth = photograph.xy_px @ homography[2, :2] + homography[2, 2]
        mapped = project(homography, photograph.xy_px)
        visible &= (depth > 0.2) & ((mapped >= low) & (mapped <= high)).all(1)
    candidates = np.flatnonzero(visible)
    return rng.permutation(candidates)[: config.keypoints_per_view]


def _reference_windows(
    size_px: NDArray[np.float64], config: SynthesisConfig, rng: np.random.Generator
) -> NDArray[np.float64]:
    low, high = np.log2(config.window_px)
    window = 2.0 ** rng.uniform(low, high, len(size_px))
    blob = ~np.isnan(size_px)
    window[blob] = config.magnification * size_px[blob] * 2.0 ** rng.normal(0, 0.3, blob.sum())
    return np.clip(window, config.window_px[0] / 2, 2 * config.window_px[1])


def _window_changes(
    zoom: NDArray[np.float64],
    tracked: NDArray[np.bool_],
    free: NDArray[np.bool_],
    config: SynthesisConfig,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Draw log2 changes of the windows of (N,) keypoints from the photograph to one view.

    Tracked ones follow the zoom as a detector does that measures scale, free ones up to an error
    of any size; the others have one window in pixels whatever the zoom.
    """
    error = rng.normal(0, config.scale_sigma_octaves, len(zoom))
    reach = config.scale_range_octaves
    anything = rng.uniform(-reach, reach, len(zoom))
    followed = np.log2(zoom) + np.where(tracked, error, anything)
    return np.where(tracked | free, followed, 0.1 * error)


class PairStream:
    """Endless batches, mixed over many photographs.

    Args:
        photographs: where the patches come from.
        grid: where to sample.
        config: ranges of everything drawn.
        batch_size: keypoints per batch.
        pool_size: keypoints held for mixing.
        seed: seed of this stream.
        reuse: how often a keypoint is drawn on average.
        teacher: tells its histograms of the same places.
        second_grid: sampled too, see `sample_views`.
    """

    def __init__(
        self,
        photographs: Photographs,
        grid: PolarGrid | SquareGrid,
        config: SynthesisConfig,
        *,
        batch_size: int,
        pool_size: int,
        seed: int | tuple[int, ...],
        reuse: int = 1,
        teacher: Teacher | None = None,
        second_grid: PolarGrid | None = None,
    ) -> None:
        self.photographs = photographs
        self.grid = grid
        self.config = config
        self.batch_size = batch_size
        self.pool_size = pool_size
        self.reuse = reuse
        self.teacher = teacher
        self.second_grid = second_grid
        self.rng = np.random.default_rng(seed)

    def _groups(self) -> Iterator[Batch]:
        found = True
        while found:
            found = False
            for index in self.rng.permutation(len(self.photographs)):
                photograph = self.photographs[int(index)]
                group = sample_views(
                    photograph, self.grid, self.config, self.rng, self.teacher, self.second_grid
                )
                if group is not None:
                    found = True
                    yield group
        raise ValueError(
            f"images: expected photographs with corners or blobs, found none in any of the "
            f"{len(self.photographs)} images"
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches for ever.

        The pool is one block of memory that stays: the next groups take the places of one in
        `reuse` of the keypoints of a batch.
        """
        groups = self._groups()
        group = next(groups)
        pool = _empty_like(group, self.pool_size)
        free = np.arange(self.pool_size)
        while True:
            while len(free):
                count = min(len(free), len(group.patches))
                _put(pool, free[:count], group)
                free = free[count:]
                group = next(groups)
            drawn = self.rng.permutation(self.pool_size)[: self.batch_size]
            yield Batch(**{name: array[drawn] for name, array in pool.items()})
            free = drawn[: -(-self.batch_size // self.reuse)]


def arrays_of(batch: Batch) -> dict[str, NDArray[Any]]:
    """Name the arrays that a batch has."""
    named = ((field.name, getattr(batch, field.name)) for field in dataclasses.fields(batch))
    return {name: array for name, array in named if array is not None}


def _empty_like(batch: Batch, count: int) -> dict[str, NDArray[Any]]:
    arrays = arrays_of(batch).items()
    return {name: np.empty((count, *a.shape[1:]), a.dtype) for name, a in arrays}


def _put(pool: dict[str, NDArray[Any]], rows: NDArray[np.intp], group: Batch) -> None:
    for name, source in arrays_of(group).items():
        pool[name][rows] = source[: len(rows)]
