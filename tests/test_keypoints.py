"""cv2.KeyPoint <-> arrays, and messages for keypoints that cannot be used."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_patchpose.keypoints import arrays_from_keypoints, keypoints_from_arrays

numbers = st.floats(-1e4, 1e4, width=32)
fields = st.tuples(
    numbers,
    numbers,
    st.floats(0.125, 1e4, width=32),
    st.floats(-1, 359.5, width=32),
    numbers,
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-1, 2**31 - 1),
)


def as_tuple(keypoint):
    k = keypoint
    return (*k.pt, k.size, k.angle, k.response, k.octave, k.class_id)


def repeated(*places):
    return [cv2.KeyPoint(x, y, size, angle, r) for x, y, size, angle, r in places]


@given(st.lists(fields, max_size=5))
def test_round_trip_keeps_every_field(rows):
    keypoints = [cv2.KeyPoint(*row) for row in rows]
    back = keypoints_from_arrays(arrays_from_keypoints(keypoints))
    assert isinstance(back, tuple)
    assert [as_tuple(k) for k in back] == [as_tuple(k) for k in keypoints]


def test_a_hundred_thousand_come_back_in_order():
    rows = np.random.default_rng(0).uniform(1, 300, (100_000, 5)).astype(np.float32).tolist()
    keypoints = [cv2.KeyPoint(*row, i, 2 * i) for i, row in enumerate(rows)]
    back = keypoints_from_arrays(arrays_from_keypoints(keypoints))
    assert [as_tuple(k) for k in back] == [as_tuple(k) for k in keypoints]


def test_arrays_have_the_documented_types_and_shapes():
    for count in (0, 1, 3):
        arrays = arrays_from_keypoints([cv2.KeyPoint(1, 2, 3)] * count)
        assert len(arrays) == count
        assert arrays.xy_px.shape == (count, 2)
        for name, value in vars(arrays).items():
            assert value.dtype == (np.int32 if name in ("octave", "class_id") else np.float32)


@pytest.mark.parametrize("wrong", [None, "keypoints", np.zeros((3, 2)), iter([])])
def test_only_lists_and_tuples_are_keypoints(wrong):
    message = f"keypoints: expected a list or tuple of cv2.KeyPoint, got {type(wrong).__name__}"
    with pytest.raises(TypeError, match=message):
        arrays_from_keypoints(wrong)


def test_a_foreign_element_is_named_with_its_index():
    with pytest.raises(TypeError, match="got tuple at index 1"):
        arrays_from_keypoints([cv2.KeyPoint(1, 1, 1), (1, 2)])


@pytest.mark.parametrize("size", [0.0, -2.0, float("nan"), float("inf")])
def test_sizes_must_be_finite_and_positive(size):
    message = rf"keypoints: expected finite sizes above 0, got {size} at index 2"
    with pytest.raises(ValueError, match=message):
        arrays_from_keypoints([cv2.KeyPoint(1, 1, 5)] * 2 + [cv2.KeyPoint(1, 1, size)])


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("field", ["angle", "response"])
def test_angles_and_responses_must_be_finite(field, value):
    message = rf"keypoints: expected finite {field}s, got {value} at index 1"
    with pytest.raises(ValueError, match=message):
        arrays_from_keypoints([cv2.KeyPoint(1, 1, 5), cv2.KeyPoint(1, 1, 5, **{field: value})])


@pytest.mark.parametrize("x", [float("nan"), float("inf")])
def test_centres_must_be_finite(x):
    with pytest.raises(ValueError, match=rf"expected finite centres, got \({x}, 3.0\) at index 0"):
        arrays_from_keypoints([cv2.KeyPoint(x, 3, 5)])


@pytest.mark.parametrize("place", [(-0.75, 3), (40.0, 3), (3, -0.75), (3, 30.0)])
def test_centres_must_lie_on_the_image(place):
    message = "expected centres on the 40 x 30 image, got .* index 0; leave out what lies beyond"
    with pytest.raises(ValueError, match=message):
        arrays_from_keypoints([cv2.KeyPoint(*place, 5)], image_size=(30, 40))


@pytest.mark.parametrize("place", [(-0.5, -0.5), (39.5, 29.5), (0, 0)])
def test_centres_on_the_outermost_half_pixel_are_inside(place):
    assert len(arrays_from_keypoints([cv2.KeyPoint(*place, 5)], image_size=(30, 40))) == 1


def test_distinct_index_is_the_first_of_each_centre_and_size():
    arrays = arrays_from_keypoints(
        repeated(
            (9, 9, 4, 10, 1), (3, 3, 4, 20, 1), (9, 9, 4, 90, 1), (9, 9, 5, 90, 1), (3, 3, 4, 0, 1)
        )
    )
    assert arrays.distinct_index().tolist() == [0, 1, 3]


def test_strongest_index_counts_places_and_keeps_their_orientations():
    arrays = arrays_from_keypoints(
        repeated((1, 1, 4, 0, 0.2), (2, 2, 4, 0, 0.9), (3, 3, 4, 0, 0.5), (2, 2, 4, 90, 0.9))
    )
    assert arrays.strongest_index(1).tolist() == [1, 3]
    assert arrays.strongest_index(2).tolist() == [1, 3, 2]
    assert arrays.strongest_index(9).tolist() == [1, 3, 2, 0]
    assert arrays.take(np.array([], int)).strongest_index(2).tolist() == []
