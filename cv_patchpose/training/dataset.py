"""Batches of patches of the same keypoints in several views, made on the fly from photographs."""

from __future__ import annotations

import dataclasses
import functools
import os
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.patches import PolarGrid, build_pyramid, sample_polar
from cv_patchpose.training.options import SynthesisConfig
from cv_patchpose.training.synthesis import local_jacobian, random_view, warp_points

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
SMALLEST_SIDE_PX = 96


@dataclasses.dataclass(frozen=True)
class Batch:
    """Patches of B keypoints in V views each.

    Args:
        patches: (B, V, 1, H, W) float32, standardised.
        jacobian: (B, V, 2, 2) from photograph to view at the keypoint.
        log2_window: (B, V) log2 of the support window, pixels of the view.
    """

    patches: NDArray[np.float32]
    jacobian: NDArray[np.float64]
    log2_window: NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A grey photograph and its candidate keypoints.

    Args:
        image: (H, W) uint8.
        xy_px: (K, 2) places of the candidates.
        size_px: (K,) diameters; NaN for corners, which have no scale of their own.
    """

    image: NDArray[np.uint8]
    xy_px: NDArray[np.float64]
    size_px: NDArray[np.float64]


def find_images(folder: Path | str) -> list[Path]:
    """List the image files below a folder, sorted.

    Raises:
        ValueError: the folder does not exist or holds no image file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"images: expected a folder of photographs, got {str(folder)!r}")
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"images: expected image files ({kinds}) below {folder}, got none")
    return found


