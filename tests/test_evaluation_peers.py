"""Published networks, with random weights where the weights do not matter; peers of users."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from kornia import feature
from numpy.testing import assert_allclose

from cv_patchpose.detectors import LEVEL_SIGMA_OCTAVES
from cv_patchpose.evaluation.controls import AffineShape
from cv_patchpose.evaluation.description import describe_keypoints
from cv_patchpose.evaluation.detection import PEER_DETECTORS, detect
from cv_patchpose.evaluation.homography_matching import MatchingProtocol, run_benchmark
from cv_patchpose.evaluation.interface import AffineKeypoints, MethodSettings
from cv_patchpose.evaluation.keynet import load_keynet
from cv_patchpose.evaluation.matchers import match_features
from cv_patchpose.evaluation.methods import load_method
from cv_patchpose.evaluation.patch_descriptors import PATCH_DESCRIPTORS, PatchDescriptor
from cv_patchpose.evaluation.peers import AffNet
from cv_patchpose.evaluation.pipeline import load_pipeline
from cv_patchpose.evaluation.sequences import turn_image
from cv_patchpose.homography import nearest_similarity, project

ROOT = Path(__file__).parents[1]
PEER_WEIGHTS = ROOT.parent / "shared/data/peer-weights"
FILES = {
    "AffNet.pth": "LAFAffNetShapeEstimator",
    "OriNet.pth": "OriNet",
    "checkpoint_liberty_with_aug.pth": "HardNet",
    "keynet_pytorch.pth": "KeyNet",
    "sosnet_32x32_liberty.pth": "SOSNet",
    "tfeat-liberty.params": "TFeat",
}
needs_weights = pytest.mark.skipif(not PEER_WEIGHTS.is_dir(), reason="no peer weights")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Untrained weights under the published names, HardTFeat's in its own layout."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for file_name, class_name in FILES.items():
        state = getattr(feature, class_name)(pretrained=False).state_dict()
        content = {"state_dict": state} if file_name.endswith("pth") else state
        torch.save(content, folder / file_name)
    state = feature.TFeat(pretrained=False).state_dict()
    names = {"features.1": "features.0", "features.4": "features.3", "descr.0": "classifier.1"}
    own = {f"{names[key[: key.rindex('.')]]}.{key.split('.')[-1]}": v for key, v in state.items()}
    own["classifier.1.weight"] = own["classifier.1.weight"].reshape(128, 64, 8, 8)
    torch.save({"state_dict": own | {"SIFT.gx.0.weight": torch.ones(1)}}, folder / "HardTFeat.pth")
    return folder


@pytest.fixture(scope="module")
def view(photograph):
    return turn_image(photograph)


@pytest.mark.parametrize("name", PATCH_DESCRIPTORS)
def test_patches_turn_with_the_keypoint(photograph, view, weights, name):
    points = detect(view, "sift", 400, 12.0).points
    inside = np.linalg.norm(points.xy_px - 256, axis=1) < 160
    points = points.take(np.flatnonzero(inside & (points.size_px < 8)))
    turned = turn_image(photograph, 90.0)
    moved = points.take(np.arange(len(points)))
    moved.xy_px[:] = project(turned.from_photo, points.xy_px.astype(float))
    moved.angle_deg[:] = (points.angle_deg + 90) % 360
    describe = PatchDescriptor(name, weights)
    rows, turned_rows = describe(view.image, points), describe(turned.image, moved)
    assert rows.shape == (len(points), 128)
    assert len(points) > 5
    assert_allclose(turned_rows, rows, atol=0.02 * np.abs(rows).max())
    moved.angle_deg[:] = points.angle_deg
    assert np.abs(describe(turned.image, moved) - rows).max() > 0.05 * np.abs(rows).max()
    assert describe(view.image, points.take(np.arange(0))).shape == (0, 128)


def test_hardtfeat_rows_have_length_1(view, weights):
    points = detect(view, "sift", 20, 12.0).points
    rows = PatchDescriptor("hardtfeat", weights)(view.image, points)
    assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["affnet", "orinet+affnet"])
def test_shapes_have_area_1_and_the_angle_of_their_similarity(view, weights, name):
    points = detect(view, "orb", 30, 12.0)
    method = load_method(name, MethodSettings(peer_weights=weights))
    posed = method.pose(view.image, points)
    assert isinstance(posed, AffineKeypoints)
    assert_allclose(np.linalg.det(posed.shape), 1, rtol=1e-4)
    assert_allclose(posed.angle_deg, nearest_similarity(posed.shape)[1] % 360, atol=1e-2)
    assert_allclose(posed.size_px, points.characteristic.size_px)
    taken = posed.take(np.array([3, 1]))
    assert_allclose(taken.shape, posed.shape[[3, 1]])
    for_orb = method.pose(view.image, points, "orb")
    assert_allclose(for_orb.size_px, points.points.size_px)
    estimates = method.estimate(view.image, points.characteristic)
    assert_allclose(estimates.angle_deg % 360, posed.angle_deg, atol=1e-2)
    assert np.isnan(estimates.size_px).all()


def test_patch_descriptors_read_the_shape(view, weights):
    points = detect(view, "sift", 30, 12.0)

    def stretched(factor):
        shape = np.diag([factor, 1 / factor])
        method = AffineShape(lambda image, xy, window: np.tile(shape, (len(xy), 1, 1)), 12.0)
        posed = method.pose(view.image, points)
        return describe_keypoints(view.image, posed, "tfeat", peer_weights=weights).descriptors

    upright = load_method("upright", MethodSettings()).pose(view.image, points)
    rows = describe_keypoints(view.image, upright, "tfeat", peer_weights=weights).descriptors
    assert_allclose(stretched(1.0), rows, atol=1e-4)
    assert np.abs(stretched(1.5) - rows).max() > 0.01


def test_affnet_without_orientation_leaves_y_upright(view, weights):
    xy = np.array([[200.0, 200.0], [300.0, 250.0]])
    shape = AffNet(weights, orient=False)(view.image, xy, np.full(2, 60.0))
    assert_allclose(shape[:, 0, 1], 0, atol=1e-6)
    assert AffNet(weights, orient=False)(view.image, xy[:0], np.empty(0)).shape == (0, 2, 2)


def test_keynet_points_are_the_strongest_on_the_photograph(photograph, weights):
    turned = turn_image(photograph, 30.0)
    found = detect(turned, "keynet", 100, 12.0, weights)
    points = found.points
    assert 0 < len(points) <= 100
    assert turned.shows(points.xy_px.astype(float), 3.9).all()
    assert (np.diff(points.response) <= 0).all()
    assert (points.angle_deg == -1).all()
    assert PEER_DETECTORS == ("keynet",)
    # Scales that are levels of a pyramid are kept.
    assert found.traits.scale_sigma_octaves == LEVEL_SIGMA_OCTAVES
    posed = load_method("detector", MethodSettings()).pose(turned.image, found)
    assert (posed.angle_deg >= 0).all()


def test_learned_poses_of_a_peer_s_points(photograph, weights, toy_model):
    view = turn_image(photograph)
    found = detect(view, "keynet", 50, 12.0, weights)
    posed = load_method(str(toy_model), MethodSettings()).pose(view.image, found)
    assert len(posed) == len(found.points)
    assert len({*posed.size_px.tolist()}) > len({*found.points.size_px.tolist()})


@pytest.mark.parametrize(
    ("options", "file_name"),
    [
        ({"descriptor": "hardnet"}, "checkpoint_liberty_with_aug.pth"),
        ({"descriptor": "hardtfeat"}, "HardTFeat.pth"),
        ({"detector": "keynet"}, "keynet_pytorch.pth"),
        ({"methods": ("affnet",)}, "AffNet.pth"),
    ],
)
def test_absent_weights_are_named_before_the_work(tmp_path, options, file_name):
    options = {"methods": ("upright",)} | options
    for folder in (None, tmp_path):
        with pytest.raises(
            ValueError, match=f"expected a .*{file_name}.*from https://.*{file_name}"
        ):
            load_pipeline(MatchingProtocol(**options, peer_weights=folder))


@pytest.mark.parametrize("content", [b"", b"words", None])
def test_other_weights_are_named(tmp_path, content):
    path = tmp_path / "tfeat-liberty.params"
    if content is None:
        torch.save(feature.OriNet(pretrained=False).state_dict(), path)
    else:
        path.write_bytes(content)
    expected = "peer_weights: expected weights of tfeat in .*tfeat-lib.*; download it from https://"
    with pytest.raises(ValueError, match=expected):
        PatchDescriptor("tfeat", tmp_path)


def test_adalam_without_its_packages_says_how_to_get_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia.feature", None)
    with pytest.raises(ImportError, match=r"adalam needs: pip install 'cv-patchpose\[eval\]'"):
        load_pipeline(MatchingProtocol(methods=("identity",), matcher="adalam"))


def test_example_peer_turns_with_the_image(photograph):
    method = load_method(str(ROOT / "examples/add_a_peer.py"), MethodSettings())
    view, turned = turn_image(photograph), turn_image(photograph, 50.0)
    points = detect(view, "gftt", 60, 12.0).points
    moved = points.take(np.arange(len(points)))
    moved.xy_px[:] = project(turned.from_photo, points.xy_px.astype(float))
    first, second = (
        method.estimate(v.image, p).angle_deg for v, p in ((view, points), (turned, moved))
    )
    error = np.abs((second - first - 50 + 180) % 360 - 180)
    assert np.median(error) < 5


def test_files_that_are_no_peer_are_named(tmp_path):
    with pytest.raises(ValueError, match="methods: expected a Python file, got"):
        load_method(str(tmp_path / "absent.py"), MethodSettings())
    (tmp_path / "empty.py").touch()
    with pytest.raises(ValueError, match=r"expected a function load_method\(settings\) in .*empty"):
        load_method(str(tmp_path / "empty.py"), MethodSettings())
    (tmp_path / "wrong.py").write_text("def load_method(settings)\n")
    with pytest.raises(
        ValueError, match=r"expected Python that runs in .*wrong\.py, got SyntaxErr"
    ):
        load_method(str(tmp_path / "wrong.py"), MethodSettings())
    (tmp_path / "raises.py").write_text("def load_method(settings): return {}[settings]\n")
    with pytest.raises(ValueError, match=r"in .*raises\.py to return a method, got KeyError: "):
        load_method(str(tmp_path / "raises.py"), MethodSettings())
    (tmp_path / "none.py").write_text("def load_method(settings): pass\n")
    with pytest.raises(ValueError, match=r"in .*none\.py to return a method, .* got None without"):
        load_method(str(tmp_path / "none.py"), MethodSettings())


@pytest.mark.shared_data
@needs_weights
def test_affnet_with_orinet_turns_with_the_image(photograph):
    method = load_method("orinet+affnet", MethodSettings(peer_weights=PEER_WEIGHTS))
    view, turned = turn_image(photograph), turn_image(photograph, 40.0)
    points = detect(view, "sift", 100, 12.0).points
    moved = points.take(np.arange(len(points)))
    moved.xy_px[:] = project(turned.from_photo, points.xy_px.astype(float))
    first, second = (
        method.estimate(v.image, p).angle_deg for v, p in ((view, points), (turned, moved))
    )
    assert np.median(np.abs((second - first - 40 + 180) % 360 - 180)) < 12


@pytest.mark.shared_data
@needs_weights
@pytest.mark.parametrize("descriptor", ["hardtfeat", "tfeat"])
def test_published_descriptors_match_a_turned_photograph(photograph, descriptor):
    options = MatchingProtocol(
        methods=("detector",), descriptor=descriptor, max_keypoints=200, peer_weights=PEER_WEIGHTS
    )
    view, turned = turn_image(photograph), turn_image(photograph, 40.0, 1.2)
    first, second = (load_pipeline(options).compute(v)["detector"] for v in (view, turned))
    matches = match_features(first, second)
    where = project(turned.from_photo, first.xy_px[matches[:, 0]])
    error = np.linalg.norm(where - second.xy_px[matches[:, 1]], axis=1)
    assert np.mean(error < 3) > 0.6


@pytest.mark.shared_data
@needs_weights
def test_keynet_repeats_its_points(photograph):
    load_keynet(PEER_WEIGHTS)
    view, turned = turn_image(photograph), turn_image(photograph, 20.0)
    first, second = (detect(v, "keynet", 200, 12.0, PEER_WEIGHTS).points for v in (view, turned))
    where = project(turned.from_photo, first.xy_px.astype(float))
    nearest = np.linalg.norm(where[:, None] - second.xy_px, axis=2).min(axis=1)
    assert np.mean(nearest < 3) > 0.5


def test_benchmark_runs_with_peers(tmp_path, photograph, weights):
    for index in (1, 2):
        cv2.imwrite(str(tmp_path / f"{index}.png"), photograph)
    np.savetxt(tmp_path / "H_1_2", np.eye(3))
    protocol = MatchingProtocol(
        methods=("upright", str(ROOT / "examples/add_a_peer.py"), "orinet+affnet"),
        detector="keynet",
        descriptor="hardtfeat",
        max_keypoints=60,
        peer_weights=weights,
    )
    rows = run_benchmark(tmp_path, protocol).rows
    assert [row["mma_1"] for row in rows] == pytest.approx([1.0] * 3)
