"""Cameras, robust geometry, scenes in both layouts, and the two-view benchmark."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose
from skimage import data

from cv_patchpose.cli import main
from cv_patchpose.evaluation import two_view
from cv_patchpose.evaluation.cameras import (
    Camera,
    RelativePose,
    pose_error_deg,
    read_camera,
    relative_pose,
    viewing_angle_deg,
)
from cv_patchpose.evaluation.description import Features
from cv_patchpose.evaluation.geometry import (
    corner_error_px,
    epipolar_error_px,
    estimate_homography,
    estimate_relative_pose,
)
from cv_patchpose.evaluation.matchers import distinct_places, match_features
from cv_patchpose.evaluation.metrics import homography_accuracy, mean_average_accuracy
from cv_patchpose.evaluation.results import TwoViewResult
from cv_patchpose.evaluation.scenes import CalibratedImage, ViewPair, find_pairs
from cv_patchpose.evaluation.sequences import turn_image
from cv_patchpose.evaluation.two_view import TwoViewProtocol, score_pair, summarize
from cv_patchpose.homography import project
from cv_patchpose.keypoints import KeypointArrays

# Middlebury's motorcycle, at the size scikit-image has it.
FOCAL, CX, CY, OFFSET, BASELINE = 994.978, 311.193, 254.877, 31.086, 0.193


def rotation(x_deg, y_deg, z_deg):
    turns = np.radians([[x_deg, 0, 0], [0, y_deg, 0], [0, 0, z_deg]])
    x, y, z = (cv2.Rodrigues(turn)[0] for turn in turns)
    return x @ y @ z


def camera(y_deg=0.0, t=(0.0, 0.0, 0.0), focal=800.0):
    k = np.array([[focal, 0, 320], [0, 1.02 * focal, 240], [0, 0, 1.0]])
    return Camera(k, rotation(0, y_deg, 0), np.array(t, float))


def see(camera, points):
    seen = (points @ camera.rotation.T + camera.translation) @ camera.intrinsics.T
    return seen[:, :2] / seen[:, 2:]


@pytest.fixture
def points():
    return np.random.default_rng(0).uniform((-2, -2, 4), (2, 2, 8), (300, 3))


def make_features(xy, descriptors):
    count = len(xy)
    keypoints = KeypointArrays(
        xy.astype(np.float32),
        np.full(count, 4, np.float32),
        np.zeros(count, np.float32),
        np.ones(count, np.float32),
        np.zeros(count, np.int32),
        np.zeros(count, np.int32),
    )
    stages = dict.fromkeys(("detect", "pose", "describe"), 0.1)
    return Features(keypoints, descriptors, area_px=640.0 * 480.0, seconds=stages)


class TestCameras:
    def test_a_turned_camera_sees_the_points_where_the_turned_image_shows_them(self, points):
        first = camera(10, (0.3, 0.1, 0.2))
        view = turn_image(np.zeros((480, 640, 3), np.uint8), 77.0, 1.3)
        turned = first.turn(view.from_photo)
        assert_allclose(see(turned, points), project(view.from_photo, see(first, points)))
        assert_allclose(turned.rotation @ turned.rotation.T, np.eye(3), atol=1e-12)
        assert_allclose(np.tril(turned.intrinsics, -1), 0, atol=1e-9)
        assert (np.diag(turned.intrinsics) > 0).all()

    def test_convention_an_in_plane_turn_is_no_change_of_viewpoint(self):
        first = camera(10)
        turned = first.turn(turn_image(np.zeros((480, 640, 3), np.uint8), 77.0).from_photo)
        assert viewing_angle_deg(first, turned) == pytest.approx(0, abs=1e-6)
        assert viewing_angle_deg(camera(), first) == pytest.approx(10)

    def test_relative_pose_maps_between_the_cameras(self, points):
        first, second = camera(10, (0.3, 0.1, 0.2)), camera(-20, (-1, 0.5, 0.2))
        pose = relative_pose(first, second)
        in_first = points @ first.rotation.T + first.translation
        in_second = points @ second.rotation.T + second.translation
        assert_allclose(in_first @ pose.rotation.T + pose.translation, in_second)

    def test_error_is_the_larger_one_and_leaves_the_sign_of_the_translation_out(self):
        true = RelativePose(np.eye(3), np.array([1.0, 0, 0]))
        turned = RelativePose(rotation(0, 0, 7), np.array([-3.0, 0, 0]))
        aside = RelativePose(rotation(0, 0, 7), np.array([1.0, 1, 0]))
        assert pose_error_deg(true, true) == 0
        assert pose_error_deg(turned, true) == pytest.approx(7)
        assert pose_error_deg(aside, true) == pytest.approx(45)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("K", np.eye(2), r"K: expected shape \(3, 3\), got \(2, 2\)"),
            ("R", np.ones((3, 3)), "R: expected a rotation matrix"),
            ("R", np.diag([1.0, 1, -1]), "R: expected a rotation matrix"),
            ("t", [1.0, 2], r"t: expected shape \(3,\), got \(2,\)"),
            ("t", [1.0, 2, "x"], "t: expected numbers"),
            ("t", [1.0, 2, math.nan], "t: expected finite numbers"),
            ("K", np.ones((3, 3)), "K: expected an upper triangular matrix"),
        ],
    )
    def test_bad_matrices_are_named(self, name, value, message):
        good = {"K": np.diag([800.0, 800, 1]), "R": np.eye(3), "t": np.zeros((3, 1))}
        assert read_camera("here", good).translation.shape == (3,)
        with pytest.raises(ValueError, match=f"here: {message}"):
            read_camera("here", good | {name: value})
        del good[name]
        with pytest.raises(ValueError, match=f"here: expected {name}, got only"):
            read_camera("here", good)


class TestGeometry:
    def test_known_homography_is_found_among_wrong_matches(self):
        generator = np.random.default_rng(0)
        homography = np.array([[0.9, 0.1, 20], [-0.1, 1.1, 5], [1e-4, 2e-4, 1]])
        xy1 = generator.uniform(0, 400, (200, 2))
        xy2 = project(homography, xy1)
        xy2[:80] = generator.uniform(0, 400, (80, 2))
        estimated = estimate_homography(xy1, xy2)
        assert corner_error_px(estimated, homography, (400, 400)) < 0.1

    def test_corner_error_is_the_mean_over_the_corners(self):
        shifted = np.array([[1.0, 0, 3], [0, 1, 4], [0, 0, 1]])
        doubled = np.diag([2.0, 1, 1])
        assert corner_error_px(shifted, np.eye(3), (100, 200)) == pytest.approx(5)
        assert corner_error_px(doubled, np.eye(3), (100, 201)) == pytest.approx(100)
        assert corner_error_px(None, np.eye(3), (100, 200)) == math.inf
        assert homography_accuracy([0.5, 2.0, math.inf, 4.0]) == {
            "homography_within_1_px": 25.0,
            "homography_within_3_px": 50.0,
            "homography_within_5_px": 75.0,
        }

    def test_known_pose_is_found_among_wrong_matches(self, points):
        first, second = camera(), camera(20, (-2, 0.2, 0.5), focal=600)
        xy1, xy2 = see(first, points), see(second, points)
        generator = np.random.default_rng(0)
        xy2 += generator.normal(0, 0.2, xy2.shape)
        xy2[:120] = generator.uniform(0, 480, (120, 2))
        fit = estimate_relative_pose(xy1, xy2, first, second)
        assert pose_error_deg(fit.pose, relative_pose(first, second)) < 1
        assert fit.inlier[120:].mean() > 0.8
        assert fit.inlier[:120].mean() < 0.2

    @pytest.mark.parametrize("depth", [60, 120, 1000])
    def test_pose_is_found_however_many_baselines_away_the_scene_is(self, points, depth):
        first, second = camera(), camera(5, (-1, 0.1, 0))
        far = points * depth / 4
        fit = estimate_relative_pose(see(first, far), see(second, far), first, second)
        assert pose_error_deg(fit.pose, relative_pose(first, second)) < 0.1
        assert fit.inlier.all()

    def test_epipolar_error_is_the_distance_from_the_line(self, points):
        first, second = camera(), camera(0, (-2, 0, 0))  # side by side: the lines are rows
        xy1, xy2 = see(first, points), see(second, points)
        assert_allclose(epipolar_error_px(xy1, xy2, first, second), 0, atol=1e-9)
        moved = epipolar_error_px(xy1, xy2 + [50, 4], first, second)
        assert_allclose(moved, 4)
        turned = camera(20, (-2, 0.2, 0.5), focal=600)
        assert_allclose(epipolar_error_px(xy1, see(turned, points), first, turned), 0, atol=1e-9)

    @pytest.mark.parametrize("count", [0, 3, 4])
    def test_too_few_matches_give_nothing(self, points, count):
        xy = see(camera(), points)[:count]
        assert estimate_relative_pose(xy, xy, camera(), camera()) is None
        assert estimate_homography(xy[:3], xy[:3]) is None


class TestScores:
    pair = ViewPair(
        "scene/a-b",
        CalibratedImage(Path("a"), camera()),
        CalibratedImage(Path("b"), camera(20, (-2, 0.2, 0.5))),
    )

    def features(self, points):
        descriptors = np.random.default_rng(1).normal(size=(len(points), 16)).astype(np.float32)
        return [
            make_features(see(image.camera, points), descriptors)
            for image in (self.pair.first, self.pair.second)
        ]

    @pytest.mark.parametrize("matcher", ["mutual", "adalam"])
    def test_perfect_matcher_finds_the_pose_and_a_shuffled_one_does_not(self, points, matcher):
        first, second = self.features(points)
        perfect = score_pair(first, second, self.pair, matcher)
        assert perfect.error_deg < 0.5
        assert perfect.difficulty == "medium"
        assert perfect.inliers == perfect.matches > 50
        order = np.random.default_rng(2).permutation(len(points))
        shuffled = replace(second, keypoints=second.keypoints.take(order))
        lost = score_pair(first, shuffled, self.pair, matcher)
        assert lost.error_deg > 5
        assert lost.inliers < 0.3 * len(points)

    def test_places_count_once(self, points):
        first, second = self.features(points)
        twice = np.repeat(np.arange(len(points)), 2)
        noise = np.random.default_rng(3).normal(0, 1e-3, (len(twice), 16)).astype(np.float32)
        doubled = [
            replace(f, keypoints=f.keypoints.take(twice), descriptors=f.descriptors[twice] + noise)
            for f in (first, second)
        ]
        matches = match_features(*doubled)
        assert len(matches) == 2 * len(points)
        assert len(distinct_places(*doubled, matches)[0]) == len(points)
        # Poses at one place are neither rivals nor support.
        single = len(match_features(first, second, "adalam"))
        assert len(match_features(*doubled, "adalam")) == pytest.approx(single, rel=0.1)

    @pytest.mark.parametrize("count", [0, 1, 2, 5])
    def test_hardly_any_features_are_no_error(self, points, count):
        first, second = self.features(points[:count])
        for matcher in ("mutual", "adalam"):
            assert score_pair(first, second, self.pair, matcher).matches <= count

    def test_accuracy_is_averaged_over_the_thresholds(self):
        errors_deg = [0.5, 4.5, math.inf]
        assert mean_average_accuracy(errors_deg, 5) == pytest.approx((4 / 3 + 2 / 3) / 5)
        assert mean_average_accuracy(errors_deg, 10) == pytest.approx((4 / 3 + 6 * 2 / 3) / 10)
        seconds = {"match": 0.1}
        results = [
            TwoViewResult("easy", (0.0,), 10, 8, 20, seconds),
            TwoViewResult("hard", (math.inf,), 2, 0, 10, seconds),
        ]
        row = summarize(results, "m")
        assert (row["maa_5"], row["maa_10"], row["inliers"], row["pairs"]) == (0.5, 0.5, 4.0, 2)
        assert (row["maa_10_easy"], row["maa_10_medium"], row["maa_10_hard"]) == (1.0, None, 0.0)
        assert row["seconds_match"] == 0.1
        assert "maa_10_gain" not in row

    def test_scenes_count_the_same_however_many_pairs_they_have(self):
        errors_deg = (0.0, 0.0, 0.0, math.inf)
        results = [TwoViewResult("easy", (each,), 9, 9) for each in errors_deg]
        scenes = ["large", "large", "large", "small"]
        row = summarize(results, "m", None, scenes)
        assert row["maa_5_scenes"] == row["maa_10_scenes"] == 0.5
        assert row["maa_5"] == row["maa_10"] == 0.75

    def test_gain_is_taken_pair_by_pair(self):
        def results(*errors_deg):
            return [TwoViewResult("easy", (each,), 9, 9) for each in errors_deg]

        first, second = results(0.0, math.inf, 5.5, 0.0), results(0.0, 0.0, 5.5, 5.5)
        row = summarize(second, "m", first)  # gains 0, 1, 0 and -0.5
        assert row["maa_10_gain"] == pytest.approx(0.125)
        assert row["maa_10_gain_error"] == pytest.approx(np.std([0, 1, 0, -0.5], ddof=1) / 2)
        assert summarize(second[:1], "m", first[:1])["maa_10_gain_error"] is None


def motorcycle():
    """Two BGR photographs and their K, R and t."""
    images = [cv2.cvtColor(image, cv2.COLOR_RGB2BGR) for image in data.stereo_motorcycle()[:2]]
    k = [np.array([[FOCAL, 0, cx], [0, FOCAL, CY], [0, 0, 1]]) for cx in (CX, CX + OFFSET)]
    return images, k, [np.zeros(3), np.array([-BASELINE, 0, 0])]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    images, intrinsics, translations = motorcycle()
    folder = root / "motorcycle"
    (folder / "images").mkdir(parents=True)
    cameras = {}
    for name, image, k, t in zip("ab", images, intrinsics, translations, strict=True):
        cv2.imwrite(str(folder / f"images/{name}.png"), image)
        height, width = image.shape[:2]
        cameras[f"{name}.png"] = {
            "K": k.tolist(), "R": np.eye(3).tolist(), "t": t.tolist(),
            "width": width, "height": height,
        }  # fmt: skip
    (folder / "cameras.json").write_text(json.dumps(cameras))
    return root


@pytest.fixture(scope="module")
def imc_root(tmp_path_factory) -> Path:
    """A scene in IMC2021's layout, whose image names have hyphens."""
    h5py = pytest.importorskip("h5py")
    root = tmp_path_factory.mktemp("imc")
    folder = root / "motorcycle/set_100"
    for name in ("images", "calibration", "new-vis-pairs"):
        (folder / name).mkdir(parents=True)
    images, intrinsics, translations = motorcycle()
    names = ("left-1", "right-1")
    for name, image, k, t in zip(names, images, intrinsics, translations, strict=True):
        cv2.imwrite(str(folder / f"images/{name}.jpg"), image)
        with h5py.File(folder / f"calibration/calibration_{name}.h5", "w") as file:
            file["K"], file["R"], file["T"] = k, np.eye(3), t.reshape(3, 1)
    np.save(folder / "new-vis-pairs/keys-th-0.1.npy", np.array(["-".join(names)]))
    return root


