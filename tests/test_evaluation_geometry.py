"""Homographies, their local changes, and turned views, on cases with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from cv_patchpose.evaluation.sequences import turn_image
from cv_patchpose.homography import global_change, local_jacobian, nearest_similarity, project

PROJECTIVE = np.array([[1.1, -0.3, 20.0], [0.2, 0.9, -10.0], [4e-4, -2e-4, 1.0]])
POINTS = np.array([[0.0, 0.0], [100.0, 40.0], [12.5, 333.0], [400.0, 250.0]])


def similarity(zoom, turn_deg):
    c, s = zoom * math.cos(math.radians(turn_deg)), zoom * math.sin(math.radians(turn_deg))
    return np.array([[c, -s, 7.0], [s, c, -3.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("turn_deg", [-170.0, -35.0, 0.0, 12.5, 90.0, 179.0])
@pytest.mark.parametrize("zoom", [0.25, 1.0, 3.0])
def test_similarity_has_its_own_zoom_and_turn_everywhere(zoom, turn_deg):
    homography = 5.0 * similarity(zoom, turn_deg)
    scale, angle_deg = nearest_similarity(local_jacobian(homography, POINTS))
    assert_allclose(scale, zoom)
    assert_allclose(angle_deg, turn_deg, atol=1e-9)
    assert_allclose(global_change(homography), (zoom, turn_deg), atol=1e-9)


def test_convention_positive_turn_is_clockwise_on_screen():
    right = np.array([[0.0, 0.0], [1.0, 0.0]])
    moved = project(similarity(1.0, 90.0), right)
    assert_allclose(moved[1] - moved[0], (0.0, 1.0), atol=1e-12)  # down


def test_jacobian_agrees_with_finite_differences():
    step = 1e-4
    columns = [
        (project(PROJECTIVE, POINTS + offset) - project(PROJECTIVE, POINTS - offset)) / (2 * step)
        for offset in (np.array([step, 0.0]), np.array([0.0, step]))
    ]
    assert_allclose(local_jacobian(PROJECTIVE, POINTS), np.stack(columns, axis=2), atol=1e-7)


def test_local_turn_is_that_of_the_polar_decomposition():
    jacobian = local_jacobian(PROJECTIVE, POINTS)
    left, singular, right = np.linalg.svd(jacobian)
    rotation = left @ right
    scale, angle_deg = nearest_similarity(jacobian)
    assert_allclose(angle_deg, np.degrees(np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])))
    assert_allclose(scale, np.sqrt(singular.prod(axis=1)))


def test_global_change_reads_the_first_column():
    scale, angle_deg = global_change(2.0 * PROJECTIVE)
    assert scale == pytest.approx(math.hypot(1.1, 0.2))
    assert angle_deg == pytest.approx(math.degrees(math.atan2(0.2, 1.1)))


@pytest.mark.parametrize("rotate_deg", [0.0, 30.0, 90.0, 180.0, -61.0])
@pytest.mark.parametrize("zoom", [0.5, 1.0, 2.0])
def test_turned_dot_lies_where_the_view_says(rotate_deg, zoom):
    image = np.zeros((61, 80, 3), np.uint8)
    image[18:23, 58:63] = 255
    view = turn_image(image, rotate_deg, zoom)
    expected = project(view.from_photo, np.array([[60.0, 20.0]]))[0]
    weight = view.image[..., 0].astype(float)
    rows, columns = np.indices(weight.shape)
    found = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
    assert_allclose(found, expected, atol=0.02)


def test_quarter_turn_is_exact_and_clockwise():
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    view = turn_image(image, 90.0)
    assert np.array_equal(view.image, np.rot90(image, -1))


def test_canvas_holds_the_whole_photograph():
    image = np.full((40, 60, 3), 255, np.uint8)
    view = turn_image(image, 33.0)
    height, width = view.image.shape[:2]
    corners = project(view.from_photo, np.array([[0, 0], [59, 0], [0, 39], [59, 39]], float))
    assert corners.min() >= 0
    assert (corners <= (width - 1, height - 1)).all()
    assert view.shows(corners * 0.999 + 0.001 * corners.mean(axis=0)).all()
    assert not view.shows(np.array([[0.0, 0.0]]))[0]


def test_margin_counts_pixels_of_the_view():
    view = turn_image(np.zeros((50, 50, 3), np.uint8), zoom=2.0)
    points = project(view.from_photo, np.array([[4.0, 25.0], [6.0, 25.0]]))
    assert view.shows(points, margin_px=10.0).tolist() == [False, True]


def test_unturned_view_is_the_photograph():
    image = np.zeros((4, 5, 3), np.uint8)
    view = turn_image(image)
    assert view.image is image
    assert not view.is_turned
