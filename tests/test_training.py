"""A run from photographs to a model file: log, checkpoint, resume, export."""

from __future__ import annotations

import csv
import dataclasses

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cv_patchpose.errors import ModelError  # noqa: E402
from cv_patchpose.estimator import PoseEstimator  # noqa: E402
from cv_patchpose.histograms import PoseBins  # noqa: E402
from cv_patchpose.training import export as export_module  # noqa: E402
from cv_patchpose.training.checkpoint import load_checkpoint, network_of  # noqa: E402
from cv_patchpose.training.dataset import Batch  # noqa: E402
from cv_patchpose.training.export import export_checkpoint  # noqa: E402
from cv_patchpose.training.objective import (  # noqa: E402
    PoseLoss,
    pair_changes,
    pose_accuracy,
)
from cv_patchpose.training.options import SynthesisConfig, TrainConfig  # noqa: E402
from cv_patchpose.training.trainer import Trainer, split_photographs  # noqa: E402

pytestmark = pytest.mark.train

TINY = TrainConfig(
    budget_keypoints=64,
    batch_size=16,
    validation_keypoints=64,
    validation_share=0.25,
    threads=1,
    bfloat16=False,
    synthesis=SynthesisConfig(keypoints_per_view=16, canvas_px=256),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(4):
        noise = np.random.default_rng(seed).normal(size=(300, 300)).astype(np.float32)
        smooth = sum(cv2.GaussianBlur(noise, (0, 0), s) * s for s in (2, 5, 12))
        image = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
        cv2.imwrite(str(folder / f"{seed}.png"), image)
    return folder


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    Trainer(images, folder, TINY).train()
    return folder


def known_batch():
    """Two keypoints in two views: turned by 30 degrees and zoomed by 2, windows of one size."""
    turn = 2.0 * np.array([[np.sqrt(3) / 2, -0.5], [0.5, np.sqrt(3) / 2]])
    jacobian = np.stack([np.eye(2), turn])[None].repeat(2, 0)
    return Batch(np.empty((2, 2, 1, 1, 1), np.float32), jacobian, np.full((2, 2), 5.0))


def logits_at(scale_bins, orientation_bins):
    """(2, 2, bins) logits with one sharp parabola each."""
    scale = -4.0 * (torch.arange(13.0) - torch.tensor(scale_bins)[..., None]) ** 2
    distance = (torch.arange(36.0) - torch.tensor(orientation_bins)[..., None] + 18) % 36 - 18
    return scale, -4.0 * distance**2


def test_changes_between_views():
    pairs, rotation_deg, octaves = pair_changes(known_batch())
    assert pairs.tolist() == [[0, 1]]
    np.testing.assert_allclose(rotation_deg, 30.0)
    np.testing.assert_allclose(octaves, 1.0)
    doubled = dataclasses.replace(known_batch(), log2_window=np.array([[5.0, 6.0]] * 2))
    np.testing.assert_allclose(pair_changes(doubled)[2], 0.0, atol=1e-12)


def test_accuracy_and_loss_of_known_answers():
    bins = PoseBins()
    # Right: +3 bins of 10 degrees, +3 bins of 1/3 octave. The second keypoint wraps around.
    right = logits_at([[4.0, 7.0], [5.0, 8.0]], [[10.0, 13.0], [34.0, 1.0]])
    accuracy = pose_accuracy(*right, known_batch(), bins)
    assert set(accuracy.values()) == {100.0}
    # Orientation 7 degrees off and scale 0.25 octave off: within the wider thresholds only.
    off = logits_at([[4.0, 7.75], [5.0, 8.75]], [[10.0, 13.7], [34.0, 1.7]])
    accuracy = pose_accuracy(*off, known_batch(), bins)
    assert list(accuracy.values()) == [0.0, 100.0, 0.0, 100.0]
    loss = PoseLoss(bins, sigma_deg=3.0, sigma_octaves=0.08, floor=1e-8)
    for good, bad in zip(loss(*right, known_batch()), loss(*off, known_batch()), strict=True):
        assert good < bad


def test_split_is_disjoint_and_repeats_by_seed(images):
    paths = sorted(images.iterdir())
    training, validation = split_photographs(paths, 0.25, 1)
    assert set(training) | set(validation) == set(paths)
    assert not set(training) & set(validation)
    assert (training, validation) == split_photographs(paths, 0.25, 1)


def test_a_run_leaves_log_curves_and_checkpoint(run):
    with (run / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["keypoints"]) == 64
    assert 0 <= float(rows[-1]["spoilt_orientation_within_5_deg"]) <= 100
    assert cv2.imread(str(run / "curves.png")) is not None
    state = load_checkpoint(run / "checkpoint.pt")
    assert state["keypoints"] == 64
    assert state["photographs"] == 3
    assert len(state["validation_files"]) == 1
    assert (run / "validation.txt").read_text().strip().endswith(state["validation_files"][0])
    assert not list(run.glob("*.tmp*"))


def test_resume_goes_on_where_the_checkpoint_stands(images, run, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    longer = dataclasses.replace(TINY, budget_keypoints=96)
    trainer = Trainer(images, tmp_path, longer, resume=True)
    before = load_checkpoint(run / "checkpoint.pt")
    assert trainer.keypoints == 64
    for name, value in trainer.network.state_dict().items():
        torch.testing.assert_close(value, before["network"][name])
    trainer.train()
    assert load_checkpoint(tmp_path / "checkpoint.pt")["keypoints"] == 96


def test_a_killed_save_keeps_the_old_checkpoint(images, run, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes((run / "checkpoint.pt").read_bytes())

    def die(state, file):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    trainer = Trainer(images, tmp_path, dataclasses.replace(TINY, budget_keypoints=80), resume=True)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    monkeypatch.undo()
    assert load_checkpoint(path)["keypoints"] == 64


def test_wrong_folders_are_named(images, run, tmp_path):
    with pytest.raises(ValueError, match="run: .* already holds a checkpoint"):
        Trainer(images, run, TINY)
    with pytest.raises(ValueError, match="resume: expected .*checkpoint.pt"):
        Trainer(images, tmp_path / "new", TINY, resume=True)
    (tmp_path / "broken.jpg").write_bytes(b"no")
    with pytest.raises(ValueError, match="images: expected readable photographs"):
        Trainer(tmp_path, tmp_path / "run", TINY)


def test_export_agrees_with_torch_at_sizes_never_traced(run, tmp_path):
    path = export_checkpoint(run, tmp_path / "model.onnx", name="mine")
    estimator = PoseEstimator(path)
    assert estimator.metadata.name == "mine"
    assert estimator.metadata.training["keypoints"] == 64
    network = network_of(load_checkpoint(run / "checkpoint.pt")).eval()
    for batch in (1, 5, 300):
        patches = torch.randn(batch, *estimator.metadata.patch_shape)
        with torch.no_grad():
            scale, orientation = network(patches)
        found = estimator.histograms(patches.numpy())
        np.testing.assert_allclose(found.scale, scale.softmax(1), atol=1e-4)
        np.testing.assert_allclose(found.orientation, orientation.softmax(1), atol=1e-4)


def test_another_magnification_keeps_the_sizes_found(run, tmp_path):
    one = PoseEstimator(export_checkpoint(run, tmp_path / "one.onnx")).metadata
    other = PoseEstimator(
        export_checkpoint(run, tmp_path / "other.onnx", magnification=2 * one.magnification)
    ).metadata
    assert other.magnification == 2 * one.magnification
    # In a window of twice the diameter the same content lies an octave further in.
    assert other.scale_offset_octaves == pytest.approx(one.scale_offset_octaves + 1.0)


def test_export_runs_on_both_engines_alike(run, tmp_path):
    pytest.importorskip("onnxruntime")
    path = export_checkpoint(run, tmp_path / "model.onnx")
    engines = [PoseEstimator(path, engine=name) for name in ("onnxruntime", "opencv")]
    for batch in (16, 5, 16):
        shape = (batch, *engines[0].metadata.patch_shape)
        patches = np.random.default_rng(batch).standard_normal(shape).astype(np.float32)
        one, other = (engine.histograms(patches) for engine in engines)
        np.testing.assert_allclose(one.scale, other.scale, atol=1e-4)
        np.testing.assert_allclose(one.orientation, other.orientation, atol=1e-4)


def test_export_writes_nothing_when_it_disagrees(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "TOLERANCE", -1.0)
    with pytest.raises(ModelError, match="within -1.0 of PyTorch at batch size 1"):
        export_checkpoint(run, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_export_refuses_what_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="checkpoint: expected a file"):
        export_checkpoint(tmp_path / "missing.pt", tmp_path / "model.onnx")
    (tmp_path / "foreign.pt").write_bytes(b"foreign")
    with pytest.raises(ValueError, match="is not a training checkpoint"):
        export_checkpoint(tmp_path / "foreign.pt", tmp_path / "model.onnx")
    torch.save({"format": 99}, tmp_path / "old.pt")
    with pytest.raises(ValueError, match="not a checkpoint of format 1"):
        export_checkpoint(tmp_path / "old.pt", tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx"))