def copy_tree(source: Path, target: Path) -> Path:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target


class TestScenes:
    def test_cameras_file_pairs_what_looks_the_same_way(self, root, tmp_path):
        tree = copy_tree(root, tmp_path)
        path = tree / "motorcycle/cameras.json"
        cameras = json.loads(path.read_text())
        cameras["c.png"] = cameras["a.png"] | {"R": rotation(0, 40, 0).tolist()}
        cameras["d.png"] = cameras["a.png"] | {"R": rotation(0, 90, 0).tolist()}
        path.write_text(json.dumps(cameras))
        for name in "cd":
            (tree / f"motorcycle/images/{name}.png").write_bytes(b"")
        pairs, failures = find_pairs(tree)
        assert {pair.name: pair.difficulty for pair in pairs} == {
            "motorcycle/a-b": "easy",
            "motorcycle/a-c": "hard",
            "motorcycle/b-c": "hard",
            "motorcycle/c-d": "hard",
        }
        assert failures == {}

    def test_links_that_go_round_in_circles_add_nothing(self, root, tmp_path):
        for name in ("loop", "again"):
            (tmp_path / name).symlink_to(".")
        (tmp_path / "linked").symlink_to(root)
        assert [pair.name for pair in find_pairs(tmp_path)[0]] == ["linked/motorcycle/a-b"]

    def test_imc_layout_gives_its_pairs(self, imc_root):
        (pair,), failures = find_pairs(imc_root)
        assert pair.name == "motorcycle/set_100/left-1-right-1"
        assert pair.second.path.name == "right-1.jpg"
        assert_allclose(pair.second.camera.translation, [-BASELINE, 0, 0])
        assert failures == {}

    def test_bad_calibrations_are_named_and_do_not_lose_the_others(self, root, tmp_path):
        tree = copy_tree(root, tmp_path)
        for name, text in (("broken", "{"), ("list", "[1]")):
            (tree / name).mkdir()
            (tree / name / "cameras.json").write_text(text)
        path = tree / "motorcycle/cameras.json"
        cameras = json.loads(path.read_text())
        bad = {"c.png": cameras["a.png"], "d.png": {"K": [1]}}
        bad |= {"e.png": cameras["a.png"] | {"width": "x"}, "b.ppm": cameras["b.png"]}
        path.write_text(json.dumps(cameras | bad))
        (tree / "motorcycle/images/b.ppm").write_bytes(b"")
        for name, text in (("nothing", "{}"), ("single", json.dumps({"a.png": cameras["a.png"]}))):
            (tree / name).mkdir()
            (tree / name / "cameras.json").write_text(text)
        pairs, failures = find_pairs(tree)
        assert [pair.name for pair in pairs] == ["motorcycle/a-b"]
        assert "broken/cameras.json: expected JSON" in failures["broken"]
        assert "expected an object from file names to cameras" in failures["list"]
        assert "images/c.png: expected a file, got none" in failures["motorcycle/c.png"]
        assert "d.png: K: expected shape (3, 3), got (1,)" in failures["motorcycle/d.png"]
        assert "e.png: expected width and height in whole" in failures["motorcycle/e.png"]
        assert "b.ppm: expected names that differ before" in failures["motorcycle/b.ppm"]
        for name in ("nothing", "single"):
            assert "expected two images or more" in failures[name]

    @pytest.mark.parametrize("kind", ["U", "S"])
    def test_bad_imc_pairs_are_named_and_do_not_lose_the_others(self, imc_root, tmp_path, kind):
        tree = copy_tree(imc_root, tmp_path)
        keys = np.array(["left", "left-", "left-1-right-1", "-"]).astype(kind)
        np.save(tree / "motorcycle/set_100/new-vis-pairs/keys-th-0.1.npy", keys)
        pairs, failures = find_pairs(tree)
        assert [pair.name for pair in pairs] == ["motorcycle/set_100/left-1-right-1"]
        assert set(failures) == {f"motorcycle/set_100/{key}" for key in ("left", "left-", "-")}
        assert (
            "keys-th-0.1.npy: expected NAME1-NAME2, got 'left-'"
            in failures["motorcycle/set_100/left-"]
        )

    def test_bad_imc_scenes_are_named(self, imc_root, tmp_path):
        h5py = pytest.importorskip("h5py")
        names = ("no_h5", "no_pairs", "words", "empty", "npz", "bad_h5", "group", "no_images")
        trees = [copy_tree(imc_root, tmp_path / name) for name in names]
        folders = [tree / "motorcycle/set_100" for tree in trees]
        (folders[3] / "new-vis-pairs/keys-th-0.1.npy").write_bytes(b"")
        np.savez(folders[4] / "keys.npz", a=np.eye(2))
        (folders[4] / "keys.npz").rename(folders[4] / "new-vis-pairs/keys-th-0.1.npy")
        (folders[5] / "calibration/calibration_left-1.h5").write_bytes(b"words")
        with h5py.File(folders[6] / "calibration/calibration_left-1.h5", "w") as file:
            file.create_group("K")
            file["R"] = np.eye(3)
        (folders[7] / "images").rename(folders[7] / "pictures")
        (folders[0] / "calibration/calibration_left-1.h5").unlink()
        (folders[1] / "new-vis-pairs/keys-th-0.1.npy").unlink()
        np.save(folders[2] / "new-vis-pairs/keys-th-0.1.npy", np.eye(2))
        pairs, failures = find_pairs(tmp_path)
        assert pairs == []
        scene = "motorcycle/set_100"
        assert "calibration_left-1.h5: expected a file" in failures[f"no_h5/{scene}/left-1"]
        assert "keys-th-0.1.npy: expected a file, got none" in failures[f"no_pairs/{scene}"]
        for name in ("words", "empty", "npz"):
            assert "keys-th-0.1.npy: expected an array of strings" in failures[f"{name}/{scene}"]
        assert "left-1.h5: expected an HDF5 file" in failures[f"bad_h5/{scene}/left-1"]
        assert "left-1.h5: expected K, got only R" in failures[f"group/{scene}/left-1"]
        assert "images: expected a folder, got none" in failures[f"no_images/{scene}"]
        assert "keys-th-0.1.npy: expected pairs of images" in failures[f"group/{scene}"]

    def test_unknown_layout_lists_the_known_ones(self, tmp_path):
        with pytest.raises(ValueError, match=r"root: expected folders with cameras\.json and"):
            find_pairs(tmp_path)
        with pytest.raises(ValueError, match="root: expected a folder, got"):
            find_pairs(tmp_path / "absent")


