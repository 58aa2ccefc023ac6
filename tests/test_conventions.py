"""Each convention of CONVENTIONS.md, pinned by one bright dot or one known answer."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from cv_patchpose.patches import (
    PolarGrid,
    SquareGrid,
    build_pyramid,
    sample_polar,
    sample_polar_reference,
    sample_square,
    sample_square_reference,
)

CENTER = (20.0, 14.0)  # x, y
RADIUS_PX = 8.0
POLAR = PolarGrid()
SQUARE = SquareGrid(size=8)


def dot_image(x, y):
    """A black image of 40 x 30 pixels (width x height) with one white pixel."""
    image = np.zeros((30, 40), np.uint8)
    image[y, x] = 255
    return build_pyramid(image)


def brightest(patch):
    return tuple(int(i) for i in np.unravel_index(patch.argmax(), patch.shape))


@pytest.fixture(params=["kernel", "reference"])
def polar(request):
    sample = sample_polar if request.param == "kernel" else sample_polar_reference

    def sample_one(pyramid, angle_deg=0.0):
        window = np.array([2 * RADIUS_PX])
        return sample(pyramid, np.array([CENTER]), window, np.array([angle_deg]), POLAR)[0, 0]

    return sample_one


@pytest.fixture(params=["kernel", "reference"])
def square(request):
    sample = sample_square if request.param == "kernel" else sample_square_reference

    def sample_one(pyramid, center, angle_deg=0.0):
        window = np.array([float(SQUARE.size)])
        return sample(pyramid, np.array([center]), window, np.array([angle_deg]), SQUARE)[0, 0]

    return sample_one


def test_convention_pixel_center_is_at_integers(square):
    patch = square(dot_image(20, 14), (20.5, 14.5))
    # Samples of an even grid lie half a step from its centre: here on (17 + j, 11 + i).
    assert_allclose(patch[3, 3], 1, atol=1e-6)
    assert_allclose(patch.sum(), 1, atol=1e-5)


def test_convention_points_are_x_y_and_rows_go_down(square):
    assert brightest(square(dot_image(22, 12), (20.5, 14.5))) == (1, 5)


def test_convention_square_patch_turns_clockwise(square):
    # At 90 degrees the patch's columns run down the image and its rows run left.
    patch = square(dot_image(22, 12), (20.5, 14.5), angle_deg=90.0)
    assert_allclose(patch[2, 1], 1, atol=1e-5)


def test_convention_square_window_is_its_side():
    pyramid = dot_image(20, 14)
    wide = sample_square(pyramid, [(20.25, 14.25)], [SQUARE.size / 2], [0.0], SQUARE)[0, 0]
    assert brightest(wide) == (3, 3)
    assert_allclose(wide[3, 4], 0.5, atol=1e-6)  # half a pixel to the right


@pytest.mark.parametrize(
    ("offset", "direction_deg"), [((8, 0), 0), ((0, 8), 90), ((-8, 0), 180), ((0, -8), 270)]
)
@pytest.mark.parametrize("angle_deg", [0.0, 30.0, 90.0, -45.0, 360.0])
def test_convention_column_0_looks_along_the_angle_and_columns_turn_clockwise(
    polar, offset, direction_deg, angle_deg
):
    patch = polar(dot_image(20 + offset[0], 14 + offset[1]), angle_deg)
    column = round((direction_deg - angle_deg) / (360 / POLAR.columns)) % POLAR.columns
    inner = patch[:, POLAR.halo : POLAR.halo + POLAR.columns]
    assert brightest(inner) == (POLAR.rows - 1, column)
    assert_allclose(inner.max(), 1, atol=1e-5)


def test_convention_outermost_ring_is_last_and_lies_on_the_window_circle(polar):
    assert POLAR.radii[-1] == 0.5
    for octave in range(3):
        patch = polar(dot_image(20 + 8 // 2**octave, 14))
        row = POLAR.rows - 1 - octave * POLAR.rows_per_octave
        assert_allclose(patch[row, POLAR.halo], 1, atol=1e-5)


def test_convention_halo_repeats_the_columns_across_the_seam(polar):
    image = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    patch = polar(build_pyramid(image))
    assert patch.shape == (POLAR.rows, POLAR.columns + 2 * POLAR.halo)
    np.testing.assert_array_equal(patch[:, : POLAR.halo], patch[:, -2 * POLAR.halo : -POLAR.halo])
    np.testing.assert_array_equal(patch[:, -POLAR.halo :], patch[:, POLAR.halo : 2 * POLAR.halo])
    assert np.ptp(patch[-1, : POLAR.halo]) > 0


def test_convention_values_are_shares_of_the_dtype_range():
    for dtype, white in (("uint8", 255), ("uint16", 65535), ("float32", 1.0)):
        pyramid = build_pyramid(np.full((20, 20), white, dtype))
        assert_allclose(sample_square(pyramid, [(9, 9)], [8], [0], SQUARE), 1, rtol=1e-6)


def test_convention_border_is_replicated():
    image = np.zeros((30, 40), np.uint8)
    image[:, -1] = 255
    outside = sample_square(build_pyramid(image), [(60.0, 10.0)], [8.0], [0.0], SQUARE)
    assert_allclose(outside, 1, atol=1e-6)


def test_convention_color_patches_are_red_green_blue():
    image = np.zeros((20, 20, 3), np.uint8)
    image[...] = (0, 51, 255)  # blue, green, red
    patch = sample_square(build_pyramid(image, color=True), [(9, 9)], [8], [0], SQUARE)[0]
    assert patch.shape == (3, 8, 8)
    for channel, value in zip(patch, (1.0, 0.2, 0.0), strict=True):
        assert_allclose(channel, value, atol=1e-6)
