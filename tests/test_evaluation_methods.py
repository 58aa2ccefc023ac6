"""Detections, estimators and their names."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose

from cv_patchpose.descriptors import rule_for
from cv_patchpose.evaluation.controls import AffineShape, AngleOnly
from cv_patchpose.evaluation.description import Features, describe_keypoints
from cv_patchpose.evaluation.detection import DETECTORS, SCALELESS_DETECTORS, detect
from cv_patchpose.evaluation.interface import MethodSettings
from cv_patchpose.evaluation.matchers import match_features
from cv_patchpose.evaluation.methods import CONTROLS, load_method, require_one_pose
from cv_patchpose.evaluation.peers import OriNet
from cv_patchpose.evaluation.runner import load_methods
from cv_patchpose.evaluation.sequences import turn_image
from cv_patchpose.evaluation.sift_rules import (
    characteristic_size_px,
    dominant_gradient_deg,
    gradient_peaks_deg,
)
from cv_patchpose.homography import project
from cv_patchpose.keypoints import keypoints_from_arrays
from cv_patchpose.matching import describe_root_sift

PEER_WEIGHTS = Path(__file__).parents[2] / "shared/data/peer-weights"


@pytest.fixture(scope="module")
def view(photograph):
    return turn_image(photograph)


@pytest.fixture(scope="module")
def sift_detections(view):
    return detect(view, "sift", 200, 12.0)


def ramp(direction_deg):
    """A disc's worth of brightness that rises towards a direction, clockwise from right."""
    rows, columns = np.indices((101, 101)) - 50
    turn = np.radians(direction_deg)
    value = 128 + 1.5 * (columns * np.cos(turn) + rows * np.sin(turn))
    return np.repeat(value.round().astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("direction_deg", [0, 37, 90, 181, 270, 355])
def test_convention_gradient_histogram_points_to_the_bright_side_clockwise(direction_deg):
    found = dominant_gradient_deg(ramp(direction_deg), np.array([[50.0, 50.0]]), np.array([60.0]))
    assert abs((found[0] - direction_deg + 180) % 360 - 180) < 1


def test_peaks_of_the_gradient_histogram_come_highest_first():
    corner = np.zeros((101, 101, 3), np.uint8)
    corner[50:, 40:] = 200  # its upper edge is nearer, and longer in the window
    place, window_px = np.array([[50.0, 50.0]]), np.array([60.0])
    peaks = gradient_peaks_deg(corner, place, window_px, 40)
    assert peaks.shape == (1, 40)
    assert_allclose(peaks[0, :2], [90, 0], atol=15)
    assert peaks[0, 0] == dominant_gradient_deg(corner, place, window_px)[0]
    assert np.isnan(peaks[0, 20:]).all()
    flat = gradient_peaks_deg(np.zeros_like(corner), place, window_px, 2)
    assert flat[0, 0] == 0
    assert np.isnan(flat[0, 1])


@pytest.mark.parametrize("radius_px", [7, 12, 20])
def test_the_characteristic_size_of_a_disc_is_its_diameter_over_root_2(radius_px):
    image = np.zeros((200, 200, 3), np.uint8)
    cv2.circle(image, (100, 90), radius_px, (255, 255, 255), -1, cv2.LINE_AA)
    center = np.array([[100.0, 90.0]])
    found = characteristic_size_px(image, center, np.array([8.0 * radius_px]))[0]
    assert found == pytest.approx(2**0.5 * radius_px, rel=0.1)
    # The negative is a blob of the same size, and so is one read in another window.
    assert characteristic_size_px(255 - image, center, np.array([8.0 * radius_px])) == (
        pytest.approx(found, rel=1e-3)
    )
    wider = characteristic_size_px(image, center, np.array([11.0 * radius_px]))
    assert wider == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("detector", DETECTORS)
def test_detections_are_the_strongest_places_in_order(view, detector):
    everything = detect(view, detector, 10_000, 12.0)
    kept = detect(view, detector, 50, 12.0)
    assert len(kept.points) == min(50, len(everything.points))
    assert len(kept.points) == 50 or detector == "blob"
    assert (np.diff(kept.points.response) <= 0).all()
    if len(kept.points) == 50 and detector != "orb":
        assert kept.points.response.min() == pytest.approx(everything.points.response[49])
    assert len(kept.points.distinct_index()) == len(kept.points)
    assert (kept.points.size_px == 12).all() == (detector in SCALELESS_DETECTORS)
    oriented = detector in ("sift", "orb", "akaze", "brisk")
    assert (kept.points.angle_deg == -1).all() == (not oriented)


@pytest.mark.parametrize("detector", ["mser", "tbmr"])
def test_detectors_without_response_give_points_from_all_over(view, detector):
    everything = detect(view, detector, 10_000, 12.0).points
    kept = detect(view, detector, 50, 12.0).points
    assert np.ptp(everything.response) == 0
    assert_allclose(kept.xy_px.mean(0), everything.xy_px.mean(0), atol=80)
    assert np.ptp(kept.xy_px[:, 0]) > 0.8 * np.ptp(everything.xy_px[:, 0])


@pytest.mark.parametrize("detector", ["orb", "akaze", "brisk", "kaze"])
def test_size_units_are_the_inverse_of_the_descriptors_rules(view, detector):
    found = detect(view, detector, 50, 12.0)
    back = rule_for(detector).write(found.characteristic, view.image.shape[:2])
    assert_allclose(back.size_px, found.points.size_px, rtol=1e-4)


@pytest.mark.parametrize("name", ["sift", "orb", "akaze", "brisk"])
def test_a_detector_s_own_descriptor_gets_its_own_fields(view, name):
    found = detect(view, name, 50, 12.0)
    posed = load_method("detector", MethodSettings()).pose(view.image, found, name)
    for field in ("size_px", "octave", "class_id"):
        assert_allclose(getattr(posed, field), getattr(found.points, field))


def test_other_descriptors_get_fields_by_their_rule(view):
    found = detect(view, "orb", 50, 12.0)
    posed = load_method("upright", MethodSettings()).pose(view.image, found, "sift")
    expected = rule_for("sift").write(found.characteristic, view.image.shape[:2])
    assert_allclose(posed.size_px, found.points.size_px / 6)
    assert_allclose(posed.octave, expected.octave)


def test_all_orientations_belong_to_the_same_places(sift_detections):
    points, oriented = sift_detections.points, sift_detections.oriented
    assert len(points) == 200 < len(oriented)
    assert set(map(tuple, oriented.xy_px)) == set(map(tuple, points.xy_px))


def test_detector_without_points_gives_none():
    blank = turn_image(np.zeros((80, 80, 3), np.uint8))
    for detector in DETECTORS:
        assert len(detect(blank, detector, 10, 12.0).points) == 0


def test_turned_view_has_no_points_off_the_photograph(photograph):
    view = turn_image(photograph, 30.0)
    points = detect(view, "fast", 500, 12.0).points
    assert view.shows(points.xy_px.astype(float), 3.9).all()


def test_controls_pose_as_they_say(view, sift_detections):
    methods = load_methods(("upright", "detector", "detector-all"), MethodSettings())
    posed = {name: m.pose(view.image, sift_detections) for name, m in methods.items()}
    assert (posed["upright"].angle_deg == 0).all()
    assert_allclose(posed["upright"].size_px, sift_detections.points.size_px)
    assert_allclose(posed["detector"].angle_deg, sift_detections.points.angle_deg % 360)
    assert len(posed["detector-all"]) == len(sift_detections.oriented)


def test_identity_predicts_no_change_whatever_the_sizes(view, sift_detections):
    estimates = load_method("identity", MethodSettings()).estimate(
        view.image, sift_detections.points
    )
    assert (estimates.size_px == 1).all()
    assert (estimates.angle_deg == 0).all()


def test_detector_falls_back_to_sifts_rule_where_no_angle_was_measured(view):
    corners = detect(view, "gftt", 30, 12.0)
    by_rule = load_method("gradient-histogram", MethodSettings()).pose(view.image, corners)
    by_detector = load_method("detector", MethodSettings()).pose(view.image, corners)
    assert_allclose(by_detector.angle_deg, by_rule.angle_deg)
    assert (by_rule.angle_deg > 0).any()


def test_gradient_histogram_finds_most_of_sifts_orientations(view, sift_detections):
    points, oriented = sift_detections.points, sift_detections.oriented
    found = load_method("gradient-histogram", MethodSettings()).estimate(view.image, points)
    best = [
        np.abs((oriented.angle_deg[(oriented.xy_px == xy).all(1)] - angle + 180) % 360 - 180).min()
        for xy, angle in zip(points.xy_px, found.angle_deg, strict=True)
    ]
    assert np.mean(np.array(best) < 10) > 0.8


def test_learned_method_follows_the_assigner(view, sift_detections, toy_model):
    points = sift_detections.points
    whole = load_method(f"{toy_model}:2", MethodSettings())
    assert len(whole.pose(view.image, sift_detections)) >= len(points)
    angle_only = load_method(f"{toy_model}@angle", MethodSettings())
    assert_allclose(angle_only.pose(view.image, sift_detections).size_px, points.size_px)
    scale_only = load_method(f"{toy_model}@scale", MethodSettings())
    posed = scale_only.pose(view.image, sift_detections)
    assert_allclose(posed.angle_deg, points.angle_deg)
    estimates = scale_only.estimate(view.image, points)
    assert_allclose(posed.size_px, estimates.size_px, rtol=1e-5)


def test_a_learned_method_may_read_poses_several_times(view):
    corners = detect(view, "gftt", 60, 12.0)
    once, twice, usual = (
        load_method(name, MethodSettings()).pose(view.image, corners).size_px
        for name in ("polar@1passes", "polar@2passes", "polar")
    )
    assert_allclose(twice, usual)
    assert np.abs(np.log2(once / twice)).mean() > 0.05
    with pytest.raises(ValueError, match="passes: expected .* from 1 to 16, got 0"):
        load_method("polar@0passes", MethodSettings())


def test_naive_poses_leave_the_other_fields_as_detected(view, toy_model):
    found = detect(view, "orb", 60, 12.0)
    settings = MethodSettings()
    naive = load_method(f"{toy_model}:2@naive", settings)
    posed = naive.pose(view.image, found, "sift")
    written = load_method(f"{toy_model}:2", settings).pose(view.image, found, "sift")
    assert naive.route == "naive"
    assert len(posed) == len(written) >= 60
    own = found.points.take(written.class_id)
    assert_allclose(posed.xy_px, own.xy_px)
    assert_allclose(posed.octave, own.octave)
    assert_allclose(posed.class_id, own.class_id)
    assert_allclose(posed.angle_deg, written.angle_deg)
    assert_allclose(posed.size_px, 6 * written.size_px, rtol=1e-5)


@pytest.mark.parametrize("name", ["upright", "detector", "gradient-histogram", "MODEL"])
def test_patches_get_characteristic_sizes(view, flat_model, name):
    found = detect(view, "orb", 40, 12.0)
    spec = f"{flat_model if name == 'MODEL' else name}@describe"
    method = load_method(spec, MethodSettings())
    assert method.route == "patches"
    posed = method.pose(view.image, found, "sift")
    assert_allclose(posed.size_px, found.characteristic.size_px)


@pytest.mark.parametrize("descriptor", ["brisk", "freak"])
def test_what_a_descriptor_does_not_read_is_no_warning(view, toy_model, descriptor):
    found = detect(view, "fast", 20, 12.0)
    assert len(load_method(str(toy_model), MethodSettings()).pose(view.image, found, descriptor))


@pytest.mark.parametrize("spec", ["sift", "polar:two", "polar@size", ":2", ""])
def test_unknown_method_lists_the_accepted_ones(spec):
    with pytest.raises(ValueError, match=f"methods: expected one of these, got '{spec}'") as error:
        load_method(spec, MethodSettings())
    lines = str(error.value).splitlines()
    for start in ("without a model of ours: identity", "learned: polar", "behind", "your own"):
        assert any(line.startswith(start) for line in lines)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("upright:2", "expected upright as it is .* only learned methods take :K"),
        ("upright@naive", "expected upright as it is .* got 'upright@naive'"),
        ("polar:0", "expected at least 1 behind the colon, got 'polar:0'"),
    ],
)
def test_what_a_method_does_not_take_is_told(spec, message):
    with pytest.raises(ValueError, match=f"methods: {message}"):
        load_method(spec, MethodSettings())


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([0.0], r"expected angles of shape \(3,\), got \(1,\)"),
        ([0.0, np.nan, np.inf], "expected finite angles, got .* for 2 of 3 points, the first 1"),
    ],
)
def test_what_a_user_s_estimator_returns_is_checked(view, sift_detections, found, message):
    method = AngleOnly(lambda image, xy_px, window_px: found, 12.0)
    with pytest.raises(ValueError, match=f"estimator: {message}"):
        method.estimate(view.image, sift_detections.points.take(np.arange(3)))
    shapes = AffineShape(lambda image, xy_px, window_px: np.eye(2), 12.0)
    with pytest.raises(ValueError, match=r"expected shapes of shape \(3, 2, 2\), got \(2, 2\)"):
        shapes.estimate(view.image, sift_detections.points.take(np.arange(3)))


