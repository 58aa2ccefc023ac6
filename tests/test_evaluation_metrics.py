"""Counting of matches and pose errors, on hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from cv_patchpose.evaluation.homography_matching import summarize
from cv_patchpose.evaluation.interface import Estimates
from cv_patchpose.evaluation.metrics import (
    count_distinct_correct,
    distinct_correct,
    matching_accuracy,
    pose_errors,
    summarize_pose_errors,
)
from cv_patchpose.evaluation.report import format_table
from cv_patchpose.evaluation.results import PairResult


def test_accuracy_counts_matches_up_to_and_with_the_threshold():
    accuracy = matching_accuracy(np.array([0.5, 1.0, 2.5, 100.0]))
    assert accuracy == [0.5, 0.5, *[0.75] * 8]


def test_pair_without_matches_has_accuracy_zero_and_counts():
    nothing = PairResult(3.0, 0, 0, matching_accuracy(np.empty(0)))
    perfect = PairResult(5.0, 4, 4, matching_accuracy(np.zeros(4)))
    row = summarize([nothing, perfect], "m")
    assert (row["mma_1"], row["mma_10"], row["matches"], row["pairs"]) == (0.5, 0.5, 2.0, 2)
    assert (row["correct_matches"], row["keypoints"]) == (2.0, 4.0)


def test_correct_matches_count_each_location_once():
    a, b, c = (0.0, 0.0), (50.0, 0.0), (90.0, 0.0)
    near_a = (1.0, 0.0)
    xy1 = np.array([a, a, a, b, c])
    xy2 = np.array([a, a, near_a, b, (95.0, 0.0)])
    error = np.linalg.norm(xy1 - xy2, axis=1)
    assert count_distinct_correct(xy1, xy2, error) == 2
    assert count_distinct_correct(xy2, xy1, error) == 2


def test_a_match_is_correct_up_to_3_px():
    xy1 = np.array([[0.0, 0.0], [50.0, 0.0], [90.0, 0.0]])
    xy2 = xy1 + [[2.9, 0.0], [0.0, -3.0], [3.1, 0.0]]
    error = np.linalg.norm(xy1 - xy2, axis=1)
    assert distinct_correct(xy1, xy2, error).tolist() == [True, True, False]


def test_pose_errors_wrap_around_and_count_in_octaves():
    first = Estimates(np.array([1.0, 2.0, 4.0]), np.array([350.0, 10.0, 0.0]))
    second = Estimates(np.array([2.0, 2.0, 4.0]), np.array([5.0, 200.0, 180.0]))
    errors = pose_errors(first, second, 2.0, 10.0)
    assert_allclose(errors.scale_octaves, [0.0, 1.0, 1.0])
    assert_allclose(errors.angle_deg, [5.0, 180.0, 170.0])


def test_shares_are_percentages_of_all_points_together():
    first = Estimates(np.ones(4), np.zeros(4))
    turned = Estimates(np.array([1.0, 1.1, 1.2, 2.0]), np.array([0.0, 4.0, 9.0, 100.0]))
    exact = pose_errors(first, first, 1.0, 0.0)
    row = summarize_pose_errors([exact, pose_errors(first, turned, 1.0, 0.0)])
    assert row["orientation_within_5_deg"] == pytest.approx(75.0)
    assert row["orientation_within_10_deg"] == pytest.approx(87.5)
    assert row["scale_within_1_6_octave"] == pytest.approx(75.0)
    assert row["scale_within_1_3_octave"] == pytest.approx(87.5)
    assert row["orientation_points"] == row["scale_points"] == 8


def test_what_a_method_never_says_is_absent():
    silent = Estimates(np.full(2, np.nan), np.zeros(2))
    row = summarize_pose_errors([pose_errors(silent, silent, 1.0, 0.0)])
    assert row["scale_within_1_6_octave"] is None
    assert row["scale_points"] == 0
    assert row["orientation_within_5_deg"] == 100.0
    assert format_table([{"method": "m", **row}]).splitlines()[1].split()[4] == "-"


def test_no_points_at_all_give_no_shares():
    assert summarize_pose_errors([])["orientation_within_5_deg"] is None
