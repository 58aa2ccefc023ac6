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
    ratio_test,
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


def test_a_place_matched_with_several_poses_counts_once(photograph):
    one = cv2.SIFT.create(nfeatures=300).detect(photograph)
    places = {k.pt: k for k in one}
    twice = [
        cv2.KeyPoint(*k.pt, k.size, (k.angle + turn) % 360, k.response, k.octave)
        for k in places.values()
        for turn in (0, 90)
    ]
    matches = match_keypoints(photograph, twice, photograph, twice)
    assert matches.keypoints == (len(twice), len(twice))
    assert len(matches) == len(places)


@pytest.mark.parametrize("missing", ["image1", "image2"])
def test_an_image_that_could_not_be_read(photograph, missing):
    points = cv2.SIFT.create(20).detect(photograph)
    image1, image2 = (None if missing == name else photograph for name in ("image1", "image2"))
    with pytest.raises(TypeError, match=f"{missing}: expected an array .*, got NoneType"):
        match_keypoints(image1, points, image2, points)


def test_an_image_matches_itself(photograph):
    keypoints = detect(photograph, "sift", 200)
    matches = match_keypoints(photograph, keypoints, photograph, keypoints)
    assert matches.keypoints == (len(keypoints), len(keypoints))
    assert matches.inlier.mean() > 0.95


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_see_the_same_in_every_number_of_channels(photograph, name):
    bgra = np.dstack([photograph, photograph[..., 0]])
    gray = cv2.cvtColor(photograph, cv2.COLOR_BGR2GRAY)
    # MSER looks for regions of one colour, and so finds others.
    others = (bgra,) if name == "mser" else (bgra, gray, gray[..., None])
    expected = {(k.pt, k.size) for k in detect(photograph, name, 10_000)}
    for image in others:
        found = {(k.pt, k.size) for k in detect(image, name, 10_000)}
        # OpenCV 5's MSER finds a few others each time that it looks at the same colours.
        share = 0.95 if name == "mser" else 1
        assert len(found & expected) >= share * len(found | expected) > 0


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_give_the_strongest_points(photograph, name):
    found = detect(photograph, name, 100)
    places = list(dict.fromkeys((k.pt, k.size) for k in found))
    fewest = 1 if name == "blob" else 90  # of which the photograph has few
    assert fewest <= len(places) <= 100
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
    for name, least in (("star", 8), ("msd", 24)):
        with pytest.raises(
            ValueError, match=f"at least {least} px for {name}, got 9 x {least - 1}"
        ):
            detect(np.zeros((least - 1, 9), np.uint8), name, 10)


def test_keypoints_without_octave_are_cv2_keypoints(photograph):
    assert all(isinstance(k, cv2.KeyPoint) for k in detect(photograph, "fast", 10))


def at(*places):
    return [cv2.KeyPoint(float(x), float(y), 5.0) for x, y in places]


def pairs(matches):
    assert isinstance(matches, tuple)
    assert all(isinstance(match, cv2.DMatch) for match in matches)
    return [(match.queryIdx, match.trainIdx) for match in matches]


def binary(*bits):
    """Return one row of 8 bytes for each number of bits, the first ones set."""
    return np.packbits(np.arange(64) < np.array(bits)[:, None], axis=1)