class TestBenchmark:
    def test_a_turned_image_needs_orientations(self, root):
        protocol = TwoViewProtocol(
            methods=("detector", "upright"), max_keypoints=800, random_turn=True, seed=1
        )
        own, upright = two_view.run_benchmark(root, protocol).rows
        assert own["maa_10"] > 0.6 > upright["maa_10"]
        assert own["inliers"] > 50 > upright["inliers"]
        assert own["keypoints"] <= 800

    def test_every_image_of_a_large_scene_is_described_once(self, monkeypatch):
        described = []

        class Pipeline:
            def compute(self, view):
                described.append(view)
                return {}

        monkeypatch.setattr(two_view, "_read", lambda *_: np.zeros((20, 20, 3), np.uint8))
        monkeypatch.setattr(two_view, "load_pipeline", lambda _: Pipeline())
        protocol = TwoViewProtocol(methods=("upright",))
        images = [replace(TestScores.pair.first, path=Path(f"{n}.png")) for n in range(100)]
        two_view._features.cache_clear()
        for index, first in enumerate(images):
            for second in images[index + 1 :]:
                two_view._describe_pair(ViewPair("scene/pair", first, second), protocol)
        two_view._features.cache_clear()
        assert len(described) == 100

    def test_the_picture_shows_what_agrees_with_the_true_pose(self, root):
        (pair,), _ = find_pairs(root)
        protocol = TwoViewProtocol(
            methods=("upright", "detector"), matcher="mutual", max_keypoints=400, rotate=60
        )
        matches = two_view.show_pair(pair, protocol).matches
        upright, own = (matches[name].inlier for name in protocol.methods)
        assert own.mean() > 0.5 > 0.1 > upright.mean()

    def test_turns_are_the_same_in_every_run_and_differ_between_images(self):
        pair = TestScores.pair
        other = replace(pair, second=replace(pair.second, path=Path("other.png")))
        again = replace(pair, name=f"{pair.sequence}/another of the same image")
        turn = [
            TwoViewProtocol(methods=("upright",), random_turn=True, seed=seed).turn_deg(each)
            for seed, each in [(0, pair), (0, again), (1, pair), (0, other)]
        ]
        assert turn[0] == turn[1]
        assert len({*turn}) == 3
        assert TwoViewProtocol(methods=("upright",), rotate=30).turn_deg(pair) == 30

    def test_command_reads_both_layouts(self, root, imc_root, tmp_path, capsys):
        for place in (root, imc_root):
            output = tmp_path / "out.json"
            arguments = ["two-view", str(place), "--methods", "detector,detector-all"]
            arguments += ["--matcher", "mutual", "--max-keypoints", "800", "-o", str(output)]
            assert main(["evaluate", *arguments]) == 0
            row = json.loads(output.read_text())["rows"][0]
            assert row["maa_10"] > 0.6
            assert {"maa_5", "inliers", "maa_10_easy", "seconds_verify"} <= set(row)
        assert capsys.readouterr().out.startswith("method")

    def test_means_over_scenes_are_given_where_there_are_several(self, root, tmp_path):
        protocol = TwoViewProtocol(methods=("detector",), matcher="mutual", max_keypoints=400)
        (single,) = two_view.run_benchmark(root, protocol).rows
        for name in "ab":
            copy_tree(root, tmp_path / name)
        (double,) = two_view.run_benchmark(tmp_path, protocol).rows
        assert double["maa_10_scenes"] == double["maa_10"] == single["maa_10"] > 0
        assert [name for name in double if name not in single] == ["maa_5_scenes", "maa_10_scenes"]

    def test_a_broken_image_does_not_lose_the_other_pairs(self, root, tmp_path):
        tree = copy_tree(root, tmp_path)
        path = tree / "motorcycle/cameras.json"
        cameras = json.loads(path.read_text())
        path.write_text(json.dumps(cameras | {"c.png": cameras["b.png"]}))
        (tree / "motorcycle/images/c.png").write_bytes(b"not a picture")
        protocol = TwoViewProtocol(methods=("upright",), max_keypoints=100)
        outcome = two_view.run_benchmark(tree, protocol)
        assert outcome.rows[0]["pairs"] == 1
        assert set(outcome.failures) == {"motorcycle"}  # once, not for every pair of the image
        assert outcome.failures["motorcycle"].startswith("2 of 3 pairs (the first a-c): ")
        assert outcome.failures["motorcycle"].count("c.png: expected an image file") == 1

    def test_one_bad_scene_does_not_lose_the_others(self, root, tmp_path, capsys):
        tree = copy_tree(root, tmp_path / "tree")
        for part in ("other/calibration", "other/new-vis-pairs", "package/calibration"):
            (tree / part).mkdir(parents=True)  # the last one is no half of a scene
        arguments = ["two-view", str(tree), "--methods", "upright", "--max-keypoints", "100"]
        assert main(["evaluate", *arguments, "-o", str(tmp_path / "out.json")]) == 1
        assert "not measured: other: " in capsys.readouterr().err
        failures = json.loads((tmp_path / "out.json").read_text())["failures"]
        assert failures == {"other": "other/images: expected a folder, got none"}

    def test_an_image_of_another_size_than_calibrated_is_refused(self, root, tmp_path):
        tree = copy_tree(root, tmp_path)
        cv2.imwrite(str(tree / "motorcycle/images/b.png"), np.zeros((50, 60, 3), np.uint8))
        protocol = TwoViewProtocol(methods=("upright",), max_keypoints=100)
        with pytest.raises(ValueError, match=r"b\.png: expected the calibrated .* got 60 x 50"):
            two_view.run_benchmark(tree, protocol)
