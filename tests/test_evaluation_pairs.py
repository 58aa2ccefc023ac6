"""The paper's protocol on a stored dataset: candidates, whole bins, and the command."""

from __future__ import annotations

import json
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose
from skimage import data

from cv_patchpose.cli import main
from cv_patchpose.evaluation import patch_pairs
from cv_patchpose.evaluation.interface import Estimates, MethodSettings
from cv_patchpose.evaluation.methods import load_method
from cv_patchpose.evaluation.metrics import PoseErrors
from cv_patchpose.evaluation.patch_pairs import (
    PairErrors,
    PatchPairsProtocol,
    summarize_pair_errors,
)
from cv_patchpose.evaluation.patch_readings import read_patches
from cv_patchpose.patchpose.generator import generate
from cv_patchpose.patchpose.options import PatchPoseConfig
from cv_patchpose.patchpose.sources import PatchPoseDataset

METHODS = ("identity", "gradient-histogram", "polar")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Return datasets of both kinds of three photographs, one for each split."""
    root = tmp_path_factory.mktemp("datasets")
    (root / "images").mkdir()
    for name in ("astronaut", "coffee", "rocket"):
        image = cv2.cvtColor(getattr(data, name)(), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(root / "images" / f"{name}.png"), image)
    for kind in "AB":
        config = PatchPoseConfig(kind=kind, keypoints_per_image=2)
        generate(root / "images", root / kind, config)
    return root


def run(root, **options):
    protocol = PatchPairsProtocol(methods=METHODS, **options)
    return patch_pairs.run_benchmark(root, protocol).rows


def test_controls_and_network_score_as_they_must(datasets):
    identity, gradient, polar = run(datasets / "A")
    assert identity["orientation_within_5_deg"] == pytest.approx(100 / 36)  # identity with itself
    assert identity["orientation_within_10_deg"] == pytest.approx(100 * 3 / 36)
    assert identity["scale_within_1_6_octave"] == pytest.approx(100 / 13)
    assert identity["scale_within_1_3_octave"] == pytest.approx(100 * 3 / 13)
    assert identity["orientation_points"] == 2 * 36
    assert identity["scale_points"] == 2 * 13
    assert gradient["orientation_within_10_deg"] > 80
    assert gradient["scale_within_1_6_octave"] is None
    assert polar["orientation_within_10_deg"] > 80
    assert polar["scale_within_1_3_octave"] > 35


def test_whole_bins_are_given_for_histograms_only(datasets):
    identity, _, polar = run(datasets / "B")
    assert identity["orientation_within_10_deg_argmax"] is None
    assert 50 < polar["orientation_within_10_deg_argmax"] <= 100
    # Drawn rotations lie up to 5 degrees from a bin, which whole bins cannot say.
    assert polar["orientation_within_5_deg_argmax"] < polar["orientation_within_5_deg"]


def test_recall_grows_with_the_candidates(datasets):
    *_, polar = run(datasets / "B", top_k=3)
    for name in ("recall_orientation_10_deg", "recall_scale_1_3_octave"):
        recall = [polar[f"{name}@{k}"] for k in (1, 2, 3)]
        assert recall == sorted(recall)
    assert polar["recall_orientation_10_deg@1"] == polar["orientation_within_10_deg"]
    assert polar["recall_scale_1_3_octave@1"] == polar["scale_within_1_3_octave"]
    assert polar["recall_scale_1_3_octave@3"] > polar["recall_scale_1_3_octave@1"]
    assert not [name for name in run(datasets / "B")[0] if "recall" in name]


def test_recall_with_more_candidates_is_for_those_who_give_them(datasets):
    protocol = PatchPairsProtocol(methods=("identity", "sift-at-point"), top_k=3)
    identity, sift = patch_pairs.run_benchmark(datasets / "B", protocol).rows
    assert identity["recall_orientation_10_deg@1"] == identity["orientation_within_10_deg"]
    for row, name in ((identity, "orientation_10_deg"), (sift, "scale_1_3_octave")):
        assert [row[f"recall_{name}@{k}"] is None for k in (1, 2, 3)] == [False, True, True]
    recall = [sift[f"recall_orientation_10_deg@{k}"] for k in (1, 2, 3)]
    assert recall[0] == sift["orientation_within_10_deg"]
    assert recall == sorted(recall)


def test_the_split_of_shuffled_pairs_is_a_share_of_every_keypoint(datasets):
    protocol = {"split": "test", "split_by": "pairs"}
    identity = run(datasets / "A", **protocol)[0]
    rest = run(datasets / "A", split="train", split_by="pairs")[0]
    val = run(datasets / "A", split="val", split_by="pairs")[0]
    total = sum(row["orientation_points"] for row in (identity, rest, val))
    assert total == 3 * 2 * 36
    assert 0 < identity["orientation_points"] < rest["orientation_points"]


@dataclass(frozen=True)
class Brightest:
    """Points at the brighter half, the size is the number of bright pixels."""

    route: str = "fields"

    def estimate(self, image, keypoints):
        assert keypoints.xy_px.tolist() == [[(len(image) - 1) / 2] * 2]
        right = image[:, len(image) // 2 :].mean() > image.mean()
        return Estimates(
            np.array([np.sqrt(np.mean(image > 99))]), np.array([0.0 if right else 180.0])
        )


def test_a_patch_is_an_image_with_a_keypoint_at_its_centre():
    patches = np.zeros((2, 32, 32, 3), np.uint8)
    patches[0, :, 16:] = 200
    patches[1, :, :8] = 200
    readings = read_patches(Brightest(), patches, top_k=4)
    assert_allclose(readings.angle_deg[:, 0], [0, 180])
    assert_allclose(readings.octaves[:, 0], [-0.5, -1])
    assert np.isnan(readings.argmax_deg).all()


def test_candidates_of_a_network_come_best_first(toy_model):
    patches = np.zeros((2, 64, 64, 3), np.uint8)
    patches[0, 32:] = 255  # bright below
    patches[1, :, :32] = 255  # and to the left
    method = load_method(str(toy_model), MethodSettings(window_px=64.0))
    readings = read_patches(method, patches, top_k=3)
    assert readings.angle_deg.shape == readings.octaves.shape == (2, 3)
    assert_allclose(readings.argmax_deg, [90, 180], atol=20)
    assert_allclose(readings.angle_deg[:, 0], readings.argmax_deg, atol=5.1)


def test_shares_of_pairs_are_those_of_the_candidates():
    def errors(*angle_deg):
        return PoseErrors(np.full(len(angle_deg), np.nan), np.array(angle_deg))

    results = [
        PairErrors((errors(4.0, 30.0), errors(4.0, 9.0)), errors(10.0, 30.0)),
        PairErrors((errors(50.0, 50.0), errors(50.0, 50.0)), errors(0.0, 50.0)),
    ]
    row = summarize_pair_errors(results)
    assert (row["orientation_within_5_deg"], row["orientation_within_10_deg"]) == (25, 25)
    assert (row["recall_orientation_10_deg@1"], row["recall_orientation_10_deg@2"]) == (25, 50)
    assert row["orientation_within_5_deg_argmax"] == 25
    assert row["orientation_within_10_deg_argmax"] == 50
    assert row["recall_scale_1_3_octave@2"] is None


def test_whole_bins_within_a_limit_count_whatever_their_last_digit():
    bins = np.arange(-6, 7) / 3
    errors = np.abs(np.diff(bins))
    one = PoseErrors(errors, np.full(len(errors), np.nan))
    row = summarize_pair_errors([PairErrors((one,), one)])
    assert row["scale_within_1_3_octave"] == 100


def test_command_reads_a_dataset_by_its_index(datasets, tmp_path, capsys):
    output = tmp_path / "out.json"
    options = ["--methods", "identity,polar", "--split", "val", "--top-k", "2", "--jobs", "2"]
    arguments = ["patchpose", str(datasets / "A"), *options, "-o", str(output)]
    assert main(["evaluate", *arguments]) == 0
    content = json.loads(output.read_text())
    assert content["protocol"]["split"] == "val"
    assert content["protocol"]["split_by"] == "image"
    assert "recall_scale_1_3_octave@2" in content["rows"][1]
    assert "orientation_within_5_deg_argmax" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "3"], "--images: expected an option of patchpose on a dataset"),
        (["--split", "dev"], "split: expected one of train, val, test, got 'dev'"),
        (["--split-by", "class"], "--split-by: expected one of image, pairs, got 'class'"),
        (["--top-k", "0"], "--top-k: expected a finite number above 0, got 0"),
        (["--methods", "polar:2"], "methods: expected one pose per point, got 'polar:2'"),
    ],
)
def test_command_refuses_bad_options(datasets, tmp_path, capsys, options, message):
    methods = [] if "--methods" in options else ["--methods", "identity"]
    arguments = [str(datasets / "A"), *methods, *options, "-o", str(tmp_path / "out.json")]
    assert main(["evaluate", "patchpose", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_shard_is_told_before_anything_is_measured(datasets, tmp_path, capsys):
    for path in (datasets / "A").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "test-00000.zip").unlink()
    arguments = [str(tmp_path), "--methods", "identity", "-o", str(tmp_path / "out.json")]
    assert main(["evaluate", "patchpose", *arguments]) == 2
    message = capsys.readouterr().err
    assert "test-00000.zip: expected a shard, got no file (1 of the 1 with pairs of test" in message
    assert "again, it writes what is missing" in message
    assert main(["evaluate", "patchpose", *arguments, "--split", "val"]) == 0


def test_damaged_shards_are_told(datasets, tmp_path, capsys):
    for path in (datasets / "A").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "test-00000.zip").write_bytes(b"")
    arguments = [str(tmp_path), "--methods", "identity", "-o", str(tmp_path / "out.json")]
    assert main(["evaluate", "patchpose", *arguments]) == 2
    assert "test-00000.zip: expected a whole shard" in capsys.readouterr().err
    with pytest.raises(ValueError, match="test-00000"):
        list(PatchPoseDataset(tmp_path).pairs("test"))
