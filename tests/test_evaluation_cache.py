"""Results that are kept: what is measured again, and what is not."""

from __future__ import annotations

import dataclasses
import json
import pickle
from functools import partial

import cv2
import numpy as np
import pytest
from conftest import write_toy_model

from cv_patchpose.cli import main
from cv_patchpose.evaluation import homography_matching, homography_pose, patchpose, pipeline
from cv_patchpose.evaluation.cache import cache_results
from cv_patchpose.evaluation.controls import Upright
from cv_patchpose.evaluation.homography_matching import MatchingProtocol
from cv_patchpose.evaluation.homography_pose import PoseProtocol
from cv_patchpose.evaluation.interface import AffineKeypoints
from cv_patchpose.evaluation.kept import keep_in
from cv_patchpose.evaluation.metrics import PoseErrors
from cv_patchpose.evaluation.patch_pairs import PairErrors
from cv_patchpose.evaluation.patchpose import PatchPoseProtocol
from cv_patchpose.evaluation.results import PairResult, TwoViewResult
from cv_patchpose.evaluation.runner import run_units
from cv_patchpose.evaluation.samples import Sample
from cv_patchpose.evaluation.sequences import turn_image
from cv_patchpose.keypoints import arrays_from_keypoints

PROTOCOL = MatchingProtocol(methods=("upright", "detector"), max_keypoints=60)
PAIRS = ("first/1-2", "first/1-3", "second/1-2", "second/1-3")


@pytest.fixture
def root(photograph, tmp_path):
    """Two sequences of three small images."""
    root = tmp_path / "tree"
    for name, corner in (("first", 0), ("second", 200)):
        (root / name).mkdir(parents=True)
        image = photograph[corner : corner + 200, 100:300]
        for number in (1, 2, 3):
            cv2.imwrite(str(root / name / f"{number}.png"), image)
        for number in (2, 3):
            np.savetxt(root / name / f"H_1_{number}", np.eye(3))
    return root


@pytest.fixture
def scored(monkeypatch):
    """Record every method that is scored on a pair; more than `most` are an interruption."""
    record = []

    def count(sequence, pair, method, result):
        if len(record) == record_limit["most"]:
            raise KeyboardInterrupt
        record.append(method)
        return Sample(sequence, pair, method, result)

    record_limit = {"most": None}
    monkeypatch.setattr(homography_matching, "Sample", count)

    def run(root, cache, most=None, **changes):
        record.clear()
        record_limit["most"] = most
        protocol = dataclasses.replace(PROTOCOL, **changes)
        outcome = homography_matching.run_benchmark(root, protocol, 1, cache)
        return outcome, list(record)

    run.record = record
    return run


def without_times(rows):
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def test_an_interrupted_run_goes_on_where_it_stopped(root, tmp_path, scored):
    with pytest.raises(KeyboardInterrupt):
        scored(root, tmp_path / "cache", most=5)
    assert len(scored.record) == 5
    resumed, measured = scored(root, tmp_path / "cache")
    assert measured == ["upright", "detector"] * 2  # the third pair was not finished
    assert resumed.reused == (4, 8)
    fresh, _ = scored(root, None)
    assert without_times(resumed.rows) == without_times(fresh.rows)
    again, measured = scored(root, tmp_path / "cache")
    assert measured == []
    assert again.rows == resumed.rows  # times included
    assert again.reused == (8, 8)


def test_another_method_measures_only_itself(root, tmp_path, scored):
    before, _ = scored(root, tmp_path / "cache")
    after, measured = scored(root, tmp_path / "cache", methods=("detector", "identity", "upright"))
    assert measured == ["identity"] * 4
    assert [row["method"] for row in after.rows] == ["detector", "identity", "upright"]
    assert after.rows[::2] == before.rows[::-1]


@pytest.mark.parametrize(
    "changes", [{"max_keypoints": 50}, {"rotate": 10.0}, {"descriptor": "orb"}, {"quick": True}]
)
def test_a_changed_option_measures_again(root, tmp_path, scored, changes):
    scored(root, tmp_path / "cache")
    outcome, measured = scored(root, tmp_path / "cache", **changes)
    assert len(measured) == len(outcome.samples) > 0
    assert outcome.reused[0] == 0


