"""The anti-aliased image pyramid that patches are read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[Any]

MIN_LEVEL_SIDE_PX = 4
LARGEST_VALUE = 1e18  # the square of it still fits into single precision


@dataclass(frozen=True)
class ImagePyramid:
    """An image and its blurred and halved copies; safe to share between threads.

    Level 2o is the image after o halvings: its pixel i lies at base pixel i * 2**o. Level 2o + 1
    has the same pixels, blurred by [1 4 1] / 6. In pixels of their octave the two have the blur
    variance 1/3 and 2/3, octave after octave: the kernel's variance is 1/3, and halving, which
    blurs by variance 1 first, turns s^2 into (s^2 + 1) / 4, whose fixed point is 1/3.

    Attributes:
        levels: C-contiguous arrays of one dtype, base first; (H, W) if grey, (H, W, 3) RGB if
            color. The base may share memory with the image. A side of one pixel is doubled, which
            makes no difference where borders are replicated.
        color: whether the levels are RGB.
    """

    levels: list[Image]
    color: bool


def build_pyramid(image: object, *, color: bool = False) -> ImagePyramid:
    """Build the pyramid of an image, once for all its keypoints.

    Borders are replicated. The dtype is kept, but bool becomes uint8 (0 and 255). The image is
    never written to. The pyramid ends before a side falls below 4 pixels.

    Args:
        image: (H, W), (H, W, 1), BGR (H, W, 3) or BGRA (H, W, 4) array or cv2.UMat; bool, uint8,
            uint16 or float32; any strides.
        color: keep three channels, as RGB, instead of turning grey.

    Raises:
        TypeError: not an array.
        ValueError: shape, dtype, or a value that is not finite or beyond 1e18.

    Source: P. J. Burt, E. H. Adelson, IEEE Trans. Communications 1983,
        doi:10.1109/TCOM.1983.1095851, for the halving; the half octaves are ours.
    """
    levels: list[Image] = []
    octave = convert_channels(_check_image(image), color=color)
    kernel = np.array([1, 4, 1], np.float32) / 6
    while True:
        blurred = cv2.sepFilter2D(octave, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
        levels += [octave, blurred]
        if (min(octave.shape[:2]) + 1) // 2 < MIN_LEVEL_SIDE_PX:
            return ImagePyramid(levels, color)
        octave = cv2.pyrDown(octave, borderType=cv2.BORDER_REPLICATE)


def read_pixels(image: object) -> Image:
    """Return an image as (H, W) or (H, W, 3 or 4) uint8, uint16 or float32; bool becomes uint8.

    Args:
        image: (H, W), (H, W, 1), BGR or BGRA array or cv2.UMat.

    Raises:
        TypeError: not an array.
        ValueError: shape or dtype.
    """
    array = image.get() if isinstance(image, cv2.UMat) else image
    if not isinstance(array, np.ndarray):
        raise TypeError(f"image: expected an array or cv2.UMat, got {type(image).__name__}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ValueError(f"image: expected (H, W) or (H, W, 1, 3 or 4), got {array.shape}")
    if array.size == 0:
        raise ValueError(f"image: expected at least one pixel, got {array.shape}")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"image: expected bool, uint8, uint16 or float32, got {array.dtype}")
    return array


def stretch_contrast(image: object) -> Image:
    """Stretch a uint16 or float32 image that uses little of its range, or goes beyond it.

    What is noise and what is texture is told by the contrast, which in 10 or 12 bits of 16, in
    thermal images, or in floats from 0 to 255 is not that of a photograph in 8 bits. Images of the
    other dtypes, with values that are not finite, or that span a quarter of their range or more
    within it are returned as `read_pixels` has them. An image of a single value becomes 0.

    Args:
        image: As for `build_pyramid`.

    Returns:
        The image, as `read_pixels` gives it; without alpha channel if it was stretched.

    Raises:
        TypeError: not an array.
        ValueError: shape or dtype.
    """
    array = read_pixels(image)
    if array.dtype == np.uint8:
        return array
    pixels = array[..., :3] if array.ndim == 3 else array  # an alpha channel has a range of its own
    low, high = (float(value) for value in (pixels.min(), pixels.max()))
    full = 65535.0 if array.dtype == np.uint16 else 1.0
    usual = 0 <= low <= high <= full and high - low >= full / 4
    if usual or not high - low < np.inf:  # NaN fails as well
        return array
    gain = full / ((high - low) or 1)
    stretched: Image = (pixels.astype(np.float32) - np.float32(low)) * np.float32(gain)
    stretched = np.clip(stretched, 0, np.float32(full))
    return stretched if full == 1 else np.rint(stretched).astype(np.uint16)


def check_unit_range(image: Image) -> None:
    """Raise ValueError for a float32 image whose values are not in [0, 1], or not finite."""
    if image.dtype != np.float32:
        return
    low, high = image.min(), image.max()
    if not 0 <= low <= high <= 1:  # NaN fails as well
        raise ValueError(f"image: expected float32 values in [0, 1], got {low:g} to {high:g}")


def convert_channels(image: Image, *, color: bool) -> Image:
    """Turn (H, W), BGR or BGRA into (H, W) or, in color, RGB."""
    channels = image.shape[2] if image.ndim == 3 else 1
    if channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if color else image
    codes = {
        (3, False): cv2.COLOR_BGR2GRAY,
        (4, False): cv2.COLOR_BGRA2GRAY,
        (3, True): cv2.COLOR_BGR2RGB,
        (4, True): cv2.COLOR_BGRA2RGB,
    }
    return cv2.cvtColor(image, codes[channels, color])


def _check_image(image: object) -> Image:
    """Return the image as a C-contiguous array of finite values and 2 x 2 pixels or more."""
    array = read_pixels(image)
    if array.dtype == np.float32 and not _in_range(array):
        value = array[~(np.abs(array) < LARGEST_VALUE)][0]
        raise ValueError(f"image: expected finite values below {LARGEST_VALUE:g}, got {value:g}")
    for axis in (0, 1):
        if array.shape[axis] == 1:
            array = np.repeat(array, 2, axis)
    return np.ascontiguousarray(array)


def _in_range(array: Image) -> bool:
    """Tell whether all values are finite and below 1e18, either way."""
    return bool(cv2.checkRange(array, minVal=-LARGEST_VALUE, maxVal=LARGEST_VALUE)[0])