def test_missing_model_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected an ONNX file, got .*absent\.onnx"):
        load_method(str(tmp_path / "absent.onnx:2"), MethodSettings())


def test_methods_must_differ():
    for specs in ((), ("upright", "upright")):
        with pytest.raises(ValueError, match="methods: expected one or more different names"):
            load_methods(specs, MethodSettings())


@pytest.mark.parametrize(
    "spec", ["detector-all", "detector-all@describe", "polar:2", "polar:3@angle", "polar:2@naive"]
)
def test_several_poses_per_point_are_refused_for_relative_pose(spec):
    with pytest.raises(ValueError, match=f"methods: expected one pose per point, got '{spec}'"):
        require_one_pose(("identity", spec))


def test_one_pose_per_point_is_accepted():
    require_one_pose((*set(CONTROLS) - {"detector-all"}, "polar", "polar:1", "a.onnx@angle"))


def test_orinet_needs_its_weights(tmp_path):
    with pytest.raises(ValueError, match=r"peer_weights: expected a folder with OriNet\.pth"):
        load_method("orinet", MethodSettings())
    with pytest.raises(ValueError, match=r"peer_weights: expected a file .*OriNet\.pth"):
        OriNet(tmp_path)


def test_orinet_without_its_packages_says_how_to_get_them(tmp_path, monkeypatch):
    (tmp_path / "OriNet.pth").touch()
    monkeypatch.setitem(sys.modules, "kornia.feature", None)
    with pytest.raises(ImportError, match=r"pip install 'cv-patchpose\[eval\]'"):
        OriNet(tmp_path)


