"""Benchmarks and their command, on small trees made of a photograph."""

from __future__ import annotations

import json
import math
import os
import re
import runpy
import time
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose

from cv_patchpose.cli import main
from cv_patchpose.estimator import BUNDLED_MODELS
from cv_patchpose.evaluation import homography_matching, homography_pose, patchpose
from cv_patchpose.evaluation.detection import detect
from cv_patchpose.evaluation.homography_matching import MatchingProtocol
from cv_patchpose.evaluation.homography_pose import (
    PoseProtocol,
    fixed_points,
    paper_points,
    repeated_points,
)
from cv_patchpose.evaluation.patchpose import PatchPoseProtocol
from cv_patchpose.evaluation.pipeline import load_pipeline
from cv_patchpose.evaluation.runner import run_units
from cv_patchpose.evaluation.sequences import find_sequences, list_pairs, turn_image
from cv_patchpose.homography import local_jacobian, nearest_similarity, project
from cv_patchpose.keypoints import arrays_from_keypoints

TURN_DEG, ZOOM = 25.0, 1.5


@pytest.fixture(scope="module")
def root(photograph, tmp_path_factory) -> Path:
    """Two sequences: image 2 turned and zoomed, image 3 the same as image 1."""
    root = tmp_path_factory.mktemp("tree")
    for name, suffix in (("group/v_first", "png"), ("group/v_second", "webp")):
        folder = root / name
        folder.mkdir(parents=True)
        view = turn_image(photograph, TURN_DEG, ZOOM)
        cv2.imwrite(str(folder / f"1.{suffix}"), photograph)
        cv2.imwrite(str(folder / f"2.{suffix}"), view.image)
        cv2.imwrite(str(folder / f"3.{suffix}"), photograph)
        np.savetxt(folder / "H_1_2", view.from_photo)
        np.savetxt(folder / "H_1_3", np.eye(3))
    return root


def write_bad_sequence(root, name, photograph):
    folder = root / name
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), photograph)
    cv2.imwrite(str(folder / "2.png"), photograph)
    return folder


def test_layout_is_found_at_any_depth(root):
    sequences, failures = find_sequences(root)
    assert [sequence.name for sequence in sequences] == ["group/v_first", "group/v_second"]
    assert [target.path.name for target in sequences[1].targets] == ["2.webp", "3.webp"]
    assert_allclose(sequences[0].targets[1].homography, np.eye(3))
    assert failures == {}


def test_every_third_pair_is_kept_across_sequences(root):
    sequences, _ = find_sequences(root)
    kept = [(pair.sequence, pair.target.path.name) for pair in list_pairs(sequences, quick=True)]
    assert kept == [("group/v_first", "2.png"), ("group/v_second", "3.webp")]


def test_bad_sequences_are_named_and_do_not_lose_the_others(tmp_path, photograph):
    write_bad_sequence(tmp_path, "good", photograph)
    np.savetxt(tmp_path / "good/H_1_2", np.eye(3))
    (tmp_path / "good/H_1_2~").touch()  # an editor's
    write_bad_sequence(tmp_path, "missing", photograph)
    (write_bad_sequence(tmp_path, "words", photograph) / "H_1_2").write_text("a b c")
    (write_bad_sequence(tmp_path, "short", photograph) / "H_1_2").write_text("1 2 3")
    np.savetxt(write_bad_sequence(tmp_path, "singular", photograph) / "H_1_2", np.ones((3, 3)))
    (write_bad_sequence(tmp_path, "empty", photograph) / "H_1_2").touch()
    np.savetxt(write_bad_sequence(tmp_path, "nan", photograph) / "H_1_2", np.full((3, 3), np.nan))
    (write_bad_sequence(tmp_path, "ragged", photograph) / "H_1_2").write_text("1 0 0\n0 1\n0 0 1")
    np.savetxt(write_bad_sequence(tmp_path, "headless", photograph) / "H_1_2", np.eye(3))
    (tmp_path / "headless/1.png").rename(tmp_path / "headless/01.png")
    np.savetxt(write_bad_sequence(tmp_path, "gif", photograph) / "H_1_2", np.eye(3))
    (tmp_path / "gif/2.png").rename(tmp_path / "gif/2.gif")
    np.savetxt(write_bad_sequence(tmp_path, "twice", photograph) / "H_1_2", np.eye(3))
    cv2.imwrite(str(tmp_path / "twice/1.ppm"), photograph)
    sequences, failures = find_sequences(tmp_path)
    assert [sequence.name for sequence in sequences] == ["good"]
    bad = {"missing", "words", "short", "singular", "empty", "nan", "ragged"}
    assert set(failures) == bad | {"headless", "gif", "twice"}
    assert "missing/H_1_2: expected a homography file, got none" in failures["missing"]
    assert "words/H_1_2: expected a 3 x 3 matrix" in failures["words"]
    for name, got in (("short", "lines of 3"), ("empty", "an empty file"), ("ragged", "3, 2, 3")):
        assert re.search(rf"{name}/H_1_2: expected a 3 x 3 matrix, .* got .*{got}", failures[name])
    assert "nan/H_1_2: expected finite numbers, got [[nan" in failures["nan"]
    assert "headless/H_1_2: expected an image 1.* beside it" in failures["headless"]
    assert "gif/H_1_2: expected an image 2.* beside it" in failures["gif"]
    assert ".ppm" in failures["gif"]
    assert "twice: expected one image 1.*, got 1.png and 1.ppm" in failures["twice"]
    assert "singular/H_1_2: expected an invertible matrix" in failures["singular"]


