"""The image pyramid: geometry, dtypes, channels and the images it refuses."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from cv_patchpose.pyramid import build_pyramid, stretch_contrast


def variance_px(level, position):
    """Blur of a lone dot at (x, y), along x: its variance in pixels of the level."""
    profile = level.sum(axis=0) / level.sum()
    return (profile * (np.arange(len(profile)) - position) ** 2).sum()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(64, 48), (65, 49), (4, 100), (1, 1), (3, 9)], ids=str)
def test_levels_come_in_pairs_of_half_the_size(shape, dtype):
    levels = build_pyramid(np.ones(shape, dtype)).levels
    assert len(levels) % 2 == 0
    for octave, (sharp, blurred) in enumerate(zip(levels[::2], levels[1::2], strict=True)):
        expected = tuple(-(-max(side, 2) // 2**octave) for side in shape)
        assert sharp.shape == blurred.shape == expected
        assert sharp.dtype == blurred.dtype == dtype
        assert sharp.flags.c_contiguous
        assert blurred.flags.c_contiguous
    last = min(levels[-1].shape)
    assert (last + 1) // 2 < 4
    assert last >= min(4, max(min(shape), 2))


def test_a_dot_on_an_even_pixel_lands_on_half_of_it():
    image = np.zeros((128, 128), np.float32)
    image[48, 80] = 1
    levels = build_pyramid(image).levels
    for index in range(8):
        peak = np.unravel_index(levels[index].argmax(), levels[index].shape)
        assert peak == (48 >> index // 2, 80 >> index // 2)


def test_blur_follows_the_half_octave_ladder():
    image = np.zeros((512, 512), np.float32)
    image[256, 256] = 1
    added = 1 / 3  # of the pixel itself
    for index, level in enumerate(build_pyramid(image).levels[:10]):
        octave, half = divmod(index, 2)
        variance = variance_px(level, 256 / 2**octave) + added / 4**octave
        assert_allclose(variance, (1 + half) / 3, rtol=1e-4)


def test_borders_are_replicated():
    image = np.zeros((64, 64), np.float32)
    image[:, 0] = 1
    halved = build_pyramid(image).levels[2]
    # The binomial kernel at column 0 covers three copies of it and two pixels of nought.
    assert_allclose(halved[:, 0], 11 / 16, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_flat_image_stays_flat(dtype):
    value = np.iinfo(dtype).max if dtype != "float32" else 1
    for level in build_pyramid(np.full((70, 50), value, dtype)).levels:
        assert_allclose(level, value, rtol=1e-6)


def test_channels():
    bgr = np.zeros((8, 8, 3), np.uint8)
    bgr[...] = (10, 20, 200)
    bgra = np.dstack([bgr, np.full((8, 8), 7, np.uint8)])
    gray = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    for image in (bgr, bgra, cv2.UMat(bgr)):
        assert_array_equal(build_pyramid(image).levels[0], gray)
        assert_array_equal(build_pyramid(image, color=True).levels[0], bgr[..., ::-1])
    for image in (gray, gray[..., None], cv2.UMat(gray)):
        assert_array_equal(build_pyramid(image).levels[0], gray)
        assert_array_equal(build_pyramid(image, color=True).levels[0], np.dstack([gray] * 3))


@pytest.mark.parametrize("value", [0.5, 300, -7, 1e30])
def test_floats_of_one_value_are_stretched_to_black(value):
    assert not stretch_contrast(np.full((9, 8), value, np.float32)).any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_stretched(value):
    image = np.full((9, 8), value, np.float32)
    assert stretch_contrast(image) is image


def test_stretching_reads_an_image_once():
    image = np.eye(5, dtype=np.uint8)
    found = stretch_contrast(cv2.UMat(image))
    assert_array_equal(found, image)
    assert stretch_contrast(found) is found


def test_bool_becomes_black_and_white():
    image = np.eye(5, dtype=bool)
    assert_array_equal(build_pyramid(image).levels[0], np.eye(5, dtype=np.uint8) * 255)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ("photo.jpg", TypeError, "image: expected an array or cv2.UMat, got str"),
        (None, TypeError, "image: expected an array or cv2.UMat, got NoneType"),
        ([[1, 2], [3, 4]], TypeError, "image: expected an array or cv2.UMat, got list"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"image: expected \(H, W\) .* got \(4, 4, 2\)"),
        (np.zeros(4, np.uint8), ValueError, r"image: expected \(H, W\) .* got \(4,\)"),
        (np.zeros((0, 4), np.uint8), ValueError, r"image: expected at least one pixel, got"),
        (np.zeros((4, 4), np.float64), ValueError, "image: expected bool, .* got float64"),
        (np.zeros((4, 4), ">u2"), ValueError, "image: expected bool, .* got >u2"),
        (np.full((4, 4), np.nan, np.float32), ValueError, "image: expected finite values"),
        (np.full((4, 4), np.inf, np.float32), ValueError, "image: expected finite values"),
        (np.full((4, 4), -2e18, np.float32), ValueError, r"image: .* below 1e\+18, got -2e\+18"),
    ],
)
def test_bad_images_are_named(image, error, message):
    with pytest.raises(error, match=message):
        build_pyramid(image)
