"""Training shared between processes: the same run as that of one process."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cv_patchpose.patchpose.generator import generate  # noqa: E402
from cv_patchpose.patchpose.options import PatchPoseConfig  # noqa: E402
from cv_patchpose.training.checkpoint import load_checkpoint  # noqa: E402
from cv_patchpose.training.distributed import ProcessGroup, join_processes  # noqa: E402

pytestmark = [pytest.mark.train, pytest.mark.slow]

OPTIONS = ("--keypoints", "3072", "--batch-size", "32", "--threads", "1", "--seed", "0")


def train(folder, run, processes, options=OPTIONS):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "cv_patchpose.cli"]
    done = subprocess.run(
        [*command, "train", str(folder), "-o", str(run), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with (run / "log.csv").open() as file:
        return done.stdout.split(), [
            {name: float(value) for name, value in row.items()} for row in csv.DictReader(file)
        ]


def test_two_processes_train_as_one(texture_folder, tmp_path):
    _, alone = train(texture_folder, tmp_path / "alone", 1)
    said, shared = train(texture_folder, tmp_path / "shared", 2)
    assert said == [str(tmp_path / "shared" / "checkpoint.pt")]  # one of them speaks
    assert [row["keypoints"] for row in shared] == [row["keypoints"] for row in alone]
    state = load_checkpoint(tmp_path / "shared" / "checkpoint.pt")
    assert state["keypoints"] == 3072
    assert state["step"] == 96
    for metric in ("clean_orientation_within_10_deg", "clean_scale_within_1_3_octave"):
        assert alone[-1][metric] > 10
        np.testing.assert_allclose(shared[-1][metric], alone[-1][metric], atol=12)
    for loss in ("orientation_loss", "scale_loss"):
        np.testing.assert_allclose(shared[-1][loss], alone[-1][loss], rtol=0.2)


def test_two_processes_train_a_network_of_pairs_as_one(texture_folder, tmp_path):
    generate(texture_folder, tmp_path / "A", PatchPoseConfig(min_content=0, keypoints_per_image=8))
    options = ("--network", "resnet18", "--recipe", "pairs", "--target", "orientation")
    options += ("--keypoints", "96", "--batch-size", "32", "--threads", "1", "--device", "cpu")
    options += ("--validate-every", "1e-6")  # after each step
    _, alone = train(tmp_path / "A", tmp_path / "alone", 1, options)
    _, shared = train(tmp_path / "A", tmp_path / "shared", 2, options)
    assert [row["keypoints"] for row in alone] == [32, 64, 96]
    for one, other in zip(alone, shared, strict=True):
        assert other["keypoints"] == one["keypoints"]
        assert other["learning_rate"] == one["learning_rate"]
        np.testing.assert_allclose(other["orientation_loss"], one["orientation_loss"], rtol=0.01)
        for metric in ("val_orientation_within_5_deg", "val_orientation_within_10_deg"):
            np.testing.assert_allclose(other[metric], one[metric], atol=10)
    # So early the loss says little; gradients that are not averaged would be twice as large.
    one, other = (gradient_size(tmp_path / run) for run in ("alone", "shared"))
    np.testing.assert_allclose(other, one, rtol=0.4)


def gradient_size(run):
    moments = load_checkpoint(run / "checkpoint.pt")["optimizer"]["state"].values()
    return sum(float(each["exp_avg_sq"].sum()) for each in moments) ** 0.5


def test_a_process_on_its_own_is_a_group_of_one():
    group = join_processes("cpu")
    assert (group.rank, group.size, group.leads) == (0, 1, True)
    assert group.from_leader(1.5) == 1.5


def test_batches_divide_evenly():
    group = ProcessGroup(1, 2, torch.device("cpu"))
    assert group.share_of(64) == 32
    for batch in (7, 2):
        with pytest.raises(ValueError, match="batch_size: expected a multiple of the 2 processes"):
            group.share_of(batch)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named():
    with pytest.raises(ValueError, match="device: expected a GPU for 'cuda'"):
        join_processes("cuda")
