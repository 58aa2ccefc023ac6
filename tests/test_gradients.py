"""How gradients turn between views, on cases with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from cv_patchpose.gradients import REACH, gradient_moments, rotation_of_gradients
from cv_patchpose.homography import nearest_similarity


def rotation(turn_deg):
    c, s = math.cos(math.radians(turn_deg)), math.sin(math.radians(turn_deg))
    return np.array([[c, -s], [s, c]])


@pytest.mark.parametrize("turn_deg", [-170.0, 12.5, 90.0])
def test_gradients_turn_as_points_do_under_a_similarity(turn_deg):
    turned = 1.7 * rotation(turn_deg)
    moments = np.array([np.eye(2), [[5.0, 2.0], [2.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]]])
    assert_allclose(rotation_of_gradients(np.eye(2), turned, moments), turn_deg, atol=1e-9)
    assert_allclose(rotation_of_gradients(turned, np.eye(2), moments), -turn_deg, atol=1e-9)


def test_gradients_across_an_edge_turn_as_the_edge_does():
    """Shear moves points down by how far right they are: level edges slope, upright ones stay."""
    shear = np.array([[1.0, 0.0], [math.tan(math.radians(20)), 1.0]])
    down, right = np.diag([0.0, 1.0]), np.diag([1.0, 0.0])
    edges = np.stack([down, right])
    assert_allclose(rotation_of_gradients(np.eye(2), shear, edges), [20.0, 0.0])
    assert_allclose(rotation_of_gradients(shear, np.eye(2), edges), [-20.0, 0.0])
    # In all directions alike: halfway, as points are turned.
    assert_allclose(
        rotation_of_gradients(np.eye(2), shear, np.eye(2)), nearest_similarity(shear)[1], atol=1e-9
    )


def test_moments_are_those_of_the_gradients_under_the_gaussian():
    """Of a parabola z = x^2 / 2 the gradient is x: its second moment is the Gaussian's variance.

    It is cut off at the border, which leaves 0.912 of it in either direction.
    """
    x = np.arange(-100.0, 101.0)
    image = np.repeat((x**2 / 2)[None], 201, 0).astype(np.float32)
    points, sigma_px = np.full((2, 2), 100.0), np.array([12.0, 24.0])
    narrow, wide = gradient_moments(image, points, sigma_px)
    spacing = 5 * sigma_px / 24  # the derivative is by samples
    total = narrow[0, 0] / spacing[0] ** 2, wide[0, 0] / spacing[1] ** 2
    beyond = np.exp(-(REACH**2) / 2) / math.sqrt(2 * math.pi)
    inside = math.erf(REACH / math.sqrt(2))
    variance = 1 - 2 * REACH * beyond / inside
    samples = (24 / (2 * REACH)) ** 2 * 2 * math.pi * inside**2  # the sum of the weights
    assert_allclose(total, samples * variance * sigma_px**2, rtol=0.02)
    assert abs(narrow[1, 1]) < 1e-3 * narrow[0, 0]
    assert abs(narrow[0, 1]) < 1e-3 * narrow[0, 0]


def test_moments_turn_with_the_image():
    y, x = np.mgrid[-60:61, -60:61]
    for turn_deg in (0.0, 30.0, 115.0):
        along = np.cos(math.radians(turn_deg)) * x + np.sin(math.radians(turn_deg)) * y
        image = np.uint8(127.5 + 100 * np.sin(along / 6))
        moments = gradient_moments(image, np.array([[60.0, 60.0]]), np.array([12.0]))[0]
        values, vectors = np.linalg.eigh(moments)
        found = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
        assert abs((found - turn_deg + 90) % 180 - 90) < 0.5
        assert values[0] < 0.01 * values[1]


def test_where_nothing_changes_gradients_have_no_direction():
    flat = np.full((64, 64), 90, np.uint8)
    moments = gradient_moments(flat, np.array([[32.0, 32.0]]), np.array([40.0]))
    np.testing.assert_allclose(moments[0] / moments[0, 0, 0], np.eye(2))