@pytest.mark.shared_data
@pytest.mark.skipif(not PEER_WEIGHTS.is_dir(), reason="no peer weights")
def test_convention_orinet_turns_with_the_image(photograph):
    orinet = OriNet(PEER_WEIGHTS)
    grid = np.stack(np.meshgrid(np.arange(170, 350, 20.0), np.arange(170, 350, 20.0)), 2)
    xy = grid.reshape(-1, 2)
    windows = np.full(len(xy), 60.0)
    upright = orinet(photograph, xy, windows)
    view = turn_image(photograph, 40.0)
    turned = orinet(view.image, project(view.from_photo, xy), windows)
    error = np.abs((turned - upright - 40.0 + 180.0) % 360.0 - 180.0)
    assert np.median(error) < 10


@pytest.mark.shared_data
@pytest.mark.skipif(not PEER_WEIGHTS.is_dir(), reason="no peer weights")
def test_orinet_of_no_points_is_empty(photograph):
    assert OriNet(PEER_WEIGHTS)(photograph, np.empty((0, 2)), np.empty(0)).shape == (0,)


def test_sift_places_points_at_whole_pixels_where_the_dots_are():
    image = np.zeros((120, 120, 3), np.uint8)
    cv2.circle(image, (70, 40), 4, (255, 255, 255), -1)
    points = detect(turn_image(image), "sift", 1, 12.0).points
    assert_allclose(points.xy_px[0], (70, 40), atol=0.3)


