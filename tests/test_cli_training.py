"""The verbs train and export, from photographs to a model file, through the command itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

pytest.importorskip("torch")

from cv_patchpose.cli import main
from cv_patchpose.estimator import PoseEstimator
from cv_patchpose.patchpose.generator import generate
from cv_patchpose.patchpose.options import PatchPoseConfig
from cv_patchpose.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.train

TINY = ("--keypoints", 32, "--batch-size", 16, "--threads", 1)
ENDLESS = 100_000  # keypoints


def call(*arguments):
    return main([str(argument) for argument in arguments])


def fails(capsys, *arguments):
    capsys.readouterr()
    assert call(*arguments) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def run(texture_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    code = call("train", texture_folder, "-o", folder, *TINY, "--loss", "alignment", "--seed", 3)
    assert code == 0
    return folder


def test_resume_goes_on_with_the_options_of_the_run(texture_folder, run, tmp_path, capsys):
    held_out = (run / "validation.txt").read_text()
    before = load_checkpoint(run / "checkpoint.pt")["train_config"]
    capsys.readouterr()
    assert call("train", texture_folder, "-o", run, "--resume", "--keypoints", 48) == 0
    assert capsys.readouterr().out.strip() == str(run / "checkpoint.pt")
    state = load_checkpoint(run / "checkpoint.pt")
    assert state["keypoints"] == 48
    assert state["train_config"] == before | {"budget_keypoints": 48}
    assert (before["loss"], before["batch_size"], before["seed"]) == ("alignment", 16, 3)
    assert (run / "validation.txt").read_text() == held_out
    assert call("export", run, "-o", tmp_path / "m.onnx") == 0
    assert PoseEstimator(tmp_path / "m.onnx").metadata.training["keypoints"] == 48


@pytest.mark.parametrize(("given", "value"), [("no", False), ("auto", None)])
def test_bfloat16_is_chosen(texture_folder, tmp_path, given, value):
    options = (*TINY, "--keypoints", 16, "--bfloat16", given)
    assert call("train", texture_folder, "-o", tmp_path / "run", *options) == 0
    config = load_checkpoint(tmp_path / "run/checkpoint.pt")["train_config"]
    assert config["bfloat16"] is value


def test_progress_tells_the_time_left_and_the_accuracy(texture_folder, tmp_path, capsys):
    options = (*TINY, "--validate-every", 1e-6)  # after each step
    assert call("train", texture_folder, "-o", tmp_path / "run", *options) == 0
    bar = re.compile(
        r"train +(?P<share>[\d.]+)%\|.*\| (?P<spent>\d\d:\d\d)<(?P<left>\d\d:\d\d) *"
        r", orientation 5 deg (?P<orientation>[\d.]+) %, scale 1/6 octave (?P<scale>[\d.]+) %"
    )
    told = [found for part in capsys.readouterr().err.split("\r") if (found := bar.match(part))]
    assert float(told[-1]["share"]) == 100
    assert told[-1]["left"] == "00:00"
    row = (tmp_path / "run/log.csv").read_text().splitlines()
    last = dict(zip(row[0].split(","), map(float, row[-1].split(",")), strict=True))
    assert float(told[-1]["orientation"]) == round(last["spoilt_orientation_within_5_deg"], 1)
    assert float(told[-1]["scale"]) == round(last["spoilt_scale_within_1_6_octave"], 1)


def test_a_budget_in_minutes_replaces_one_in_keypoints(texture_folder, run):
    # Already used up: nothing is trained.
    assert call("train", texture_folder, "-o", run, "--resume", "--minutes", 1e-9) == 0


def test_rings_learn_one_histogram_of_a_teacher(texture_folder, tmp_path):
    taught = ("--teacher", "polar", "--teacher-weight", 2, "--teacher-target", "orientation")
    views = ("--magnification", 21, "--redetected", 0.5, "--tracked", 0.2)
    views += ("--rotation", "gradients")
    options = ("--network", "rings", *views, *taught, "--teacher-agreement", 2)
    assert call("train", texture_folder, "-o", tmp_path / "run", *TINY, *options) == 0
    config = load_checkpoint(tmp_path / "run/checkpoint.pt")["train_config"]
    assert (config["network"], config["teacher"], config["teacher_weight"]) == ("rings", "polar", 2)
    assert tuple(config["teacher_targets"]) == ("orientation",)
    assert config["teacher_agreement"] == 2
    drawn = config["synthesis"]
    assert [drawn[name] for name in ("magnification", "redetected", "tracked")] == [21, 0.5, 0.2]
    assert drawn["rotation"] == "gradients"


def test_resume_refuses_another_seed_and_nothing_to_resume(texture_folder, run, tmp_path, capsys):
    message = fails(capsys, "train", texture_folder, "-o", run, "--resume", "--seed", 4)
    assert "seed: expected 3 as in" in message
    message = fails(capsys, "train", texture_folder, "-o", tmp_path, "--resume")
    assert f"--resume: expected a run with a checkpoint.pt, got {tmp_path}" in message
    assert "start without --resume" in message
    (tmp_path / "checkpoint.pt").write_bytes(b"foreign")
    message = fails(capsys, "train", texture_folder, "-o", tmp_path, "--resume")
    assert "--resume: expected the folder of a run of cv-patchpose train, or" in message
    assert f"got {tmp_path / 'checkpoint.pt'}, which is not a training checkpoint" in message


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that can be caught")
def test_a_killed_run_is_resumed(texture_folder, tmp_path, capsys):
    """Killed at once, after its first step; resumed, and terminated before its first validation."""
    run = tmp_path / "run"
    checkpoint, process = run / "checkpoint.pt", train_apart(texture_folder, run)
    while not checkpoint.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert {path.name for path in run.iterdir()} == {"checkpoint.pt", "validation.txt"}
    before = load_checkpoint(checkpoint)["keypoints"]
    assert before == 16

    process = train_apart(texture_folder, run, "--resume")
    bars = (line for line in process.stderr if line.startswith("train"))
    assert any(float(line.split("%")[0].removeprefix("train")) > 0.5 for line in bars)
    process.terminate()
    _, said = process.communicate()
    assert process.returncode == 130
    assert f"{checkpoint}: --resume continues from here\n" in said
    assert said.endswith("cv-patchpose: interrupted\n")
    state = load_checkpoint(checkpoint)
    assert state["keypoints"] >= 0.005 * ENDLESS
    assert state["minutes"] > 0

    enough = state["keypoints"] + 16
    assert call("train", texture_folder, "-o", run, "--resume", "--keypoints", enough) == 0
    assert load_checkpoint(checkpoint)["keypoints"] == enough
    assert "Errno" not in capsys.readouterr().err  # that there is no log yet is no mistake


def train_apart(photographs, run, *more):
    options = ("--keypoints", ENDLESS, "--batch-size", 16, "--threads", 1, *more)
    command = [sys.executable, "-m", "cv_patchpose.cli", "train", photographs, "-o", run, *options]
    return subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)


def test_a_folder_without_usable_images_is_refused(tmp_path, capsys):
    assert "PHOTOGRAPHS: expected image files" in fails(
        capsys, "train", tmp_path, "-o", tmp_path / "r"
    )
    (tmp_path / "broken.jpg").write_bytes(b"no")
    message = fails(capsys, "train", tmp_path, "-o", tmp_path / "r")
    assert "PHOTOGRAPHS: expected at least 2 readable photographs" in message
    assert not (tmp_path / "r").exists()


def test_a_dataset_names_the_network_it_is_for(texture_folder, tmp_path, capsys):
    generate(texture_folder, tmp_path / "A", PatchPoseConfig(min_content=0, keypoints_per_image=1))
    for images in (tmp_path, tmp_path / "A"):
        message = fails(capsys, "train", images, "-o", tmp_path / "r")
        assert f"got the PatchPose dataset {tmp_path / 'A'}; networks are trained on it" in message
        assert "--network resnet18" in message


def test_a_recipe_names_its_network(texture_folder, tmp_path, capsys):
    message = fails(capsys, "train", texture_folder, "-o", tmp_path / "r", "--recipe", "paper")
    assert (
        "recipe: expected one of rings-48, rings-64, rings-192, rings for rings, got 'paper'"
        in message
    )
    assert "paper goes with --network resnet18" in message


def test_a_run_that_cannot_be_written_is_refused(texture_folder, run, tmp_path, capsys):
    assert "already holds a checkpoint" in fails(capsys, "train", texture_folder, "-o", run)
    file = tmp_path / "file"
    file.write_bytes(b"")
    assert "--output: expected a folder, got" in fails(capsys, "train", texture_folder, "-o", file)
    assert f"{file / 'run'}: " in fails(capsys, "train", texture_folder, "-o", file / "run")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--minutes", "nan", "error: --minutes: expected a finite number > 0, got nan"),
        ("--keypoints", 0, "error: --keypoints: expected None or an integer >= 1, got 0"),
        ("--streams", 0, "error: --streams: expected an integer >= 1, got 0"),
        ("--loss", "hinge", "error: --loss: expected overlap or alignment, got 'hinge'"),
        ("--scale-bins", 8, "error: --scale-bins: expected a whole number of rows per octave"),
        ("--magnification", -1, "error: --magnification: expected a finite number > 0, got -1"),
        ("--orientation-bins", 7, "error: --orientation-bins: expected at least 9, got 7"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, capsys, option, value, message):
    options = ("-o", tmp_path / "run", "--network", "polar", option, value)
    assert message in fails(capsys, "train", tmp_path, *options)


def test_other_networks_than_rings_stay_in_float(texture_folder, tmp_path, capsys):
    options = (*TINY, "--network", "polar", "--keypoints", 16)
    assert call("train", texture_folder, "-o", tmp_path / "run", *options) == 0
    options = ("-o", tmp_path / "m.onnx", "--quantize-on", "none")
    message = fails(capsys, "export", tmp_path / "run", *options)
    assert "error: --quantize-on: expected a network of rings" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--magnification", 0), "error: --magnification: expected a finite number above 0"),
        (("--quantize-on", "none"), "error: --quantize-on: expected a folder of photographs"),
    ],
)
def test_export_names_its_arguments_as_typed(run, tmp_path, capsys, options, message):
    output = ("-o", tmp_path / "m.onnx")
    assert message in fails(capsys, "export", run, *output, *options)
    message = fails(capsys, "export", tmp_path / "none", *output)
    assert "error: RUN_OR_CHECKPOINT: expected the folder of a run of" in message
    assert message.endswith(f"got {tmp_path / 'none'}: no such file\n")


def test_a_run_begins_with_another(texture_folder, run, tmp_path):
    options = (*TINY, "--init", run, "--keypoints", 16)
    assert call("train", texture_folder, "-o", tmp_path / "run", *options) == 0


def test_a_beginning_that_is_not_there_is_named(texture_folder, tmp_path, capsys):
    options = ("-o", tmp_path / "run", "--init", tmp_path / "none")
    message = fails(capsys, "train", texture_folder, *options)
    assert "error: --init: expected the folder of a run of cv-patchpose train" in message


def test_help_shows_the_defaults(capsys):
    with pytest.raises(SystemExit):
        call("train", "--help")
    text = capsys.readouterr().out
    assert "keypoints per step (64)" in text
    text = " ".join(text.split())
    assert "overlap or alignment (overlap; paper: alignment)" in text
    assert "the larger, the less outliers count (0.001; rings: 0.01; polar: 0.05;" in text