def test_bad_pairs_are_named_and_do_not_lose_the_others(tmp_path, photograph):
    folder = write_bad_sequence(tmp_path, "city", photograph)
    for number in (3, 4, 5, 6):
        cv2.imwrite(str(folder / f"{number}.png"), photograph)
    cv2.imwrite(str(folder / "5.ppm"), photograph)
    for number in (2, 5, 6, 7):
        np.savetxt(folder / f"H_1_{number}", np.eye(3))
    (folder / "H_1_4").write_text("a b c")
    (sequence,), failures = find_sequences(tmp_path)
    assert [target.path.name for target in sequence.targets] == ["2.png", "6.png"]
    assert list(failures) == ["city/1-3", "city/1-4", "city/1-5", "city/1-7"]
    messages = [
        "city/H_1_3: expected a homography file, got none",
        "city/H_1_4: expected a 3 x 3 matrix as text",
        "city: expected one image 5.*, got 5.png and 5.ppm",
        "city/H_1_7: expected an image 7.* beside it",
    ]
    for message, failure in zip(messages, failures.values(), strict=True):
        assert message in failure
    outcome = homography_matching.run_benchmark(
        tmp_path, MatchingProtocol(methods=("upright",), max_keypoints=20)
    )
    assert outcome.rows[0]["pairs"] == 2
    assert outcome.failures == failures


def test_links_that_go_round_in_circles_add_nothing(root, tmp_path):
    (tmp_path / "linked").symlink_to(root / "group")
    for name in ("loop", "again"):
        (tmp_path / name).symlink_to(".")
    sequences, _ = find_sequences(tmp_path)
    assert [sequence.name for sequence in sequences] == ["linked/v_first", "linked/v_second"]


def test_a_root_that_is_a_sequence_has_its_folder_s_name(root, monkeypatch):
    monkeypatch.chdir(root / "group/v_first")
    (sequence,), _ = find_sequences(Path())
    assert sequence.name == "v_first"


def test_what_is_wrong_is_told_where_nothing_is_left(tmp_path, photograph):
    write_bad_sequence(tmp_path, "missing", photograph)
    np.savetxt(write_bad_sequence(tmp_path, "broken", photograph) / "H_1_2", np.eye(3))
    (tmp_path / "broken/2.png").write_bytes(b"not a picture")
    for module, protocol in (
        (homography_matching, MatchingProtocol(methods=("upright",))),
        (homography_pose, PoseProtocol(methods=("upright",))),
    ):
        with pytest.raises(
            ValueError, match=r"missing/H_1_2: expected(.|\n)*2\.png: expected an im"
        ):
            module.run_benchmark(tmp_path, protocol)


def test_images_too_small_for_any_point_are_refused(tmp_path, photograph):
    np.savetxt(write_bad_sequence(tmp_path, "tiny", photograph) / "H_1_2", np.eye(3))
    cv2.imwrite(str(tmp_path / "tiny/2.png"), photograph[:1, :1])
    with pytest.raises(ValueError, match=r"2\.png: expected an image of at least .* got 1 x 1"):
        homography_matching.run_benchmark(tmp_path, MatchingProtocol(methods=("upright",)))