def candidate_keypoints(
    image: NDArray[np.uint8],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find corners (at two resolutions) and blobs, the places that detectors propose.

    Args:
        image: (H, W) uint8.

    Returns:
        (K, 2) places and (K,) sizes, NaN for corners.
    """
    places, sizes = [np.empty((0, 2))], [np.empty(0)]
    for factor in (1, 2):
        small = image if factor == 1 else cv2.pyrDown(image)
        corners = cv2.goodFeaturesToTrack(small, 200, 0.01, 5, useHarrisDetector=factor == 1)
        if corners is not None:
            places.append(corners.reshape(-1, 2).astype(np.float64) * factor)
            sizes.append(np.full(len(corners), np.nan))
    blobs = cv2.SIFT.create(nfeatures=500).detect(image)
    if blobs:
        points = np.array([(*k.pt, k.size) for k in blobs])
        points = points[np.unique(points, axis=0, return_index=True)[1]]
        places.append(points[:, :2])
        sizes.append(points[:, 2])
    return np.concatenate(places), np.concatenate(sizes)


class PhotographFolder:
    """Photographs in memory, in grey; unreadable and tiny files are skipped and counted.

    Args:
        paths: image files.
        long_side_px: larger photographs are shrunk to this.
    """

    def __init__(self, paths: list[Path], *, long_side_px: int = 640) -> None:
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(functools.partial(_read_gray, long_side_px=long_side_px), paths))
        usable = [(p, i) for p, i in zip(paths, images, strict=True) if i is not None]
        self.paths = [path for path, _ in usable]
        self.skipped = len(paths) - len(usable)
        self._images = [image for _, image in usable]
        self._cache: dict[int, Photograph] = {}

    def __len__(self) -> int:
        """Count the usable photographs."""
        return len(self._images)

    def __getitem__(self, index: int) -> Photograph:
        """Return a photograph; its keypoints are found at the first visit."""
        if index not in self._cache:
            image = self._images[index]
            self._cache[index] = Photograph(image, *candidate_keypoints(image))
        return self._cache[index]


def _read_gray(path: Path, long_side_px: int) -> NDArray[np.uint8] | None:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
    if image is None:
        return None
    shrink = long_side_px / max(image.shape)
    if shrink < 1:
        image = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    return np.asarray(image, np.uint8) if min(image.shape) >= SMALLEST_SIDE_PX else None


def sample_views(
    photograph: Photograph,
    grid: PolarGrid,
    config: SynthesisConfig,
    rng: np.random.Generator,
) -> Batch | None:
    """Cut the patches of some keypoints out of several random views of one photograph.

    Args:
        photograph: image and candidate keypoints.
        grid: where to sample.
        config: ranges of everything drawn.
        rng: random generator.

    Returns:
        A batch of at most `config.keypoints_per_view` keypoints, or None when no candidate is
        visible in all views.
    """
    if len(photograph.xy_px) == 0:
        return None
    center = photograph.xy_px[rng.integers(len(photograph.xy_px))]
    views = [random_view(photograph.image, center, config, rng) for _ in range(config.views)]
    chosen = _visible_everywhere(photograph, [v.homography for v in views], config, rng)
    if len(chosen) == 0:
        return None
    xy = photograph.xy_px[chosen]
    window = _reference_windows(photograph.size_px[chosen], config, rng)
    patches, jacobians, log2_windows = [], [], []
    for view in views:
        jacobian = local_jacobian(view.homography, xy)
        zoom = np.sqrt(np.linalg.det(jacobian))
        window_px = window * zoom * 2.0 ** _scale_error(zoom, config, rng)
        place = warp_points(view.homography, xy)
        sigma = config.jitter * window_px + config.jitter_px
        place = place + rng.normal(size=place.shape) * sigma[:, None]
        start_deg = np.zeros(len(xy))
        pyramid = build_pyramid(view.image)
        patches.append(
            sample_polar(
                pyramid, place, window_px, start_deg, grid, standardize=True, num_threads=1
            )
        )
        jacobians.append(jacobian)
        log2_windows.append(np.log2(window_px))
    return Batch(np.stack(patches, 1), np.stack(jacobians, 1), np.stack(log2_windows, 1))


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
        mapped = warp_points(homography, photograph.xy_px)
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


def _scale_error(
    zoom: NDArray[np.float64], config: SynthesisConfig, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw log2 errors of the windows: that of a detector, any, or a window of fixed pixels."""
    count = len(zoom)
    error = rng.normal(0, config.scale_sigma_octaves, count)
    kind = rng.random(count)
    anything = rng.uniform(-config.scale_range_octaves, config.scale_range_octaves, count)
    error = np.where(kind < 0.4, anything, error)
    fixed = np.clip(-np.log2(zoom), -config.scale_range_octaves, config.scale_range_octaves)
    return np.where(kind > 0.7, fixed + 0.3 * error, error)


class PairStream:
    """Endless batches from a folder of photographs, mixed over many photographs.

    Args:
        photographs: the folder.
        grid: where to sample.
        config: ranges of everything drawn.
        batch_size: keypoints per batch.
        pool_size: keypoints held for mixing.
        seed: seed of this stream.
    """

    def __init__(
        self,
        photographs: PhotographFolder,
        grid: PolarGrid,
        config: SynthesisConfig,
        *,
        batch_size: int,
        pool_size: int,
        seed: int | tuple[int, ...],
    ) -> None:
        self.photographs = photographs
        self.grid = grid
        self.config = config
        self.batch_size = batch_size
        self.pool_size = pool_size
        self.rng = np.random.default_rng(seed)

    def _groups(self) -> Iterator[Batch]:
        found = True
        while found:
            found = False
            for index in self.rng.permutation(len(self.photographs)):
                group = sample_views(self.photographs[int(index)], self.grid, self.config, self.rng)
                if group is not None:
                    found = True
                    yield group
        raise ValueError(
            f"images: expected photographs with corners or blobs, found none in any of the "
            f"{len(self.photographs)} images"
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches for ever.

        The pool is one block of memory that stays: what a batch takes out is filled by the
        next groups.
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
            free = self.rng.permutation(self.pool_size)[: self.batch_size]
            yield Batch(*(array[free] for array in _arrays(pool)))


def _arrays(batch: Batch) -> tuple[NDArray[Any], ...]:
    return batch.patches, batch.jacobian, batch.log2_window


def _empty_like(batch: Batch, count: int) -> Batch:
    return Batch(*(np.empty((count, *a.shape[1:]), a.dtype) for a in _arrays(batch)))


def _put(pool: Batch, rows: NDArray[np.intp], group: Batch) -> None:
    for target, source in zip(_arrays(pool), _arrays(group), strict=True):
        target[rows] = source[: len(rows)]


def prefetch(streams: list[PairStream], depth: int) -> Iterator[Batch]:
    """Make batches in background threads, one a stream, in the streams' fixed rotation.

    OpenCV and the sampler release the interpreter lock, so threads are enough.
    """
    queues: list[queue.Queue[Batch | BaseException]] = [queue.Queue(depth) for _ in streams]
    for stream, waiting in zip(streams, queues, strict=True):
        threading.Thread(target=_fill, args=(stream, waiting), daemon=True).start()
    while True:
        for waiting in queues:
            batch = waiting.get()
            if isinstance(batch, BaseException):
                raise batch
            yield batch


def _fill(stream: PairStream, waiting: queue.Queue[Batch | BaseException]) -> None:
    try:
        for batch in stream:
            waiting.put(batch)
    except BaseException as error:  # carried over to the consumer
        waiting.put(error)


def default_streams() -> int:
    """Choose one producer thread for every two processors."""
    return max(1, (os.cpu_count() or 2) // 2)