@pytest.mark.parametrize("descriptor", ["sift", "orb", "brief"])
def test_matches_are_mutual_nearest_neighbours(view, descriptor):
    method = load_method("upright", MethodSettings())
    posed = method.pose(view.image, detect(view, "fast", 80, 12.0), descriptor)
    order = np.random.default_rng(0).permutation(len(posed))
    first = describe_keypoints(view.image, posed, descriptor)
    second = describe_keypoints(view.image, posed.take(order[:60]), descriptor)
    index = match_features(first, second)
    bits = np.unpackbits if descriptor != "sift" else np.asarray
    rows = [np.array([bits(row) for row in f.descriptors], float) for f in (first, second)]
    distance = np.linalg.norm(rows[0][:, None] - rows[1], axis=2)
    assert_allclose(distance[tuple(index.T)], distance[index[:, 0]].min(1), atol=1e-4)
    assert_allclose(distance[tuple(index.T)], distance[:, index[:, 1]].min(0), atol=1e-4)
    assert (np.diff(index[:, 0]) > 0).all()
    assert np.mean(np.all(first.xy_px[index[:, 0]] == second.xy_px[index[:, 1]], axis=1)) > 0.9


def test_sift_is_described_as_root_sift(view, sift_detections):
    points = sift_detections.points
    features = describe_keypoints(view.image, points, "sift")
    xy_px, rows = describe_root_sift(view.image, keypoints_from_arrays(points))
    assert_allclose(features.xy_px, xy_px)
    assert_allclose(features.descriptors, rows)
    patches = describe_keypoints(view.image, points, "sift", "patches")
    assert_allclose(np.linalg.norm(patches.descriptors, axis=1), 1, atol=1e-3)