def test_empty_or_missing_root_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"root: expected folders with images 1\.\*"):
        find_sequences(tmp_path)
    with pytest.raises(ValueError, match="root: expected a folder, got"):
        find_sequences(tmp_path / "absent")


def test_perfect_matcher_scores_one_and_shuffled_one_about_zero(photograph):
    protocol = MatchingProtocol(methods=("upright",), max_keypoints=200)
    view = turn_image(photograph)
    features = load_pipeline(protocol).compute(view)["upright"]
    perfect = homography_matching.score_pair(features, features, np.eye(3), view)
    assert perfect.accuracy == [1.0] * 10
    assert perfect.matches == perfect.correct == 200 == perfect.keypoints
    assert perfect.corner_error < 1e-3
    assert set(perfect.seconds) == {"detect", "pose", "describe", "match", "verify"}
    order = np.random.default_rng(0).permutation(200)
    shuffled = replace(features, keypoints=features.keypoints.take(order))
    lost = homography_matching.score_pair(features, shuffled, np.eye(3), view)
    assert max(lost.accuracy) < 0.1
    assert lost.corner_error > 10


def test_matching_rows_tell_oriented_from_upright(root):
    protocol = MatchingProtocol(
        methods=("upright", "detector", "detector-all"), max_keypoints=300, min_zoom_change=1.33
    )
    outcome = homography_matching.run_benchmark(root, protocol)
    upright, own, every = outcome.rows
    assert own["pairs"] == 2  # image 3 is not zoomed
    assert own["mma_3"] > upright["mma_3"]
    assert own["correct_matches"] > 60
    assert every["keypoints"] > own["keypoints"] == 300
    assert every["correct_matches"] > own["correct_matches"]
    assert own["mma_1"] <= own["mma_3"] <= own["mma_5"] <= 1
    assert own["homography_within_5_px"] == 100.0
    assert own["seconds_detect"] > 0
    assert outcome.failures == {}


def test_the_picture_counts_correct_matches_as_the_table_does(root):
    protocol = MatchingProtocol(methods=("detector-all",), max_keypoints=200)
    pair = list_pairs(find_sequences(root)[0], quick=False)[0]
    (sample,) = homography_matching.measure_pair(pair, protocol)
    shown = homography_matching.show_pair(pair, protocol)
    assert shown.matches["detector-all"].inlier.sum() == sample.result.correct > 0


def test_a_budget_of_keypoints_is_the_same_for_all_methods(root):
    protocol = MatchingProtocol(
        methods=("detector", "detector-all"), max_keypoints=150, budget="keypoints", quick=True
    )
    rows = homography_matching.run_benchmark(root, protocol).rows
    assert [row["keypoints"] for row in rows] == [150, 150]


def test_adalam_leaves_fewer_wrong_matches(root):
    rows = [
        homography_matching.run_benchmark(
            root,
            MatchingProtocol(methods=("detector-all",), max_keypoints=300, matcher=matcher),
        ).rows[0]
        for matcher in ("mutual", "adalam")
    ]
    assert rows[1]["mma_3"] > rows[0]["mma_3"]
    assert rows[1]["mma_3"] > 0.95
    assert rows[1]["correct_matches"] > 0.5 * rows[0]["correct_matches"]


def test_turning_image_2_is_part_of_the_truth(root):
    protocol = MatchingProtocol(methods=("detector",), max_keypoints=300, rotate=60.0, zoom=0.8)
    assert homography_matching.run_benchmark(root, protocol).rows[0]["mma_3"] > 0.4


@pytest.mark.parametrize(
    ("detector", "descriptor"), [("orb", "orb"), ("akaze", "akaze"), ("fast", "brief")]
)
def test_any_descriptor_matches_what_was_turned(root, detector, descriptor):
    methods = ("detector", "detector@describe")
    protocol = MatchingProtocol(
        methods=methods, detector=detector, descriptor=descriptor, max_keypoints=200, quick=True
    )
    rows = homography_matching.run_benchmark(root, protocol).rows
    assert [row["refused_pairs"] for row in rows] == [0, 0]
    assert min(row["mma_3"] for row in rows) > 0.3


