"""Batches of patches of the same keypoints in several views, made on the fly from photographs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.grids import PolarGrid, SquareGrid
from cv_patchpose.patches import ImagePyramid, build_pyramid, sample_patches
from cv_patchpose.training.imitation import Teacher
from cv_patchpose.training.options import SynthesisConfig
from cv_patchpose.training.photographs import Photograph, Photographs
from cv_patchpose.training.placement import place_keypoints
from cv_patchpose.training.synthesis import Image, random_view


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
        exact_patches: (B, V, C, H, W) float32, the true places in the views before they were
            spoilt; None unless asked for.
        log2_exact_window: (B, V) log2 of the windows of those: of keypoints whose scale is known
            beforehand, windows that show the same in all views; of the others those of `patches`.
        gradients: (B, 2, 2), see `Placement`; None where the rotation is that of the points.
    """

    patches: NDArray[np.float32]
    jacobian: NDArray[np.float64]
    log2_window: NDArray[np.float64]
    scale_sigma: NDArray[np.float64]
    taught_scale: NDArray[np.float32] | None = None
    taught_orientation: NDArray[np.float32] | None = None
    exact_patches: NDArray[np.float32] | None = None
    log2_exact_window: NDArray[np.float64] | None = None
    gradients: NDArray[np.float64] | None = None


def sample_views(
    photograph: Photograph,
    grid: PolarGrid | SquareGrid,
    config: SynthesisConfig,
    rng: np.random.Generator,
    teacher: Teacher | None = None,
    exact: bool = False,
) -> Batch | None:
    """Cut the patches of some keypoints out of several random views of one photograph.

    Args:
        photograph: image and candidate keypoints.
        grid: where to sample; square patches are in colour where the photograph is.
        config: ranges of everything drawn.
        rng: random generator.
        teacher: tells its histograms of the same places.
        exact: give the patches of the true places in unspoilt views too.

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
    placed = place_keypoints(photograph, views, config, rng)
    if placed is None:
        return None
    pyramids = [_pyramid(view.image) for view in views]
    told = teacher.tell(views, pyramids, placed) if teacher else None
    truth: dict[str, NDArray[Any]] = {}
    if exact:
        known = np.isfinite(placed.scale_sigma)[:, None]
        window_px = np.where(known, placed.exact_window_px, placed.window_px)
        unspoilt = [_pyramid(view.unspoilt) for view in views]
        truth["exact_patches"] = _cut(unspoilt, placed.exact_px, window_px, grid)
        truth["log2_exact_window"] = np.log2(window_px)
    return Batch(
        patches=_cut(pyramids, placed.xy_px, placed.window_px, grid),
        jacobian=placed.jacobian,
        log2_window=np.log2(placed.window_px),
        scale_sigma=np.repeat(placed.scale_sigma[:, None], config.views, 1),
        taught_scale=told.scale if told else None,
        taught_orientation=told.orientation if told else None,
        gradients=placed.gradients,
        **truth,
    )


def _pyramid(image: Image) -> ImagePyramid:
    return build_pyramid(image, color=image.ndim == 3)


def _cut(
    pyramids: Sequence[ImagePyramid],
    xy_px: NDArray[np.float64],
    window_px: NDArray[np.float64],
    grid: PolarGrid | SquareGrid,
) -> NDArray[np.float32]:
    """Sample (B, V, 2) places of V views, in (B, V) windows."""
    upright = np.zeros(len(xy_px))
    standardize = isinstance(grid, PolarGrid)
    patches = [
        sample_patches(p, xy, w, upright, grid, standardize=standardize, num_threads=1)
        for p, xy, w in zip(pyramids, xy_px.swapaxes(0, 1), window_px.T, strict=True)
    ]
    return np.stack(patches, 1)


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
        exact: see `sample_views`.
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
        exact: bool = False,
    ) -> None:
        self.photographs = photographs
        self.grid = grid
        self.config = config
        self.batch_size = batch_size
        self.pool_size = pool_size
        self.reuse = reuse
        self.teacher = teacher
        self.exact = exact
        self.rng = np.random.default_rng(seed)

    def _groups(self) -> Iterator[Batch]:
        found = True
        while found:
            found = False
            for index in self.rng.permutation(len(self.photographs)):
                photograph = self.photographs[int(index)]
                group = sample_views(
                    photograph, self.grid, self.config, self.rng, self.teacher, self.exact
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
        group, used = next(groups), 0
        pool = _empty_like(group, self.pool_size)
        free = np.arange(self.pool_size)
        while True:
            while len(free):
                if used == len(group.patches):
                    group, used = next(groups), 0
                count = min(len(free), len(group.patches) - used)
                _put(pool, free[:count], group, used)
                free, used = free[count:], used + count
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


def _put(pool: dict[str, NDArray[Any]], rows: NDArray[np.intp], group: Batch, first: int) -> None:
    for name, source in arrays_of(group).items():
        pool[name][rows] = source[first : first + len(rows)]