def test_changed_images_and_truths_measure_their_pairs_again(root, tmp_path, scored):
    scored(root, tmp_path / "cache")
    content = cv2.imread(str(root / "first/2.png"))
    cv2.imwrite(str(root / "first/2.png"), 255 - content)
    np.savetxt(root / "second/H_1_3", np.diag([1.0, 1.0, 1.001]))
    outcome, measured = scored(root, tmp_path / "cache")
    assert len(measured) == 4
    again = {f"{s.sequence}/{s.pair}" for s in outcome.samples if not s.reused}
    assert again == {PAIRS[0], PAIRS[3]}


def test_a_model_is_known_by_what_its_file_holds(root, tmp_path, scored):
    def run(method):
        outcome, measured = scored(root, tmp_path / "cache", methods=(str(method),), rotate=40.0)
        return outcome, len(measured)

    model, copy = tmp_path / "model.onnx", tmp_path / "copy.onnx"
    write_toy_model(model)
    copy.write_bytes(model.read_bytes())
    first, _ = run(model)
    renamed, measured = run(copy)
    assert measured == 0
    assert renamed.rows == [{**first.rows[0], "method": str(copy)}]
    assert {sample.method for sample in renamed.samples} == {str(copy)}
    assert run(f"{model}@angle")[1] == 4
    write_toy_model(model, contrast=0.0)
    changed, measured = run(model)
    assert measured == 4
    assert changed.rows[0]["correct_matches"] != first.rows[0]["correct_matches"]


FORMER = {"method": "m", "keypoints": 9, "matches": 9, "correct": 9, "accuracy": [0.5] * 10}
ENTRY = {"sequence": "a", "pair": "b", "result": FORMER}


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff\xfe",
        b"[{]",
        b"[1]",
        b"{}x",
        b'[{"sequence": "a", "pair": "b", "result": {}}]',
        json.dumps([ENTRY]).encode(),
    ],
)
def test_a_damaged_entry_is_measured_again(root, tmp_path, scored, damage):
    whole, _ = scored(root, tmp_path / "cache")
    entries = sorted((tmp_path / "cache").glob("*.json"))
    assert len(entries) == 8
    entries[0].write_bytes(damage)
    outcome, measured = scored(root, tmp_path / "cache")
    assert len(measured) == 1
    assert without_times(outcome.rows) == without_times(whole.rows)
    assert scored(root, tmp_path / "cache")[1] == []


def test_failures_are_not_kept(root, tmp_path, scored):
    good = (root / "first/2.png").read_bytes()
    (root / "first/2.png").write_bytes(b"not a picture")
    outcome, _ = scored(root, tmp_path / "cache")
    assert set(outcome.failures) == {"first"}
    assert len(outcome.samples) == 6  # the other pair of the sequence is measured
    (root / "first/2.png").write_bytes(good)
    outcome, measured = scored(root, tmp_path / "cache")
    assert (outcome.failures, len(measured)) == ({}, 2)


def test_pairs_the_protocol_leaves_out_are_kept_as_such(root, tmp_path, scored, monkeypatch):
    np.savetxt(root / "first/H_1_2", np.diag([0.5, 0.5, 1]))
    options = {"min_zoom_change": 1.5}
    assert len(scored(root, tmp_path / "cache", **options)[0].samples) == 2
    monkeypatch.setattr(homography_matching, "_changes_zoom", None)  # would be an error
    assert scored(root, tmp_path / "cache", **options)[1] == []


@pytest.mark.parametrize(
    ("run", "protocol"),
    [
        (homography_pose.run_benchmark, PoseProtocol(methods=("identity", "gradient-histogram"))),
        (
            patchpose.run_benchmark,
            PatchPoseProtocol(methods=("gradient-histogram",), images=2, window_px=20.0),
        ),
    ],
)
def test_errors_with_nothing_measured_come_back_as_they_were(root, tmp_path, run, protocol):
    run = partial(run, root, protocol, 1, tmp_path / "cache")
    first, second = run(), run()
    assert first.reused[0] == 0
    assert second.reused == (len(first.samples),) * 2
    assert first.rows == second.rows


