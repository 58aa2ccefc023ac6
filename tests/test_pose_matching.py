"""Matching by pose: constellations and photographs turned by known angles."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest

from cv_patchpose.matching import consistent_matches, match_logos

# Columns of a constellation: x, y, size, angle.
X, Y, SIZE, ANGLE = range(4)


def constellation(count, rng):
    return np.column_stack([
        rng.uniform(0, 640, (count, 2)), 2 ** rng.uniform(2, 5, count), rng.uniform(0, 360, count)
    ])  # fmt: skip


def moved(points, turn_deg, zoom=1.0):
    """Turn clockwise and zoom about a point off the middle."""
    turn = np.radians(turn_deg)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    result = points.copy()
    result[:, :2] = zoom * (points[:, :2] - 250) @ rotation.T + 400
    result[:, SIZE] *= zoom
    result[:, ANGLE] += turn_deg
    return result


def jittered(points, rng, *, px=1.0, octaves=0.15, deg=6.0):
    count = len(points)
    result = points.copy()
    result[:, :2] += rng.normal(0, px, (count, 2))
    result[:, SIZE] *= 2 ** rng.normal(0, octaves, count)
    result[:, ANGLE] += rng.normal(0, deg, count)
    return result


def keypoints(points):
    return [
        cv2.KeyPoint(float(x), float(y), float(size), float(angle) % 360)
        for x, y, size, angle in points
    ]


def indices(matches):
    assert isinstance(matches, tuple)
    assert all(isinstance(match, cv2.DMatch) for match in matches)
    return np.array([(m.queryIdx, m.trainIdx) for m in matches], int).reshape(-1, 2)


class TestLogos:
    @staticmethod
    def recall(turn_deg, *, zoom=1.0, noise_deg=0.0):
        """Share of 200 keypoints, 150 of them in image 2 as well, that are matched rightly."""
        rng = np.random.default_rng(5)
        first = constellation(200, rng)
        order = rng.permutation(200)
        second = jittered(moved(first, turn_deg, zoom), rng, px=0.2, octaves=0.02, deg=noise_deg)
        second[150:] = constellation(50, rng)
        words1 = rng.permutation(200) // 2  # every word is that of two keypoints
        found = indices(
            match_logos(keypoints(first), keypoints(second[order]), words1, words1[order])
        )
        return np.mean(order[found[:, 1]] == found[:, 0]) * len(found) / 150

    @pytest.mark.parametrize("turn_deg", [30, 90, 170, 180, 185, 270, 330])
    @pytest.mark.parametrize("noise_deg", [0.0, 2.0])
    def test_turned_constellations(self, turn_deg, noise_deg):
        upright = self.recall(0, noise_deg=noise_deg)
        assert upright > 0.7
        for zoom in (1.0, 1.5):
            assert self.recall(turn_deg, zoom=zoom, noise_deg=noise_deg) >= 0.9 * upright

    @staticmethod
    def matches_of_turned(photograph, turn_deg):
        """Right and all matches between a photograph and it turned; keypoints turned with it."""
        height, width = photograph.shape[:2]
        middle = ((width - 1) / 2, (height - 1) / 2)
        turn = cv2.getRotationMatrix2D(middle, -turn_deg, 1.0)
        turned = cv2.warpAffine(photograph, turn, (width, height))
        sift = cv2.SIFT.create(nfeatures=500)
        first = [
            k
            for k in sift.detect(photograph, None)
            if np.hypot(k.pt[0] - middle[0], k.pt[1] - middle[1]) < 0.4 * min(middle) * 2
        ]
        second = []
        for k in first:
            x, y = turn @ (*k.pt, 1.0)
            second.append(cv2.KeyPoint(x, y, k.size, (k.angle + turn_deg) % 360, 0.0, k.octave))
        first, rows1 = sift.compute(photograph, first)
        second, rows2 = sift.compute(turned, second)
        words2 = [m.trainIdx for m in cv2.BFMatcher().match(rows2, rows1)]
        found = indices(match_logos(first, second, range(len(first)), words2))
        return np.sum(found[:, 0] == found[:, 1]), len(found), len(first)

    @pytest.mark.parametrize("turn_deg", [30, 90, 170])
    def test_turned_photographs(self, gray_photographs, turn_deg):
        for photograph in gray_photographs:
            upright, _, count = self.matches_of_turned(photograph, 0)
            right, total, _ = self.matches_of_turned(photograph, turn_deg)
            assert upright > 0.5 * count
            assert right >= 0.9 * upright
            assert right >= 0.95 * total

    @pytest.mark.parametrize("counts", [(0, 20), (20, 0), (5, 20), (20, 5), (1, 1)])
    def test_too_few_keypoints_have_no_matches(self, counts):
        points = keypoints(constellation(20, np.random.default_rng(0)))
        first, second = (points[:count] for count in counts)
        assert match_logos(first, second, range(len(first)), range(len(second))) == ()

    def test_six_are_enough_to_survive(self):
        points = keypoints(constellation(6, np.random.default_rng(0)))
        assert isinstance(match_logos(points, points, range(6), range(6)), tuple)

    def test_keypoints_without_angle_are_left_out(self):
        rng = np.random.default_rng(0)
        points = constellation(30, rng)
        first, second = keypoints(points), keypoints(moved(points, 40))
        expected = indices(match_logos(first, second, range(30), range(30)))
        assert len(expected) > 20
        blank = [cv2.KeyPoint(9, 9, 5)]
        words = [7, *range(30)]
        found = indices(match_logos(blank + first, blank * 2 + second, words, [7, *words]))
        assert found.tolist() == (expected + [1, 2]).tolist()
        assert match_logos(blank * 30, second, range(30), range(30)) == ()

    def test_nothing_is_mutated(self):
        points = keypoints(constellation(30, np.random.default_rng(0)))
        before = [(k.pt, k.size, k.angle) for k in points]
        assert len(match_logos(points, points, range(30), range(30))) > 20
        assert [(k.pt, k.size, k.angle) for k in points] == before

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"words1": range(9)}, ValueError, r"words1: expected one word .* \(10,\), got \(9,\)"),
            ({"words2": [[1]]}, ValueError, r"words2: expected one word .* got \(1, 1\)"),
            ({"words2": [0.5] * 10}, TypeError, "words2: expected whole numbers, got float64"),
            ({"keypoints1": [cv2.KeyPoint(1, 1, 0)]}, ValueError, "keypoints1: .* sizes above 0"),
            ({"keypoints2": [(1, 1)]}, TypeError, "keypoints2: expected a list or tuple of cv2.K"),
            (
                {"keypoints2": [cv2.KeyPoint(1, 1, 5, float("nan"))]},
                ValueError,
                "keypoints2: expected finite angles",
            ),
        ],
    )
    def test_bad_input_is_named(self, changes, error, message):
        points = keypoints(constellation(10, np.random.default_rng(0)))
        given = {
            "keypoints1": points,
            "keypoints2": points,
            "words1": range(10),
            "words2": range(10),
        }
        with pytest.raises(error, match=message):
            match_logos(**(given | changes))

    def test_opencv_without_contrib(self, monkeypatch):
        monkeypatch.delattr(cv2, "xfeatures2d")
        with pytest.raises(ImportError, match="pip install opencv-contrib-python"):
            match_logos([], [], [], [])


def synthetic(count, right_share, *, turn_deg=40.0, seed=0):
    """Keypoints, matches and which are right; the others lead anywhere."""
    rng = np.random.default_rng(seed)
    first = constellation(count, rng)
    second = jittered(moved(first, turn_deg, 1.7), rng)
    right = rng.permutation(count) < right_share * count
    wrong = constellation(count, rng) * [1.6, 1.6, 1.7, 1]
    second[~right] = wrong[~right]
    distances = rng.uniform(0, 1, count).tolist()
    matches = [cv2.DMatch(i, i, distance) for i, distance in enumerate(distances)]
    return keypoints(first), keypoints(second), matches, right


def kept_by(first, second, matches, **options):
    kept = np.zeros(len(matches), bool)
    kept[indices(consistent_matches(first, second, matches, **options))[:, 0]] = True
    return kept


class TestConsistency:
    @pytest.mark.parametrize("turn_deg", [0.0, 40.0, 175.0, 270.0])
    @pytest.mark.parametrize("count", [100, 400, 2500])
    def test_seventy_percent_outliers(self, count, turn_deg):
        first, second, matches, right = synthetic(count, 0.3, turn_deg=turn_deg)
        kept = kept_by(first, second, matches)
        assert right[kept].mean() > 0.9
        assert kept[right].mean() > 0.9

    def test_without_outliers_hardly_anything_goes(self):
        first, second, matches, _ = synthetic(300, 1.0)
        assert kept_by(first, second, matches).mean() > 0.9

    def test_without_inliers_hardly_anything_stays(self):
        for seed in range(5):
            first, second, matches, _ = synthetic(300, 0.0, seed=seed)
            assert kept_by(first, second, matches).mean() < 0.03

    def test_two_motions_are_both_kept(self):
        one, other = synthetic(100, 1.0), synthetic(100, 1.0, turn_deg=200.0, seed=1)
        first, second = one[0] + other[0], one[1] + other[1]
        matches = [cv2.DMatch(i, i, 0.0) for i in range(200)]
        kept = kept_by(first, second, matches)
        assert kept[:100].mean() > 0.85
        assert kept[100:].mean() > 0.85

    def test_order_and_objects_are_kept(self):
        first, second, matches, _ = synthetic(100, 1.0)
        found = consistent_matches(first, second, matches[::-1])
        position = [matches.index(match) for match in found]
        assert position == sorted(position, reverse=True)
        assert consistent_matches(first, second, tuple(matches[::-1])) == found

    @pytest.mark.parametrize("count", [0, 1, 2, 3])
    def test_too_few_support_nothing(self, count):
        first, second, matches, _ = synthetic(10, 1.0)
        assert consistent_matches(first, second, matches[:count]) == ()

    def test_how_many_support(self):
        exact = constellation(4, np.random.default_rng(2))
        first, second = keypoints(exact), keypoints(moved(exact, 30))
        matches = [cv2.DMatch(i, i, 0.0) for i in range(4)]
        assert len(consistent_matches(first, second, matches)) == 4
        assert consistent_matches(first, second, matches[:3]) == ()
        assert len(consistent_matches(first, second, matches[:3], min_support=2)) == 3

    def test_keypoints_without_angle_neither_stay_nor_support(self):
        first, second, matches, _ = synthetic(100, 1.0)
        blank = [cv2.KeyPoint(9, 9, 5)] * 20
        others = [cv2.DMatch(i, (i - 100) % 120, 0.0) for i in range(80, 120)]
        found = consistent_matches(first + blank, second + blank, others + matches)
        assert [(m.queryIdx, m.trainIdx) for m in found] == [
            (m.queryIdx, m.trainIdx) for m in consistent_matches(first, second, matches)
        ]
        assert len(found) > 80
        assert consistent_matches(blank, second, matches[:20]) == ()

    def test_duplicates_do_not_support_each_other(self):
        one = [100.0, 100.0, 10.0, 30.0]
        first, second = keypoints([one] * 20), keypoints([[300.0, 200.0, 10.0, 30.0]] * 20)
        matches = [cv2.DMatch(i, i, 0.0) for i in range(20)]
        assert consistent_matches(first, second, matches) == ()

    def test_duplicates_support_others_once(self):
        exact = constellation(3, np.random.default_rng(3))
        first = keypoints(np.repeat(exact, 8, axis=0))
        second = keypoints(np.repeat(moved(exact, 30), 8, axis=0))
        matches = [cv2.DMatch(i, i, 0.0) for i in range(24)]
        assert consistent_matches(first, second, matches) == ()
        assert len(consistent_matches(first, second, matches, min_support=2)) == 24

    def test_many_to_one_is_no_support(self):
        rng = np.random.default_rng(4)
        first = keypoints(constellation(50, rng))
        second = keypoints([[300.0, 200.0, 10.0, 30.0]])
        assert consistent_matches(first, second, [cv2.DMatch(i, 0, 0.0) for i in range(50)]) == ()

    def test_votes_are_bounded(self, monkeypatch):
        first, second, matches, right = synthetic(4000, 0.3)
        started = time.perf_counter()
        kept = kept_by(first, second, matches)
        assert time.perf_counter() - started < 5
        assert kept[right].mean() > 0.9
        monkeypatch.setattr("cv_patchpose.pose_matching._HYPOTHESES", 200)
        few = kept_by(first, second, matches)
        assert few[right].mean() > 0.85
        assert right[few].mean() > 0.8

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"tolerance": 0}, ValueError, "tolerance: expected a number between 0 and 1, got 0"),
            ({"tolerance": 1.5}, ValueError, "tolerance: expected a number between 0 and 1"),
            ({"min_support": 0}, ValueError, "min_support: expected at least 1, got 0"),
            ({"matches": [(0, 0)]}, TypeError, "matches: expected a list or tuple of cv2.DMatch"),
            ({"matches": None}, TypeError, "matches: expected a list or tuple of cv2.DMatch"),
            (
                {"matches": [cv2.DMatch(3, 10, 0.0)]},
                ValueError,
                "matches: expected indices below 10 and 10, got 3 and 10",
            ),
            ({"matches": [cv2.DMatch(-1, 0, 0.0)]}, ValueError, "got -1 and 0"),
            ({"keypoints1": [cv2.KeyPoint(1, 1, 0, 5)] * 10}, ValueError, "keypoints1: .* sizes"),
        ],
    )
    def test_bad_input_is_named(self, changes, error, message):
        first, second, matches, _ = synthetic(10, 1.0)
        given = {"keypoints1": first, "keypoints2": second, "matches": matches}
        with pytest.raises(error, match=message):
            consistent_matches(**(given | changes))