def test_no_keypoints_have_no_features_and_no_matches(view, sift_detections):
    none = sift_detections.points.take(np.arange(0))
    some = describe_keypoints(view.image, sift_detections.points, "sift")
    for route in ("fields", "naive", "patches"):
        features = describe_keypoints(view.image, none, "sift", route)
        assert not features.refused
        assert len(features.xy_px) == 0
        assert match_features(features, some).shape == (0, 2)
        assert match_features(some, features).shape == (0, 2)


@pytest.mark.parametrize("descriptor", ["orb", "akaze", "kaze"])
def test_naive_fields_that_a_descriptor_refuses_are_no_error(view, sift_detections, descriptor):
    """SIFT's packed octave would have ORB allocate 66 GB, its class_id is no level of AKAZE's."""
    features = describe_keypoints(view.image, sift_detections.points, descriptor, "naive")
    assert features.refused
    assert features.xy_px.shape == (0, 2)


def test_fields_that_were_written_are_an_error_if_refused(view, sift_detections):
    with pytest.raises(cv2.error):
        describe_keypoints(view.image, sift_detections.points, "akaze")


def test_what_kaze_makes_of_its_level_0_is_numbers(view):
    points = detect(view, "kaze", 20, 12.0).points
    features = describe_keypoints(
        view.image, replace(points, class_id=np.zeros_like(points.class_id)), "kaze", "naive"
    )
    assert np.isfinite(features.descriptors).all()


def test_bytes_are_compared_by_their_bits(sift_detections):
    points = sift_detections.points
    first = Features(points.take([0]), np.array([[0, 0b1111]], np.uint8))
    second = Features(points.take([0, 1]), np.array([[128, 0b1111], [0, 0b0110]], np.uint8))
    assert match_features(first, second).tolist() == [[0, 0]]