def errors(*values):
    return PoseErrors(np.array(values), np.full(len(values), np.nan))


@pytest.mark.parametrize(
    "result",
    [
        PairResult(3.5, 2, 1, [0.5] * 10, seconds={"pose": 0.1}),
        TwoViewResult("easy", (1.5, np.inf, 2.0), 10, 8.5, 20.0, {"pose": 0.1}),
        errors(0.25, np.nan),
        errors(),
        PairErrors((errors(0.1), errors(0.05)), errors(np.nan)),
    ],
)
def test_results_are_restored_from_json(result):
    text = json.dumps(dataclasses.asdict(result), default=np.ndarray.tolist)
    restored = type(result).restore(json.loads(text))
    np.testing.assert_equal(dataclasses.asdict(restored), dataclasses.asdict(result))
    assert restored.figures() == result.figures()


def test_other_processes_can_measure(root, tmp_path):
    measure = homography_matching.measure_pair
    cached = cache_results(measure, PairResult, PROTOCOL, tmp_path / "cache")
    assert pickle.loads(pickle.dumps(cached)) == cached


@dataclasses.dataclass(frozen=True)
class Unit:
    name: str
    number: int


def fail(unit):
    if unit.number:
        raise ValueError(f"{unit.number % 2}: broken")
    return [unit.number]


def test_a_group_s_failures_are_told_once():
    units = [Unit("scene/a", 0), Unit("scene/b", 1), Unit("scene/c", 3), Unit("scene/d", 2)]
    _, failures = run_units(fail, units, 1, lambda unit: unit.name.partition("/")[0])
    assert failures == {
        "scene": "2 of 4 pairs (the first b): 1: broken; 1 of 4 pairs (d): 0: broken"
    }


def test_command_keeps_results_beside_its_output(root, tmp_path, capsys):
    arguments = ["evaluate", "homography-pose", str(root), "--methods", "identity"]
    output = ["-o", str(tmp_path / "out.json")]
    assert main([*arguments, *output, "--no-cache"]) == 0
    assert not (tmp_path / ".cv-patchpose-cache").exists()
    assert main([*arguments, *output]) == 0
    assert len(list((tmp_path / ".cv-patchpose-cache").glob("*.json"))) == 4
    assert "earlier" not in capsys.readouterr().out
    assert main([*arguments, *output]) == 0
    assert "4 of 4 results are from earlier runs" in capsys.readouterr().out
    assert main([*arguments, *output, "--cache", str(tmp_path / "deep/other")]) == 0
    assert len(list((tmp_path / "deep/other").iterdir())) == 4
    assert main([*arguments, *output, "--cache", str(tmp_path), "--no-cache"]) == 2
    assert "cache: expected --cache DIR or --no-cache, got both" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([*arguments, *output, "--cache", str(tmp_path / "file")]) == 2
    assert f"--cache: expected a folder, got the file {tmp_path}/file" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "output: expected -o FILE.json, --report DIR or both" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [True, False])
def test_an_interruption_says_that_a_rerun_continues(root, tmp_path, capsys, monkeypatch, kept):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(homography_pose, "_measure", interrupt)
    arguments = ["evaluate", "homography-pose", str(root), "--methods", "identity"]
    arguments += ["-o", str(tmp_path / "out.json"), *([] if kept else ["--no-cache"])]
    assert main(arguments) == 130
    folder = tmp_path / ".cv-patchpose-cache"
    said = f"cv-patchpose: a rerun continues from the results in {folder}\n" if kept else ""
    assert capsys.readouterr().err == f"{said}cv-patchpose: interrupted\n"


