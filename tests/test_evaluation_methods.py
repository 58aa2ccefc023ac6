"""Detections, estimators and their names."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose

from cv_patchpose.evaluation.detection import DETECTORS, SCALELESS_DETECTORS, detect
from cv_patchpose.evaluation.gradient_histogram import dominant_gradient_deg
from cv_patchpose.evaluation.methods import (
    CONTROLS,
    MethodSettings,
    load_method,
    require_one_pose,
)
from cv_patchpose.evaluation.peers import OriNet
from cv_patchpose.evaluation.runner import load_methods
from cv_patchpose.evaluation.sequences import turn_image
from cv_patchpose.homography import project

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


@pytest.mark.parametrize("detector", DETECTORS)
def test_detections_are_the_strongest_places_in_order(view, detector):
    everything = detect(view, detector, 10_000, 12.0)
    kept = detect(view, detector, 50, 12.0)
    assert len(kept.points) == 50
    assert (np.diff(kept.points.response) <= 0).all()
    if detector != "orb":
        assert kept.points.response.min() == pytest.approx(everything.points.response[49])
    assert len(kept.points.distinct_index()) == 50
    scaleless = detector in SCALELESS_DETECTORS
    assert (kept.points.size_px == 12).all() == scaleless
    assert (kept.points.angle_deg == -1).all() == scaleless


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


@pytest.mark.parametrize("spec", ["sift", "polar:two", "polar@size", ":2", ""])
def test_unknown_method_lists_the_accepted_ones(spec):
    with pytest.raises(ValueError, match=r"methods: expected identity, upright, .* got"):
        load_method(spec, MethodSettings())


def test_missing_model_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected an ONNX file, got .*absent\.onnx"):
        load_method(str(tmp_path / "absent.onnx:2"), MethodSettings())


def test_methods_must_differ():
    for specs in ((), ("upright", "upright")):
        with pytest.raises(ValueError, match="methods: expected one or more different names"):
            load_methods(specs, MethodSettings())


@pytest.mark.parametrize("spec", ["detector-all", "polar:2", "polar:3@angle"])
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
