"""Patches around keypoints, sampled on polar and on square grids.

The functions whose names end in `_reference` say in NumPy what is sampled. The C++ kernel
`cv_patchpose._core` computes the same, faster; where it is missing they take its place.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from cv_patchpose.grids import PolarGrid, SquareGrid, check_integer
from cv_patchpose.pyramid import Image, ImagePyramid, build_pyramid

__all__ = [
    "ImagePyramid",
    "PolarGrid",
    "SquareGrid",
    "build_pyramid",
    "sample_patches",
    "sample_polar",
    "sample_polar_reference",
    "sample_square",
    "sample_square_reference",
]

Float64: TypeAlias = NDArray[np.float64]
Levels: TypeAlias = NDArray[np.int64]
Patches: TypeAlias = NDArray[np.float32]

VALUE_SCALE = {"uint8": 1 / 255, "uint16": 1 / 65535, "float32": 1.0}
VARIANCE_FLOOR = (2 / 255) ** 2


def _load_kernel() -> ModuleType | None:
    """Return the compiled sampler, or None and a line in the log where it was not built."""
    try:
        return importlib.import_module("cv_patchpose._core")
    except ImportError as error:
        import logging  # which takes milliseconds that are seldom needed

        logging.getLogger(__name__).warning("sampling with NumPy, which is slower: %s", error)
        return None


_core = _load_kernel()


def sample_patches(
    pyramid: ImagePyramid,
    xy_px: ArrayLike,
    window_px: ArrayLike,
    angle_deg: ArrayLike,
    grid: PolarGrid | SquareGrid,
    *,
    standardize: bool = False,
    num_threads: int | None = None,
) -> Patches:
    """Sample a patch around each keypoint on whichever grid is given.

    Arguments and errors are those of `sample_polar` and `sample_square`.

    Raises:
        ValueError: square patches to standardize.
    """
    if isinstance(grid, PolarGrid):
        return sample_polar(
            pyramid, xy_px, window_px, angle_deg, grid,
            standardize=standardize, num_threads=num_threads,
        )  # fmt: skip
    if standardize:
        raise ValueError("standardize: expected False with a square grid, got True")
    return sample_square(pyramid, xy_px, window_px, angle_deg, grid, num_threads=num_threads)


def sample_polar(
    pyramid: ImagePyramid,
    xy_px: ArrayLike,
    window_px: ArrayLike,
    angle_deg: ArrayLike,
    grid: PolarGrid,
    *,
    standardize: bool = False,
    num_threads: int | None = None,
) -> Patches:
    """Sample a polar patch around each keypoint.

    Each ring is read bilinearly from the level nearest to the distance between its samples, which
    keeps large windows from aliasing. Outside the image its border is replicated.

    Args:
        pyramid: of a grey image.
        xy_px: (N, 2) centres, pixels; the centre of pixel (0, 0) is (0, 0).
        window_px: (N,) diameter of the outermost ring, pixels.
        angle_deg: (N,) direction of column 0, degrees clockwise on screen.
        grid: rings and directions.
        standardize: per patch, subtract the mean and divide by sqrt(variance + (2 / 255)^2), both
            taken without the halo.
        num_threads: at most this many; None asks cv2.getNumThreads().

    Returns:
        (N, 1, rows, columns + 2 * halo) float32 in [0, 1] (uint8 / 255, uint16 / 65535, float32 as
        is), or standardized.

    Raises:
        TypeError: no pyramid, or another grid.
        ValueError: a shape, or a value that is not finite, naming the argument.
    """
    _check_kinds(pyramid, grid, PolarGrid)
    if pyramid.color:
        raise ValueError("pyramid: expected a grey pyramid, got color")
    xy, window, angle = _check_keypoints(xy_px, window_px, angle_deg)
    threads = _check_threads(num_threads)
    if _core is None:
        return sample_polar_reference(pyramid, xy, window, angle, grid, standardize=standardize)
    rings = {"radii": grid.radii, "spacing": grid.spacing, "columns": grid.columns}
    options = {"halo": grid.halo, "standardize": standardize, "num_threads": threads}
    patches: Patches = _core.sample_polar(pyramid.levels, xy, window, angle, **rings, **options)
    return patches


def sample_square(
    pyramid: ImagePyramid,
    xy_px: ArrayLike,
    window_px: ArrayLike,
    angle_deg: ArrayLike,
    grid: SquareGrid,
    *,
    num_threads: int | None = None,
) -> Patches:
    """Sample a square patch around each keypoint, upright in the keypoint's own frame.

    Read as in `sample_polar`, from one level for the whole patch.

    Args:
        pyramid: of a grey or color image.
        xy_px: (N, 2) centres, pixels; the centre of pixel (0, 0) is (0, 0).
        window_px: (N,) side of the square, pixels.
        angle_deg: (N,) direction of the patch's rows, degrees clockwise on screen.
        grid: samples along a side.
        num_threads: at most this many; None asks cv2.getNumThreads().

    Returns:
        (N, C, size, size) float32 in [0, 1] (uint8 / 255, uint16 / 65535, float32 as is); C is 1
        for grey and 3 (RGB) for color pyramids.

    Raises:
        TypeError: no pyramid, or another grid.
        ValueError: a shape, or a value that is not finite, naming the argument.
    """
    _check_kinds(pyramid, grid, SquareGrid)
    xy, window, angle = _check_keypoints(xy_px, window_px, angle_deg)
    threads = _check_threads(num_threads)
    if _core is None:
        return sample_square_reference(pyramid, xy, window, angle, grid)
    patches: Patches = _core.sample_square(
        pyramid.levels, xy, window, angle, size=grid.size, num_threads=threads
    )
    return patches


def sample_polar_reference(
    pyramid: ImagePyramid,
    xy_px: Float64,
    window_px: Float64,
    angle_deg: Float64,
    grid: PolarGrid,
    *,
    standardize: bool = False,
) -> Patches:
    """Define `sample_polar`, in NumPy; the arguments are arrays that it has checked."""
    column = np.arange(-grid.halo, grid.columns + grid.halo) % grid.columns
    direction = np.radians(angle_deg[:, None, None] + column * 360 / grid.columns)
    radius = (window_px[:, None] * grid.radii)[:, :, None]
    x = xy_px[:, 0, None, None] + radius * np.cos(direction)
    y = xy_px[:, 1, None, None] + radius * np.sin(direction)
    level = _choose_levels(pyramid, window_px[:, None] * grid.spacing)
    patches = _sample_levels(pyramid, level, x, y)[..., 0][:, None]
    if standardize:
        inner = patches[..., grid.halo : grid.halo + grid.columns]
        mean = inner.mean(axis=(2, 3), keepdims=True)
        patches = (patches - mean) / np.sqrt(inner.var(axis=(2, 3), keepdims=True) + VARIANCE_FLOOR)
    return patches.astype(np.float32)


def sample_square_reference(
    pyramid: ImagePyramid, xy_px: Float64, window_px: Float64, angle_deg: Float64, grid: SquareGrid
) -> Patches:
    """Define `sample_square`, in NumPy; the arguments are arrays that it has checked."""
    tick = np.arange(grid.size) - (grid.size - 1) / 2
    spacing = (window_px / grid.size)[:, None, None]
    right, down = spacing * tick[None, None, :], spacing * tick[None, :, None]
    cos = np.cos(np.radians(angle_deg))[:, None, None]
    sin = np.sin(np.radians(angle_deg))[:, None, None]
    x = xy_px[:, 0, None, None] + right * cos - down * sin
    y = xy_px[:, 1, None, None] + right * sin + down * cos
    level = _choose_levels(pyramid, np.repeat(spacing[:, :, 0], grid.size, axis=1))
    patches = _sample_levels(pyramid, level, x, y)
    return np.ascontiguousarray(np.moveaxis(patches, -1, 1), np.float32)


def _choose_levels(pyramid: ImagePyramid, spacing_px: Float64) -> Levels:
    """Return the half octave nearest to the distance between samples, within the pyramid."""
    half_octave = np.floor(2 * np.log2(spacing_px) + 0.5)
    return np.clip(half_octave, 0, len(pyramid.levels) - 1).astype(np.int64)


def _sample_levels(pyramid: ImagePyramid, level: Levels, x: Float64, y: Float64) -> Float64:
    """Read lines of samples, (N, rows, columns, C); `level` (N, rows) belongs to whole lines."""
    channels = 3 if pyramid.color else 1
    values = np.empty((*x.shape, channels))
    for index in np.unique(level):
        lines = level == index
        scale = 0.5 ** (index // 2)
        values[lines] = _sample_bilinear(pyramid.levels[index], x[lines] * scale, y[lines] * scale)
    return values * VALUE_SCALE[pyramid.levels[0].dtype.name]


def _sample_bilinear(image: Image, x: Float64, y: Float64) -> Float64:
    """Interpolate (H, W) or (H, W, C) at (x, y), clamped to the image; return (..., C)."""
    height, width = image.shape[:2]
    pixels = image.reshape(height, width, -1)
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    left = np.minimum(x.astype(np.int64), width - 2)
    top = np.minimum(y.astype(np.int64), height - 2)
    wx, wy = (x - left)[..., None], (y - top)[..., None]
    upper = pixels[top, left] * (1 - wx) + pixels[top, left + 1] * wx
    lower = pixels[top + 1, left] * (1 - wx) + pixels[top + 1, left + 1] * wx
    return np.asarray(upper * (1 - wy) + lower * wy, np.float64)


def _check_kinds(pyramid: object, grid: object, kind: type) -> None:
    """Raise TypeError for an image in the place of its pyramid, or another grid."""
    if not isinstance(pyramid, ImagePyramid):
        raise TypeError(
            f"pyramid: expected what build_pyramid returns, got {type(pyramid).__name__}"
        )
    if not isinstance(grid, kind):
        raise TypeError(f"grid: expected a {kind.__name__}, got {type(grid).__name__}")


def _check_keypoints(
    xy_px: ArrayLike, window_px: ArrayLike, angle_deg: ArrayLike
) -> tuple[Float64, Float64, Float64]:
    """Return the arguments as finite float64 arrays, (N, 2), (N,) and (N,)."""
    xy = _as_finite("xy_px", xy_px)
    if xy.shape == (0,):
        xy = xy.reshape(0, 2)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"xy_px: expected (N, 2), got {xy.shape}")
    window, angle = _as_finite("window_px", window_px), _as_finite("angle_deg", angle_deg)
    for name, values in (("window_px", window), ("angle_deg", angle)):
        if values.shape != (len(xy),):
            raise ValueError(f"{name}: expected ({len(xy)},) as in xy_px, got {values.shape}")
    if (window <= 0).any():
        raise ValueError(f"window_px: expected values above 0, got {window.min()}")
    return xy, window, angle


def _as_finite(name: str, values: ArrayLike) -> Float64:
    """Return the values as float64; ValueError if they are no numbers or not finite."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected an array of numbers, got {values!r}") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    return array


def _check_threads(num_threads: int | None) -> int:
    """Return the number of threads to use."""
    count = max(1, cv2.getNumThreads()) if num_threads is None else num_threads
    check_integer("num_threads", count, 1)
    return count