class TestRatio:
    query = np.zeros((1, 2), np.float32)
    train = np.array([[1, 0], [0, 1.05], [5, 0]], np.float32)

    def test_a_neighbour_at_another_place_is_a_rival(self):
        assert pairs(ratio_test(self.query, self.train, at((9, 9), (20, 9), (50, 9)))) == []

    def test_a_neighbour_at_the_same_place_is_none(self):
        (match,) = ratio_test(self.query, self.train, at((9, 9), (9.5, 9), (50, 9)))
        assert (match.queryIdx, match.trainIdx, match.imgIdx, match.distance) == (0, 0, 0, 1.0)

    @pytest.mark.parametrize(("ratio", "count"), [(0.19, 0), (0.21, 1)])
    def test_the_ratio_is_that_to_the_next_place(self, ratio, count):
        places = at((9, 9), (9, 9), (50, 9))
        assert len(ratio_test(self.query, self.train, places, ratio=ratio)) == count

    @pytest.mark.parametrize(("same_place_px", "count"), [(0, 0), (9, 0), (11, 1)])
    def test_how_far_a_place_reaches(self, same_place_px, count):
        places = at((0, 0), (6, 8), (50, 9))
        found = ratio_test(self.query, self.train, places, same_place_px=same_place_px)
        assert len(found) == count

    def test_without_any_rival_there_is_no_match(self):
        assert ratio_test(self.query, self.train[:2], at((9, 9), (9, 9))) == ()

    def test_bits_are_counted(self):
        train = binary(3, 4, 20)
        assert pairs(ratio_test(binary(0), train, at((9, 9), (9, 9), (50, 9)))) == [(0, 0)]
        assert ratio_test(binary(0), train, at((9, 9), (30, 9), (50, 9)), ratio=0.75) == ()

    @pytest.mark.parametrize(
        "norm", [cv2.NORM_L1, cv2.NORM_L2, cv2.NORM_HAMMING, cv2.NORM_HAMMING2]
    )
    def test_norms_are_opencv_s(self, norm):
        rng = np.random.default_rng(0)
        first, second = rng.integers(0, 256, (2, 40, 16), dtype=np.uint8)
        first[:20] = second[:20]
        places = at(*((10 * i, 0) for i in range(40)))
        found = ratio_test(first, second, places, ratio=0.99, norm=norm)
        expected = [
            best
            for best, next_best in cv2.BFMatcher(norm).knnMatch(first, second, k=2)
            if best.distance < 0.99 * next_best.distance
        ]
        assert pairs(found) == pairs(tuple(expected))
        np.testing.assert_allclose([m.distance for m in found], [m.distance for m in expected])

    def test_sift_of_eight_bits_is_no_binary_descriptor(self, photograph):
        sift = cv2.SIFT.create(
            nfeatures=300,
            nOctaveLayers=3,
            contrastThreshold=0.04,
            edgeThreshold=10,
            sigma=1.6,
            descriptorType=cv2.CV_8U,
        )
        found, rows = sift.detectAndCompute(photograph, None)
        assert rows.dtype == np.uint8
        blurred = sift.compute(cv2.GaussianBlur(photograph, (0, 0), 1.5), found)[1]
        expected = ratio_test(blurred, rows, found, norm=sift.defaultNorm())
        assert pairs(ratio_test(blurred, rows, found)) == pairs(expected) != []

    def test_mutual_matches_only(self):
        first = np.array([[0, 0], [0.1, 0]], np.float32)
        second = np.array([[0.3, 0], [9, 9]], np.float32)
        places = at((9, 9), (50, 9))
        assert pairs(ratio_test(first, second, places)) == [(0, 0), (1, 0)]
        assert pairs(ratio_test(first, second, places, mutual=True)) == [(1, 0)]

    def test_second_poses_take_no_matches_away(self, photograph):
        found, rows = cv2.SIFT.create(nfeatures=300).detectAndCompute(photograph, None)
        again, both = found + found, np.concatenate([rows, rows + 1])
        assert len(ratio_test(rows, rows, found)) > 0.95 * len(found)
        assert len(ratio_test(rows, both, again)) > 0.95 * len(found)
        plain = cv2.BFMatcher().knnMatch(rows, both, k=2)
        assert sum(a.distance < 0.8 * b.distance for a, b in plain) > 0  # their distance is 0
        noisy = rows + np.random.default_rng(0).normal(0, 3, rows.shape).astype(np.float32)
        plain = cv2.BFMatcher().knnMatch(noisy, both, k=2)
        assert sum(a.distance < 0.8 * b.distance for a, b in plain) == 0
        assert len(ratio_test(noisy, both, again)) > 0.9 * len(found)

    def test_many_are_compared_in_parts(self, monkeypatch):
        rng = np.random.default_rng(1)
        second = rng.normal(size=(50, 8)).astype(np.float32)
        first = second + rng.normal(0, 0.2, second.shape).astype(np.float32)
        places = at(*((10 * i, 0) for i in range(50)))
        whole = ratio_test(first, second, places)
        monkeypatch.setattr("cv_patchpose.ratio_matching._MASK_BYTES", 1600)
        assert pairs(ratio_test(first, second, places)) == pairs(whole) != []

    def test_rows_without_a_number_match_nothing(self):
        lost = np.full((1, 2), np.nan, np.float32)
        places = at((9, 9), (9, 9), (50, 9))
        assert ratio_test(lost, self.train, places) == ()
        train = np.concatenate([self.train, lost])
        assert pairs(ratio_test(self.query, train, [*places, *at((70, 9))])) == [(0, 0)]

    def test_none_and_umat(self):
        assert ratio_test(None, self.train, at((0, 0), (1, 1), (2, 2))) == ()
        assert ratio_test(self.query, None, []) == ()
        found = ratio_test(cv2.UMat(self.query), cv2.UMat(self.train), at((9, 9), (9, 9), (50, 9)))
        assert pairs(found) == [(0, 0)]

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"ratio": 0}, ValueError, "ratio: expected a number above 0 and at most 1, got 0"),
            ({"same_place_px": -1}, ValueError, "same_place_px: expected a finite number"),
            ({"keypoints2": at((0, 0))}, ValueError, "keypoints2: expected one per descriptor, 3"),
            ({"keypoints2": None}, TypeError, "keypoints2: expected a list or tuple of cv2.KeyP"),
            ({"keypoints2": [0, 0, 0]}, TypeError, "keypoints2: expected .* got int at index 0"),
            ({"descriptors1": [[0, 0]]}, TypeError, "descriptors1: expected an array, .* got list"),
            ({"descriptors1": np.zeros(2)}, ValueError, r"descriptors1: expected \(N, D\)"),
            (
                {"descriptors1": np.zeros((1, 2), np.uint8)},
                ValueError,
                "descriptors2: expected uint8 of length 2 .* got float32 of length 2",
            ),
            ({"norm": cv2.NORM_HAMMING}, ValueError, "norm: expected .* got 6 for float32"),
            ({"norm": cv2.NORM_INF}, ValueError, "norm: expected cv2.NORM_L1, NORM_L2"),
        ],
    )
    def test_bad_input_is_named(self, changes, error, message):
        places = at((9, 9), (9, 9), (50, 9))
        given = {"descriptors1": self.query, "descriptors2": self.train, "keypoints2": places}
        with pytest.raises(error, match=message):
            ratio_test(**(given | changes))