def test_refused_pairs_are_counted_and_have_no_matches(root, toy_model):
    methods = ("detector", str(toy_model), f"{toy_model}@naive")
    protocol = MatchingProtocol(methods=methods, descriptor="orb", max_keypoints=100, quick=True)
    own, written, naive = homography_matching.run_benchmark(root, protocol).rows
    assert own["refused_pairs"] == written["refused_pairs"] == 0
    assert min(own["matches"], written["matches"]) > 0
    assert naive["refused_pairs"] == naive["pairs"] == 2
    assert naive["matches"] == naive["mma_3"] == naive["correct_matches"] == 0


def test_pairings_page_says_where_the_detector_is_ahead():
    script = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks/pairings.py"))

    def result(rotate, own, ours):
        figures = zip(script["methods_of"]("polar"), (own, 9, 0, ours, ours - 1), strict=True)
        rows = [
            {"method": m, "correct_matches": n, "mma_3": n / 100, "refused_pairs": int(not n)}
            for m, n in figures
        ]
        return {"detector": "orb", "descriptor": "sift", "rotate": rotate, "rows": rows}

    results = [result(0.0, 30, 20), result(60.0, 10, 12)]
    losses = script["format_losses"](results, "polar")
    assert "- orb + sift: correct matches 20 against 30; MMA@3 0.200 against 0.300." in losses
    assert "60 degrees" not in losses
    assert "ahead everywhere" in script["format_losses"](results[1:], "polar")
    line = script["format_line"](results[0], script["methods_of"]("polar"))
    assert line.startswith("orb + sift | **30** / 0.300 | 9 / 0.090 | 0 / 0.000, refused 1 | 20 /")


def test_protocol_that_leaves_no_pair_says_so(root):
    protocol = MatchingProtocol(methods=("upright",), min_zoom_change=8.0)
    with pytest.raises(ValueError, match="root: expected pairs that meet the protocol"):
        homography_matching.run_benchmark(root, protocol)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_keypoints": 0}, "max_keypoints: expected a finite number above 0, got 0"),
        ({"zoom": -1.0}, "zoom: expected a factor from 1/8 to 8, got -1.0"),
        ({"zoom": 1000.0}, "zoom: expected a factor from 1/8 to 8, got 1000.0"),
        ({"rotate": math.nan}, "rotate: expected a finite number of degrees, got nan"),
        ({"corner_size": float("nan")}, "corner_size: expected a finite number above 0"),
        ({"detector": "surf"}, "detector: expected one of sift, orb, .* got 'surf'"),
        ({"descriptor": "surf"}, "descriptor: expected one of sift, orb, .* got 'surf'"),
        ({"matcher": "flann"}, "matcher: expected one of mutual, adalam, got 'flann'"),
        ({"budget": "all"}, "budget: expected one of places, keypoints, got 'all'"),
        ({"min_zoom_change": 0.5}, "min_zoom_change: expected above 1"),
    ],
)
def test_matching_protocol_is_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        MatchingProtocol(methods=("upright",), **changes)


def test_fixed_points_lie_inside_both_images_at_exact_positions(photograph):
    view1, view2 = turn_image(photograph), turn_image(photograph, TURN_DEG, ZOOM)
    points1, points2 = fixed_points(view1, view2, view2.from_photo, 96.0)
    assert 100 < len(points1) == len(points2) <= 400
    xy1, xy2 = points1.xy_px.astype(float), points2.xy_px.astype(float)
    assert_allclose(xy2, project(view2.from_photo, xy1), atol=1e-3)
    assert view1.shows(xy1, 48.0).all()
    assert view2.shows(xy2, 47.99).all()
    assert len(set(points1.size_px) | set(points2.size_px)) == 1


def test_repeated_points_agree_in_place_and_size(photograph):
    view1, view2 = turn_image(photograph), turn_image(photograph, TURN_DEG, ZOOM)
    points1, points2 = repeated_points(view1, view2, view2.from_photo, 500)
    assert len(points1) == len(points2) > 100
    offset = project(view2.from_photo, points1.xy_px.astype(float)) - points2.xy_px
    assert np.linalg.norm(offset, axis=1).max() <= 2
    assert np.abs(np.log2(points2.size_px / points1.size_px / ZOOM)).max() <= 0.5
    assert len({tuple(xy) for xy in points2.xy_px}) > 0.95 * len(points2)


