"""Pictures show what they say: circles, directions, lines and both images."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cv_patchpose.drawing import draw_matches_before_after, draw_poses
from cv_patchpose.matching import Matches


def changed(picture, image):
    color = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    return np.abs(picture.astype(int) - color).sum(2) > 60


@pytest.mark.parametrize("shape", [(80, 100), (80, 100, 3)])
def test_convention_angle_is_drawn_clockwise(shape):
    image = np.full(shape, 90, np.uint8)
    picture = draw_poses(image, [cv2.KeyPoint(50, 40, 40, 90)])
    drawn = changed(picture, image)
    assert picture.shape == (80, 100, 3)
    assert drawn[60, 50]  # the circle, below
    assert drawn[50, 50]  # the line, down
    assert not drawn[30, 50]  # no line up
    assert np.all(image == 90)


def test_directions_of_the_smallest_keypoints_are_seen():
    image = np.full((80, 100), 90, np.uint8)
    drawn = changed(draw_poses(image, [cv2.KeyPoint(50, 40, 2, 0)]), image)
    assert drawn[40, 50:56].all()


def test_no_angle_no_line():
    image = np.full((80, 100), 90, np.uint8)
    drawn = changed(draw_poses(image, [cv2.KeyPoint(50, 40, 40)]), image)
    assert not drawn[32:48, 42:58].any()


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (9, 8, 3), (9, 8, 4)])
def test_pictures_have_three_channels(shape):
    assert draw_poses(np.zeros(shape, np.uint8), [cv2.KeyPoint(4, 4, 3)]).shape == (9, 8, 3)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((9, 9), np.float32), ValueError, "image: expected uint8, got float32"),
        (np.zeros((9, 9, 2), np.uint8), ValueError, r"image: expected \(H, W\) or \(H, W, 1, 3"),
        (None, TypeError, "image: expected an array or cv2.UMat, got NoneType"),
    ],
)
def test_other_things_are_not_drawn_on(image, error, message):
    with pytest.raises(error, match=message):
        draw_poses(image, [])


def matches(inlier):
    xy_px = np.array([[20, 30], [90, 70]], np.float32)
    return Matches((2, 2), xy_px, xy_px, np.array(inlier))


def test_before_and_after_differ_only_by_inliers_and_text():
    image1 = np.full((100, 150), 120, np.uint8)
    image2 = np.full((140, 120, 3), 120, np.uint8)
    picture = draw_matches_before_after(
        image1, image2, matches([False, False]), matches([True, True]), titles=("a", "b")
    )
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    upper, lower = np.array_split(picture, 2)
    colorful = [np.ptp(half, axis=2).max() for half in (upper, lower)]
    assert colorful[0] < 30  # ink only
    assert colorful[1] > 100  # lines


def test_both_captions_have_letters_of_one_size():
    image = np.full((400, 150), 255, np.uint8)
    many, few = (
        Matches((n, n), *[np.zeros((0, 2), np.float32)] * 2, np.zeros(0, bool)) for n in (10**6, 1)
    )
    picture = draw_matches_before_after(image, image, few, many, titles=("T", "T"))
    below = picture[:56], picture[len(picture) // 2 - 8 :][:56]
    heights = [np.ptp(np.nonzero((rows[:, 16:40] < 128).any(axis=(1, 2)))[0]) for rows in below]
    assert heights[0] == heights[1] > 3


def test_no_matches_at_all():
    none = Matches(
        (0, 0), np.empty((0, 2), np.float32), np.empty((0, 2), np.float32), np.zeros(0, bool)
    )
    image = np.zeros((50, 60), np.uint8)
    assert draw_matches_before_after(image, image, none, none).size


def test_lines_join_what_the_other_row_lacks():
    image = np.full((100, 150), 120, np.uint8)
    shared = draw_matches_before_after(image, image, matches([True, True]), matches([True, True]))
    assert np.ptp(shared, axis=2).max() < 30  # grey dots and ink
    assert (shared == 190).all(axis=2).any()
    one = draw_matches_before_after(image, image, matches([True, False]), matches([True, True]))
    upper, lower = (np.ptp(half, axis=2).max() for half in np.array_split(one, 2))
    assert upper < 30 < lower
