"""Keypoints to and from kornia's frames, COLMAP's rows and plain arrays."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from cv_patchpose.interop import (
    array_from_keypoints,
    colmap_from_keypoints,
    keypoints_from_array,
    keypoints_from_colmap,
    keypoints_from_laf,
    laf_from_keypoints,
)

IMAGE_SIZE = (480, 640)
places = st.tuples(
    st.floats(-0.5, 639.5, width=32),
    st.floats(-0.5, 479.5, width=32),
    st.floats(0.5, 500, width=32),
    st.floats(0, 359.5, width=32),
)
whole = st.integers(-(2**31), 2**31 - 1)


def keypoint(x=30.0, y=20.0, size=4.0, angle=30.0, **fields):
    return cv2.KeyPoint(x, y, size, angle, **fields)


def pose(k):
    return (*k.pt, k.size, k.angle)


def fields(k):
    return (*pose(k), k.response, k.octave, k.class_id)


def assert_same_poses(found, expected, size_rtol=1e-5):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert_allclose(one.pt, other.pt, atol=1e-4)
        assert one.size == pytest.approx(other.size, rel=size_rtol)
        assert abs((one.angle - other.angle + 180) % 360 - 180) < 1e-2
        assert 0 <= one.angle < 360


@given(st.lists(places, max_size=5), st.floats(0.1, 20))
def test_frames_come_back(rows, factor):
    keypoints = [keypoint(*row) for row in rows]
    laf = laf_from_keypoints(keypoints, scale_per_size=factor)
    assert laf.shape == (1, len(rows), 2, 3)
    assert laf.dtype == np.float32
    assert_same_poses(keypoints_from_laf(laf, IMAGE_SIZE, scale_per_size=factor), keypoints)
    assert_same_poses(keypoints_from_laf(laf[0], IMAGE_SIZE, scale_per_size=factor), keypoints)


@given(st.lists(places, max_size=5), st.sampled_from([4, 6]))
def test_colmap_rows_come_back(rows, columns):
    keypoints = [keypoint(*row) for row in rows]
    table = colmap_from_keypoints(keypoints, columns=columns)
    assert table.shape == (len(rows), columns)
    assert table.dtype == np.float32
    assert table.flags.c_contiguous
    assert_same_poses(keypoints_from_colmap(table, IMAGE_SIZE), keypoints)


@given(st.lists(st.tuples(places, st.floats(-10, 10, width=32), whole, whole), max_size=5))
def test_arrays_come_back_with_every_field(rows):
    keypoints = [cv2.KeyPoint(*place, *rest) for place, *rest in rows]
    array = array_from_keypoints(keypoints)
    assert array.shape == (len(rows), 7)
    back = keypoints_from_array(array)
    assert [fields(k) for k in back] == [fields(k) for k in keypoints]


def test_detected_keypoints_come_back_with_sifts_own_levels(photograph):
    detected = cv2.SIFT.create().detect(photograph, None)[::7]
    size = photograph.shape[:2]
    laf = laf_from_keypoints(detected)
    for found in (
        keypoints_from_laf(laf, size),
        keypoints_from_colmap(colmap_from_keypoints(detected), size),
        keypoints_from_array(array_from_keypoints(detected), size, descriptor="sift"),
    ):
        assert_same_poses(found, detected)
        levels = [(k.octave & 0xFFFF, k.class_id) for k in found]
        assert levels == [(k.octave & 0xFFFF, index) for index, k in enumerate(detected)]


def test_keypoints_that_come_back_are_described_like_the_detected_ones(photograph):
    sift = cv2.SIFT.create()
    detected, own = sift.detectAndCompute(photograph, None)
    found = keypoints_from_laf(laf_from_keypoints(detected), photograph.shape[:2])
    distance = np.linalg.norm(sift.compute(photograph, found)[1] - own, axis=1)
    assert np.median(distance) < 10  # of about 512


def test_the_descriptors_settings_decide_the_level():
    laf = laf_from_keypoints([keypoint(size=20.0)])
    octaves = {
        keypoints_from_laf(laf, IMAGE_SIZE, descriptor=sift)[0].octave
        for sift in ("sift", cv2.SIFT.create(sigma=1.2))
    }
    assert len(octaves) == 2
    with pytest.raises(ValueError, match=r"descriptor: expected one of .* got 'surf'"):
        keypoints_from_laf(laf, IMAGE_SIZE, descriptor="surf")


def test_keypoints_without_angle_become_upright():
    without = [keypoint(angle=-1.0)]
    assert_allclose(laf_from_keypoints(without)[0, 0, :, :2], np.eye(2) * 24)
    assert_allclose(colmap_from_keypoints(without)[0, 2:], [2, 0, 0, 2])
    assert_allclose(colmap_from_keypoints(without, columns=4)[0, 2:], [2, 0])


def test_array_keeps_no_angle_and_wraps_the_others():
    rows = np.zeros((4, 7))
    rows[:, 2] = 1
    rows[:, 3] = (-1, -90, 725, 359.9999999)
    assert [k.angle for k in keypoints_from_array(rows)] == [-1, 270, 5, 0]
    for descriptor, none in (("sift", -1), ("akaze", -1), ("daisy", 0)):
        found = keypoints_from_array(rows, IMAGE_SIZE, descriptor=descriptor)
        assert [k.angle for k in found] == [none, 270, 5, 0]


def test_frames_and_colmap_rows_always_have_an_angle():
    turn = np.radians(-1.0)
    along, across = np.cos(turn), np.sin(turn)
    row = [9, 9, along, -across, across, along]
    for found in (
        keypoints_from_colmap([[9, 9, 1, turn]], IMAGE_SIZE),
        keypoints_from_colmap([row], IMAGE_SIZE),
        keypoints_from_laf([[[along, -across, 9], [across, along, 9]]], IMAGE_SIZE),
    ):
        assert found[0].angle == pytest.approx(359)


def test_convention_colmap_pixel_centre_is_half_and_scale_is_sigma():
    row = colmap_from_keypoints([keypoint(0.0, 0.0, size=3.0, angle=0.0)], columns=4)[0]
    assert row.tolist() == [0.5, 0.5, 1.5, 0.0]


def test_convention_colmap_orientation_is_clockwise_radians():
    down = colmap_from_keypoints([keypoint(angle=90.0)], columns=4)[0]
    assert down[3] == pytest.approx(np.pi / 2)
    shape = colmap_from_keypoints([keypoint(size=2.0, angle=90.0)])[0, 2:].reshape(2, 2)
    assert_allclose(shape @ (1, 0), (0, 1), atol=1e-7)  # the x axis of the feature looks down
    back = keypoints_from_colmap([[1, 1, 1, -np.pi / 2]], IMAGE_SIZE)[0]
    assert back.angle == pytest.approx(270)


def test_convention_laf_angle_is_counter_clockwise():
    frame = laf_from_keypoints([keypoint(size=1.0, angle=90.0)], scale_per_size=1.0)[0, 0]
    assert_allclose(frame[:, 0], (0, 1), atol=1e-7)  # the patch's x axis looks down
    assert_allclose(frame[:, 2], (30, 20))
    kornia_deg = np.degrees(np.arctan2(frame[0, 1], frame[0, 0]))
    assert kornia_deg == pytest.approx(-90)


@pytest.mark.train
def test_convention_laf_is_kornias_of_six_sizes_and_the_opposite_angle():
    torch = pytest.importorskip("torch")
    feature = pytest.importorskip("kornia.feature")
    keypoints = [keypoint(10, 20, 3, 40), keypoint(5.5, 7.25, 12, 300), keypoint(1, 2, 1, 180)]
    xy = torch.tensor([[k.pt for k in keypoints]])
    scale = torch.tensor([[[[6.0 * k.size]] for k in keypoints]])
    angle = torch.tensor([[[-k.angle] for k in keypoints]])
    theirs = feature.laf_from_center_scale_ori(xy, scale, angle)
    assert_allclose(laf_from_keypoints(keypoints), theirs.numpy(), atol=1e-4)
    assert_same_poses(keypoints_from_laf(theirs, IMAGE_SIZE), keypoints)
    assert_allclose(
        feature.get_laf_scale(torch.from_numpy(laf_from_keypoints(keypoints))).ravel(),
        [18, 72, 6],
        rtol=1e-5,
    )


@pytest.mark.train
def test_kornias_patches_look_along_the_angle_as_ours_do(photograph):
    torch = pytest.importorskip("torch")
    feature = pytest.importorskip("kornia.feature")
    from cv_patchpose.patches import SquareGrid, build_pyramid, sample_square

    one = keypoint(260.0, 140.0, size=4.0, angle=70.0)
    gray = np.float32(cv2.cvtColor(photograph, cv2.COLOR_BGR2GRAY)) / 255
    laf = torch.from_numpy(laf_from_keypoints([one], scale_per_size=4.0))
    theirs = feature.extract_patches_from_pyramid(torch.from_numpy(gray)[None, None], laf, 32)
    ours = sample_square(
        build_pyramid(gray), np.array([one.pt]), np.array([32.0]), np.array([70.0]), SquareGrid(32)
    )
    assert_allclose(ours[0, 0], theirs[0, 0, 0].numpy(), atol=0.02)


def test_anisotropic_shapes_become_the_nearest_similarity():
    turn = np.radians(25.0)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shape = rotation @ np.diag([4.0, 1.0])  # a rotation behind a symmetric stretch
    laf = np.dstack([shape[None], [[[7.0], [8.0]]]])
    frame = keypoints_from_laf(laf, IMAGE_SIZE, scale_per_size=1.0)[0]
    assert pose(frame) == pytest.approx((7, 8, 2, 25), rel=1e-5)
    row = [7.5, 8.5, *shape.ravel()]
    assert pose(keypoints_from_colmap([row], IMAGE_SIZE)[0]) == pytest.approx((7, 8, 4, 25))


def test_nothing_in_nothing_out():
    assert laf_from_keypoints([]).shape == (1, 0, 2, 3)
    assert colmap_from_keypoints([]).shape == (0, 6)
    assert array_from_keypoints(()).shape == (0, 7)
    assert keypoints_from_laf(np.empty((0, 2, 3)), IMAGE_SIZE) == ()
    assert keypoints_from_colmap(np.empty((0, 4)), IMAGE_SIZE) == ()
    assert keypoints_from_array(np.empty((0, 7))) == ()


@pytest.mark.parametrize("shape", [(2, 3), (5, 3, 3), (2, 4, 2, 3), (1, 1, 4, 2, 3)])
def test_frames_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"laf: expected \(N, 2, 3\) or \(1, N, 2, 3\), got \("):
        keypoints_from_laf(np.ones(shape), IMAGE_SIZE)


@pytest.mark.parametrize("shape", [(4,), (3, 2), (3, 5), (1, 3, 4)])
def test_rows_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"rows: expected \(N, 4\) or \(N, 6\), got \("):
        keypoints_from_colmap(np.ones(shape), IMAGE_SIZE)


@pytest.mark.parametrize("shape", [(7,), (3, 6), (1, 3, 7)])
def test_arrays_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"array: expected \(N, 7\), got \("):
        keypoints_from_array(np.ones(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_must_be_finite(value):
    frames = np.tile(np.eye(2, 3), (3, 1, 1))
    frames[1, 0, 2] = value
    with pytest.raises(ValueError, match=rf"laf: expected finite numbers, got {value} at \(1, 0, "):
        keypoints_from_laf(frames, IMAGE_SIZE)
    with pytest.raises(ValueError, match=r"rows: expected finite numbers, got .* at \(0, 3\)"):
        keypoints_from_colmap([[1, 1, 1, value]], IMAGE_SIZE)
    with pytest.raises(ValueError, match=r"array: expected finite numbers, got .* at \(0, 6\)"):
        keypoints_from_array([[1, 1, 1, 1, 1, 1, value]])


def test_values_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match=r"laf: expected numbers \(N, 2, 3\) or \(1, N, 2, 3\), "):
        keypoints_from_laf("frames", IMAGE_SIZE)
    with pytest.raises(TypeError, match=r"rows: expected numbers \(N, 4\) or \(N, 6\), got "):
        keypoints_from_colmap([[1, 2, 3, 4], [5]], IMAGE_SIZE)
    with pytest.raises(TypeError, match=r"array: expected numbers \(N, 7\), got "):
        keypoints_from_array([keypoint()])


@pytest.mark.train
def test_a_tensor_with_gradients_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"laf: expected numbers .* got .*requires grad"):
        keypoints_from_laf(torch.ones(1, 1, 2, 3, requires_grad=True), IMAGE_SIZE)


@pytest.mark.parametrize("shape", [np.zeros((2, 2)), np.diag([1.0, -1.0])])
def test_frames_without_area_and_mirrored_ones_are_refused(shape):
    frames = np.stack([np.eye(2, 3), np.hstack([shape, [[1.0], [1.0]]])])
    message = r"laf: expected a determinant above 0, got -?[01]\.0 at index 1"
    with pytest.raises(ValueError, match=message):
        keypoints_from_laf(frames, IMAGE_SIZE)
    with pytest.raises(ValueError, match=message.replace("laf", "rows")):
        keypoints_from_colmap([[1, 1, 1, 0, 0, 1], [1, 1, *shape.ravel()]], IMAGE_SIZE)


def test_scales_and_sizes_must_be_positive():
    with pytest.raises(ValueError, match=r"rows: expected a scale above 0, got 0\.0 at index 0"):
        keypoints_from_colmap([[1, 1, 0, 0]], IMAGE_SIZE)
    with pytest.raises(ValueError, match=r"array: expected a size above 0, got -2\.0 at index 1"):
        keypoints_from_array([[1, 1, 1, 1, 0, 0, 0], [1, 1, -2, 1, 0, 0, 0]])


@pytest.mark.parametrize("factor", [0.0, -1.0, np.nan, np.inf])
def test_factor_must_be_positive(factor):
    for convert in (
        lambda: laf_from_keypoints([], scale_per_size=factor),
        lambda: keypoints_from_laf(np.empty((0, 2, 3)), IMAGE_SIZE, scale_per_size=factor),
    ):
        with pytest.raises(ValueError, match="scale_per_size: expected a finite number above 0"):
            convert()


@pytest.mark.parametrize(("column", "name"), [(5, "octave"), (6, "class_id")])
@pytest.mark.parametrize("value", [0.5, 2.0**31, -3e9])
def test_octaves_and_class_ids_must_be_whole(column, name, value):
    row = [1.0] * 7
    row[column] = value
    with pytest.raises(ValueError, match=rf"array: expected a whole {name} of 32 bits, got .* 0"):
        keypoints_from_array([row])


def test_centres_must_lie_on_the_image():
    outside = [keypoint(x=700.0)]
    message = "keypoints: expected centres on the 640 x 480 image, got .* at index 0"
    for convert in (
        lambda: keypoints_from_laf(laf_from_keypoints(outside), IMAGE_SIZE),
        lambda: keypoints_from_colmap(colmap_from_keypoints(outside), IMAGE_SIZE),
        lambda: keypoints_from_array(array_from_keypoints(outside), IMAGE_SIZE, descriptor="orb"),
    ):
        with pytest.raises(ValueError, match=message):
            convert()
    assert keypoints_from_array(array_from_keypoints(outside))[0].pt == (700, 20)


def test_other_numbers_of_columns_are_refused():
    with pytest.raises(ValueError, match="columns: expected 4 or 6, got 5"):
        colmap_from_keypoints([], columns=5)


def test_a_descriptor_needs_the_size_of_the_image():
    with pytest.raises(ValueError, match=r"image_size: expected \(height, width\) with a descript"):
        keypoints_from_array(np.ones((1, 7)), descriptor="sift")


@pytest.mark.parametrize("size", [None, (20, 30, 3), (0, 30), 20])
def test_the_size_of_the_image_is_its_height_and_width(size):
    frames = laf_from_keypoints([cv2.KeyPoint(9, 8, 4)])
    with pytest.raises(ValueError, match=r"image_size: expected \(height, width\), got "):
        keypoints_from_laf(frames, size)


def test_what_is_no_keypoint_is_refused():
    for convert in (laf_from_keypoints, colmap_from_keypoints, array_from_keypoints):
        with pytest.raises(TypeError, match="keypoints: expected a list or tuple of cv2.KeyPoint"):
            convert([(1, 2)])