def test_pose_of_a_known_turn_is_recognised(root):
    methods = ("identity", "detector", "gradient-histogram")
    fixed = homography_pose.run_benchmark(root, PoseProtocol(methods=methods, rotate=50.0))
    identity, detector, gradient = fixed.rows
    assert identity["orientation_within_20_deg"] == 0.0
    assert identity["scale_within_1_6_octave"] == pytest.approx(50.0, abs=15)  # image 3
    assert gradient["orientation_within_10_deg"] > 60
    assert gradient["scale_within_1_3_octave"] is None
    assert detector["scale_within_1_3_octave"] is None  # it measured no size at a given window
    assert detector["orientation_within_10_deg"] > 60
    assert fixed.rows[0]["orientation_points"] > 400


def test_detectors_own_pose_of_repeated_points(root):
    protocol = PoseProtocol(methods=("identity", "detector"), points="repeated")
    identity, own = homography_pose.run_benchmark(root, protocol).rows
    assert own["orientation_within_10_deg"] > 70
    assert own["scale_within_1_6_octave"] > identity["scale_within_1_6_octave"]


def test_candidates_and_whole_bins_at_points(root):
    methods = ("identity", "polar", "sift-at-point")
    plain, several = (
        homography_pose.run_benchmark(
            root, PoseProtocol(methods=methods, max_keypoints=60, rotate=50.0, top_k=k)
        ).rows
        for k in (1, 3)
    )
    for row, other in zip(plain, several, strict=True):
        assert row.items() <= other.items()  # the same, and recall
        assert not [name for name in row if "recall" in name]
        assert row["orientation_points"] <= 4 * 60
    identity, polar, sift = several
    assert polar["orientation_within_10_deg_argmax"] > 40
    assert polar["scale_within_1_3_octave_argmax"] > 40
    assert identity["orientation_within_10_deg_argmax"] is None
    for name, within in (
        ("recall_orientation_10_deg", "orientation_within_10_deg"),
        ("recall_scale_1_3_octave", "scale_within_1_3_octave"),
    ):
        recall = [polar[f"{name}@{k}"] for k in (1, 2, 3)]
        assert recall == sorted(recall)
        assert recall[0] == polar[within]
        assert identity[f"{name}@2"] is None
    assert polar["recall_scale_1_3_octave@3"] > polar["recall_scale_1_3_octave@1"]
    assert sift["recall_orientation_10_deg@3"] > sift["recall_orientation_10_deg@1"]
    assert sift["recall_scale_1_3_octave@2"] is None


def test_candidates_of_repeated_points_stand_beside_the_pose_with_its_prior(root):
    options = {"points": "repeated", "max_keypoints": 100}
    protocol = PoseProtocol(methods=("polar", "sift-at-point"), top_k=2, **options)
    polar, sift = homography_pose.run_benchmark(root, protocol).rows
    for row in (polar, sift):
        assert row["recall_orientation_10_deg@1"] <= row["recall_orientation_10_deg@2"]
    assert polar["recall_scale_1_3_octave@1"] == polar["scale_within_1_3_octave"]
    assert polar["recall_scale_1_3_octave@1"] <= polar["recall_scale_1_3_octave@2"]


def test_points_of_the_paper_are_half_blobs_half_corners(photograph):
    view1, view2 = turn_image(photograph), turn_image(photograph, TURN_DEG, ZOOM)
    points1, points2 = paper_points(view1, view2, view2.from_photo, 64.0)
    assert len(points1) == len(points2) == 25
    moved = project(view2.from_photo, points1.xy_px.astype(float))
    assert_allclose(points2.xy_px, moved, atol=1e-3)
    corners, _ = fixed_points(view1, view2, view2.from_photo, 64.0, 12)
    assert len(corners) == 12
    assert points1.xy_px[13:].tolist() == corners.xy_px.tolist()
    blobs = {tuple(xy) for xy in detect(view1, "sift", 5000, 1.0).points.xy_px.tolist()}
    assert {tuple(xy) for xy in points1.xy_px[:13].tolist()} <= blobs
    assert set(points1.size_px) == {1}
    assert len(paper_points(view1, view2, view2.from_photo, 64.0, 5)[0]) == 5