@pytest.fixture
def computed(monkeypatch):
    """Record what is detected and posed."""
    record = []
    detect, pose = pipeline.detect, Upright.pose

    def count_detect(view, *arguments):
        record.append("detect")
        return detect(view, *arguments)

    def count_pose(self, image, detections, descriptor="sift"):
        record.append("pose")
        return pose(self, image, detections, descriptor)

    monkeypatch.setattr(pipeline, "detect", count_detect)
    monkeypatch.setattr(Upright, "pose", count_pose)

    def run(root, cache, **changes):
        record.clear()
        protocol = MatchingProtocol(methods=("upright",), max_keypoints=60, **changes)
        outcome = homography_matching.run_benchmark(root, protocol, 1, cache)
        return outcome.rows, list(record)

    return run


PEER = """
from dataclasses import replace

class Peer:
    route = "patches"
    estimate = None

    def pose(self, image, detections, descriptor="sift"):
        points = detections.points
        return replace(points, angle_deg=0 * points.angle_deg + len(descriptor))

load_method = lambda settings: Peer()
"""


class TestKeptKeypoints:
    def test_another_matcher_or_descriptor_finds_them(self, root, tmp_path, computed):
        rows, first = computed(root, tmp_path / "cache")
        assert {*first} == {"detect", "pose"}
        loose, again = computed(root, tmp_path / "cache", budget="keypoints")
        assert again == []
        assert without_times(loose) == without_times(rows)
        assert loose[0]["seconds_detect"] == rows[0]["seconds_detect"]
        _, as_brief = computed(root, tmp_path / "cache", descriptor="brief")
        assert {*as_brief} == {"pose"}  # written for another descriptor

    @pytest.mark.parametrize(
        "changes", [{"detector": "orb"}, {"corner_size": 5.0}, {"rotate": 30.0}, {"zoom": 0.8}]
    )
    def test_other_points_or_images_do_not(self, root, tmp_path, computed, changes):
        computed(root, tmp_path / "cache")
        _, other = computed(root, tmp_path / "cache", **changes)
        assert other.count("pose") == other.count("detect") > 0

    def test_other_threads_do_not(self, root, tmp_path, computed):
        threads = cv2.getNumThreads()
        _, first = computed(root, tmp_path / "cache")
        try:
            cv2.setNumThreads(threads + 1)
            _, again = computed(root, tmp_path / "cache", budget="keypoints")
        finally:
            cv2.setNumThreads(threads)
        assert again == first

    def test_those_of_a_user_s_method_are_written_for_what_they_are_kept_for(
        self, photograph, tmp_path
    ):
        peer = tmp_path / "peer.py"
        peer.write_text(PEER)

        def angles(descriptor, folder):
            options = MatchingProtocol(methods=(str(peer),), descriptor=descriptor)
            options = dataclasses.replace(options, kept=keep_in(folder, options))
            features = pipeline.load_pipeline(options).compute(turn_image(photograph))
            return {*features[str(peer)].keypoints.angle_deg.tolist()}

        angles("sift", tmp_path / "cache")
        assert angles("orb", tmp_path / "cache") == angles("orb", None)

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"text"])
    def test_a_damaged_file_is_as_good_as_none(self, root, tmp_path, computed, content):
        rows, first = computed(root, tmp_path / "cache")
        for path in (tmp_path / "cache").glob("*"):
            path.write_bytes(content)
        again, measured = computed(root, tmp_path / "cache")
        assert measured == first
        assert without_times(again) == without_times(rows)

    def test_shapes_are_kept(self, tmp_path):
        options = MatchingProtocol(methods=("upright",))
        kept = keep_in(tmp_path / "new", options)
        points = arrays_from_keypoints([cv2.KeyPoint(3.0, 4.0, 5.0, 6.0, 7.0, 8, 9)])
        shaped = AffineKeypoints(**vars(points), shape=np.array([[[2.0, 1.0], [0.0, 0.5]]]))
        assert kept.get("image", ("upright", "sift"), lambda: (shaped, 1.5)) == (shaped, 1.5)
        found, seconds = kept.get("image", ("upright", "sift"), pytest.fail)
        assert seconds == 1.5
        assert isinstance(found, AffineKeypoints)
        for name, value in vars(shaped).items():
            np.testing.assert_array_equal(getattr(found, name), value)
            assert getattr(found, name).dtype == value.dtype
        assert keep_in(None, options) is None
