"""Matching helpers on inputs whose answer is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cv_patchpose.detectors import DETECTORS, detect
from cv_patchpose.matching import (
    describe_root_sift,
    find_inliers,
    match_keypoints,
    match_mutual,
)


def test_mutual_nearest_neighbours():
    first = np.eye(4, dtype=np.float32)[[0, 1, 2]]
    second = np.eye(4, dtype=np.float32)[[2, 0, 3]]
    assert match_mutual(first, second).tolist() == [[0, 1], [2, 0]]


def test_no_descriptors_no_matches():
    none = np.empty((0, 128), np.float32)
    assert match_mutual(none, np.ones((3, 128), np.float32)).shape == (0, 2)


def test_root_sift_has_length_one(photograph):
    keypoints = detect(photograph, "sift", 50)
    xy_px, descriptors = describe_root_sift(photograph, keypoints)
    assert xy_px.shape == (len(keypoints), 2)
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, atol=1e-4)
    assert describe_root_sift(photograph, [])[1].shape == (0, 128)


@pytest.mark.parametrize("geometry", ["homography", "fundamental"])
def test_inliers_are_those_of_one_motion(geometry):
    rng = np.random.default_rng(0)
    first = rng.uniform(0, 500, (100, 2)).astype(np.float32)
    second = first + np.array([30, -12]) + rng.normal(0, 0.2, first.shape)
    second[:25] = rng.uniform(0, 500, (25, 2))
    found = find_inliers(first, second.astype(np.float32), geometry=geometry)
    assert found[25:].all()
    assert found[:25].sum() < 8


def test_few_matches_have_no_inliers():
    assert not find_inliers(np.zeros((5, 2)), np.zeros((5, 2))).any()
    assert find_inliers(np.zeros((0, 2)), np.zeros((0, 2))).shape == (0,)


def test_unknown_geometry():
    with pytest.raises(ValueError, match="geometry: expected one of homography, fundamental"):
        find_inliers(np.zeros((9, 2)), np.zeros((9, 2)), geometry="affine")


def test_an_image_matches_itself(photograph):
    keypoints = detect(photograph, "sift", 200)
    matches = match_keypoints(photograph, keypoints, photograph, keypoints)
    assert matches.keypoints == (len(keypoints), len(keypoints))
    assert matches.inlier.mean() > 0.95


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_give_the_strongest_points(photograph, name):
    found = detect(photograph, name, 100)
    places = list(dict.fromkeys((k.pt, k.size) for k in found))
    assert 90 <= len(places) <= 100
    strengths = [max(k.response for k in found if (k.pt, k.size) == place) for place in places]
    assert strengths == sorted(strengths, reverse=True)
    blank = np.zeros_like(photograph)
    assert detect(blank, name, 100) == ()


def test_unknown_detectors_and_counts():
    image = np.zeros((9, 9), np.uint8)
    with pytest.raises(ValueError, match="detector: expected one of sift, orb"):
        detect(image, "surf", 10)
    with pytest.raises(ValueError, match="max_points: expected at least 1, got 0"):
        detect(image, "sift", 0)


def test_keypoints_without_octave_are_cv2_keypoints(photograph):
    assert all(isinstance(k, cv2.KeyPoint) for k in detect(photograph, "fast", 10))