def test_evaluation_at_the_points_of_the_paper(root):
    protocol = PoseProtocol(methods=("gradient-histogram",), points="paper", window_px=64.0)
    (row,) = homography_pose.run_benchmark(root, protocol).rows
    assert row["orientation_points"] == 4 * 25
    assert row["orientation_within_10_deg"] > 60


def test_all_ground_truths_agree_on_a_similarity(root):
    local, *others = [
        homography_pose.run_benchmark(root, PoseProtocol(methods=("detector",), ground_truth=kind))
        for kind in homography_pose.GROUND_TRUTHS
    ]
    for other in others:
        for column, value in local.rows[0].items():
            assert other.rows[0][column] == (
                value if isinstance(value, str) else pytest.approx(value)
            )


def posed(ground_truth, **options):
    return PoseProtocol(methods=("identity",), ground_truth=ground_truth, **options)


@pytest.mark.parametrize("source", ["fixed", "repeated"])
def test_the_truth_of_gradients_turns_as_edges_do(source):
    """Points slide down by how far right they are: level edges slope by 20 degrees."""
    steps = np.repeat(np.uint8(127 + 100 * np.sin(np.arange(200) / 8))[:, None], 200, 1)
    disc = cv2.circle(np.zeros_like(steps), (100, 100), 70, 255, -1) > 0
    image = np.where(disc, steps, steps.T)  # another direction beyond the window
    images = cv2.merge([image] * 3), cv2.merge([steps.T] * 3)
    shear = np.array([[1, 0, 0], [math.tan(math.radians(20)), 1, 0], [0, 0, 1]])
    points = arrays_from_keypoints([cv2.KeyPoint(100, 100, 6.0)])
    by_points, by_gradients = (
        homography_pose._true_change(shear, points, posed(kind, points=source), images)
        for kind in ("local", "gradients")
    )
    assert_allclose(by_gradients[0], by_points[0])
    assert_allclose(by_points[1], nearest_similarity(shear[:2, :2])[1])
    assert_allclose(by_gradients[1], 20.0, atol=0.1)


def test_the_normalized_truth_is_the_change_where_centre_meets_centre():
    images = np.zeros((101, 201, 3), np.uint8), np.zeros((81, 121, 3), np.uint8)
    middles = np.array([[100.0, 50.0]]), np.array([[60.0, 40.0]])
    shifts = [np.array([[1, 0, x], [0, 1, y], [0, 0, 1]]) for ((x, y),) in middles]
    centred = np.array([[0.9, -0.5, 0], [0.5, 0.9, 0], [0.002, -0.001, 1]])
    homography = shifts[1] @ centred @ np.linalg.inv(shifts[0])
    points = arrays_from_keypoints([cv2.KeyPoint(*middles[0][0], 5.0)])
    local, normalized, paper = [
        homography_pose._true_change(homography, points, posed(kind), images)
        for kind in ("local", "normalized", "global")
    ]
    assert_allclose(normalized, local)
    assert np.abs(paper[1] - local[1]) > 0.3


def test_pose_protocol_is_checked():
    with pytest.raises(
        ValueError, match="points: expected one of fixed, repeated, paper, got 'all'"
    ):
        PoseProtocol(methods=("identity",), points="all")
    with pytest.raises(ValueError, match="ground_truth: expected one of local, gradients, global"):
        PoseProtocol(methods=("identity",), ground_truth="eq10")
    with pytest.raises(ValueError, match="methods: expected one pose per point"):
        PoseProtocol(methods=("detector-all",))


def test_clean_protocol_measures_turns_and_zooms_apart(root):
    protocol = PatchPoseProtocol(methods=("upright", "gradient-histogram"), images=2, views=3)
    upright, gradient = patchpose.run_benchmark(root, protocol).rows
    assert gradient["orientation_within_10_deg"] > 80
    assert upright["orientation_within_10_deg"] < 50
    assert upright["orientation_points"] == upright["scale_points"] == 2 * 3 * 10
    assert gradient["scale_points"] == 0


def test_clean_protocol_is_repeatable_and_refuses_what_it_cannot_use(root, tmp_path):
    protocol = PatchPoseProtocol(methods=("upright", "gradient-histogram"), images=1, views=2)
    again = [patchpose.run_benchmark(root, protocol).rows for _ in range(2)]
    assert again[0] == again[1]
    with pytest.raises(ValueError, match="root: expected image files .* got none"):
        patchpose.run_benchmark(tmp_path, protocol)
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((50, 50, 3), np.uint8))
    with pytest.raises(ValueError, match=r"small\.png: expected corners 128 px from its border"):
        patchpose.run_benchmark(tmp_path, protocol)


@dataclass(frozen=True)
class Unit:
    name: str


def measure_even(unit):
    if int(unit.name) % 2:
        raise ValueError(f"{unit.name} is odd")
    return [unit.name]


def measure_unlike(unit):
    if unit.name == "s/3":
        raise KeyError("angle")
    return measure_even(Unit(unit.name[-1]))


def test_failures_say_how_many_pairs_and_what_was_not_foreseen():
    units = [Unit(f"s/{number}") for number in range(4)] + [Unit("t/1")]
    samples, failures = run_units(
        measure_unlike, units, 1, lambda unit: unit.name[0], {"u": "is empty"}
    )
    assert samples == ["0", "2"]
    assert failures == {
        "u": "is empty",
        "s": "1 of 4 pairs (1): 1 is odd; 1 of 4 pairs (3): KeyError: 'angle'",
        "t": "1 is odd",
    }


@pytest.mark.parametrize("jobs", [1, 2])
def test_units_keep_their_order_and_failures_their_names(jobs):
    units = [Unit(str(number)) for number in range(5)]
    samples, failures = run_units(measure_even, units, jobs)
    assert samples == ["0", "2", "4"]
    assert failures == {"1": "1 is odd", "3": "3 is odd"}


def measure_process(unit):
    time.sleep(float(unit.name))
    return [os.getpid()]


def test_a_process_measures_neighbours_and_then_helps_the_others():
    processes, _ = run_units(measure_process, [Unit("0.2")] * 20, 2)
    assert len(set(processes[:5])) == len(set(processes[10:15])) == 1
    assert processes[0] != processes[10]
    units = [Unit("3")] + [Unit("0")] * 5
    processes, _ = run_units(measure_process, units, 2)
    assert processes[0] not in processes[1:]
    assert len(set(processes[1:])) == 1


def test_one_process_may_have_nothing_to_do():
    assert run_units(measure_even, [Unit("2")], 1000) == (["2"], {})
    assert run_units(measure_even, [], 2) == ([], {})


def measure_and_die(unit):
    if unit.name == "3":
        os._exit(1)
    return [unit.name]


def test_a_process_that_dies_is_told():
    units = [Unit(str(number)) for number in range(5)]
    with pytest.raises(ChildProcessError, match="2 processes that finish, got one that died"):
        run_units(measure_and_die, units, 2)


def test_nothing_measured_is_an_error():
    with pytest.raises(ValueError, match="1: 1 is odd\n3: 3 is odd"):
        run_units(measure_even, [Unit("1"), Unit("3")], 1)
    with pytest.raises(ValueError, match="jobs: expected at least 1, got 0"):
        run_units(measure_even, [Unit("2")], 0)


def test_command_writes_json_and_prints_a_table(root, tmp_path, capsys):
    output = tmp_path / "out.json"
    options = ["--methods", "upright,detector", "--quick", "--max-keypoints", "100"]
    options += ["--detector", "brisk", "--descriptor", "freak"]
    assert main(["evaluate", "homography-matching", str(root), *options, "-o", str(output)]) == 0
    content = json.loads(output.read_text())
    assert list(content) == ["benchmark", "protocol", "rows", "failures", "environment"]
    assert content["benchmark"] == "homography-matching"
    assert content["protocol"]["max_keypoints"] == 100
    assert content["protocol"]["descriptor"] == "freak"
    assert [row["method"] for row in content["rows"]] == ["upright", "detector"]
    assert content["rows"][0]["pairs"] == 2
    assert {"cpu", "threads", "commit", "opencv", "numpy"} <= set(content["environment"])
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:4] == ["method", "mma_1", "mma_3", "mma_5"]
    assert [line.split()[0] for line in table[1:3]] == ["upright", "detector"]
    assert table[4].startswith("Time, ms: detect, pose and describe for an image")
    assert table[5].split() == ["method", "detect", "pose", "describe", "match", "verify"]
    assert float(table[6].split()[1]) > 0
    assert {path.name for path in tmp_path.iterdir()} == {"out.json", ".cv-patchpose-cache"}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_command_records_the_threads_of_the_processes_that_measure(
    root, tmp_path, monkeypatch, jobs
):
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    output = tmp_path / "out.json"
    arguments = ["homography-pose", str(root), "--methods", "identity", "--quick", "--jobs", jobs]
    assert main(["evaluate", *arguments, "-o", str(output)]) == 0
    environment = json.loads(output.read_text())["environment"]
    assert environment["jobs"] == int(jobs)
    assert environment["threads"] == (cv2.getNumThreads() if jobs == "1" else 3)


def test_command_reports_a_broken_image_and_goes_on(root, tmp_path, photograph, capsys):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("broken", "good"):
        write_bad_sequence(tree, name, photograph)
        np.savetxt(tree / name / "H_1_2", np.eye(3))
    (tree / "broken/2.png").write_bytes(b"not a picture")
    output = tmp_path / "out.json"
    arguments = ["homography-pose", str(tree), "--methods", "identity", "-o", str(output)]
    assert main(["evaluate", *arguments]) == 1
    assert "not measured: broken: " in capsys.readouterr().err
    content = json.loads(output.read_text())
    assert "2.png" in content["failures"]["broken"]
    assert content["rows"][0]["orientation_within_5_deg"] == 100.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stereo", "ROOT"], "BENCHMARK: expected one of homography-matching, homography-pose"),
        (["homography-pose", "ROOT", "--methods", "siift"], "without a model of ours: identity"),
        (["homography-matching", "ROOT", "--descriptor", "surf"], "descriptor: expected one of"),
        (["patchpose", "ROOT", "--detector", "orb"], "patchpose, got one of homography-"),
        (["two-view", "ROOT", "--images", "3"], "of two-view, got one of patchpose only"),
        (["homography-pose", "ROOT", "--methods", "orinet"], "--peer-weights: expected a folder"),
        (
            ["homography-pose", "ROOT", "--methods", "polar", "--scale-prior", "0.2"],
            "--scale-prior: expected auto or none for fixed points, got 0.2",
        ),
        (
            ["homography-matching", "ROOT", "--methods", "polar", "--scale-prior", "-1"],
            '--scale-prior: expected "auto", a number of at least 0',
        ),
        (["homography-pose", "EMPTY"], "ROOT: expected folders"),
        (["patchpose", "NOWHERE"], "ROOT: expected a folder of photographs or a PatchPose dataset"),
    ],
)
def test_command_refuses_bad_arguments(root, tmp_path, capsys, arguments, message):
    output = tmp_path / "out.json"
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"ROOT": str(root), "EMPTY": str(empty)}
    arguments = [places.get(argument, argument) for argument in arguments]
    methods = [] if "--methods" in arguments else ["--methods", "identity"]
    assert main(["evaluate", *arguments, *methods, "-o", str(output)]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_help_names_the_methods_and_their_limits(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    text = " ".join(capsys.readouterr().out.replace("-\n", "-").split())
    assert all(model in text.replace("- ", "-") for model in BUNDLED_MODELS)
    assert "(all but sift, orb, akaze, brisk), detector is SIFT's gradient rule" in text
    assert "not that of the baseline" in text


def test_command_checks_the_output_first(root, tmp_path, capsys):
    for output in (tmp_path / "absent/out.json", tmp_path / "out.txt"):
        arguments = ["patchpose", str(root), "--methods", "identity", "-o", str(output)]
        assert main(["evaluate", *arguments]) == 2
        assert "expected" in capsys.readouterr().err


def test_local_truth_of_a_turned_view_is_its_turn(photograph):
    view = turn_image(photograph, 40.0, 0.5)
    jacobian = local_jacobian(view.from_photo, np.array([[10.0, 400.0]]))
    scale, angle_deg = nearest_similarity(jacobian)
    assert (scale[0], angle_deg[0]) == (pytest.approx(0.5), pytest.approx(40.0))
