"""A run from photographs to a model file: log, checkpoint, resume, export."""

from __future__ import annotations

import csv
import dataclasses
import multiprocessing
import re
import shutil
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from cv_patchpose.errors import ModelError  # noqa: E402
from cv_patchpose.estimator import PoseEstimator  # noqa: E402
from cv_patchpose.histograms import PoseBins  # noqa: E402
from cv_patchpose.patches import build_pyramid, sample_patches  # noqa: E402
from cv_patchpose.training import calibration, curves  # noqa: E402
from cv_patchpose.training import export as export_module  # noqa: E402
from cv_patchpose.training.checkpoint import (  # noqa: E402
    average_network,
    config_of,
    load_checkpoint,
    network_of,
    saved_config,
)
from cv_patchpose.training.dataset import Batch  # noqa: E402
from cv_patchpose.training.export import (  # noqa: E402
    QUANTIZED_TOLERANCE,
    export_checkpoint,
)
from cv_patchpose.training.imitation import Agreement, Teacher  # noqa: E402
from cv_patchpose.training.objective import (  # noqa: E402
    Logits,
    PoseLoss,
    imitation_loss,
    pair_changes,
    pose_accuracy,
    run_network,
    taught_by,
)
from cv_patchpose.training.options import LOSSES, SynthesisConfig, TrainConfig  # noqa: E402
from cv_patchpose.training.photographs import Photograph  # noqa: E402
from cv_patchpose.training.placement import place_keypoints  # noqa: E402
from cv_patchpose.training.polar import PolarNet  # noqa: E402
from cv_patchpose.training.synthesis import View  # noqa: E402
from cv_patchpose.training.trainer import Trainer  # noqa: E402

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
def run(texture_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    Trainer(texture_folder, folder, TINY).train()
    return folder


def known_batch():
    """Two keypoints in two views: turned by 30 degrees and zoomed by 2, windows of one size."""
    turn = 2.0 * np.array([[np.sqrt(3) / 2, -0.5], [0.5, np.sqrt(3) / 2]])
    jacobian = np.stack([np.eye(2), turn])[None].repeat(2, 0)
    nothing_known = np.full((2, 2), np.inf)
    patches = np.empty((2, 2, 1, 1, 1), np.float32)
    return Batch(patches, jacobian, np.full((2, 2), 5.0), nothing_known)


def logits_at(scale_bins, orientation_bins):
    """(2, 2, bins) logits with one sharp parabola each."""
    scale = -4.0 * (torch.arange(13.0) - torch.tensor(scale_bins)[..., None]) ** 2
    distance = (torch.arange(36.0) - torch.tensor(orientation_bins)[..., None] + 18) % 36 - 18
    return Logits(scale, -4.0 * distance**2)


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
    accuracy = pose_accuracy(right, known_batch(), bins)
    assert set(accuracy.values()) == {100.0}
    # Orientation 7 degrees off and scale 0.25 octave off: within the wider thresholds only.
    off = logits_at([[4.0, 7.75], [5.0, 8.75]], [[10.0, 13.7], [34.0, 1.7]])
    accuracy = pose_accuracy(off, known_batch(), bins)
    assert list(accuracy.values()) == [0.0, 100.0, 0.0, 100.0]
    for name in LOSSES:
        config = TrainConfig(loss=name, sigma_deg=3.0, sigma_octaves=0.08, floor=1e-8)
        loss = PoseLoss(bins, config)
        for good, bad in zip(loss(right, known_batch()), loss(off, known_batch()), strict=True):
            assert good < bad


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
    names = {"checkpoint.pt", "curves.png", "log.csv", "validation.txt"}
    assert {path.name for path in run.iterdir()} == names


def test_the_checkpoint_says_what_it_was_trained_on(texture_folder, run, tmp_path):
    state = load_checkpoint(run / "checkpoint.pt")
    data = {"folder": texture_folder.name, "photographs": 4}
    assert state["data"].items() >= data.items()
    notes = PoseEstimator(export_checkpoint(run, tmp_path / "model.onnx")).metadata.training
    assert notes["data"] == state["data"]


def test_equal_seeds_give_equal_weights(texture_folder, run, tmp_path):
    def weights(seed):
        folder = tmp_path / str(seed)
        Trainer(texture_folder, folder, dataclasses.replace(TINY, seed=seed)).train()
        return load_checkpoint(folder / "checkpoint.pt")["average"]

    expected = load_checkpoint(run / "checkpoint.pt")["average"]
    torch.testing.assert_close(weights(TINY.seed), expected, rtol=0, atol=0)
    assert not torch.equal(weights(1)["trunk.0.weight"], expected["trunk.0.weight"])


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains(texture_folder, tmp_path, loss):
    trainer = Trainer(texture_folder, tmp_path, dataclasses.replace(TINY, loss=loss))
    before = {name: value.clone() for name, value in trainer.network.named_parameters()}
    batches = iter(trainer._streams()[0])
    assert trainer._step(next(batches)).isfinite().all()
    assert any(not torch.equal(before[n], v) for n, v in trainer.network.named_parameters())


def test_training_leaves_the_thread_counts_alone(texture_folder, tmp_path):
    before = torch.get_num_threads(), cv2.getNumThreads()
    config = dataclasses.replace(TINY, threads=before[0] + 1, budget_keypoints=16)
    Trainer(texture_folder, tmp_path, config).train()
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before


@pytest.fixture
def copied_run(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "run"))


def longer(config=TINY, **changes):
    return dataclasses.replace(config, **({"budget_keypoints": 96} | changes))


def logged(run):
    with (run / "log.csv").open(newline="") as file:
        return [int(row["keypoints"]) for row in csv.DictReader(file)]


def test_resume_goes_on_where_the_checkpoint_stands(texture_folder, copied_run):
    trainer = Trainer(texture_folder, copied_run, longer(), resume=True)
    before = load_checkpoint(copied_run / "checkpoint.pt")
    assert trainer.keypoints == 64
    for name, value in trainer.network.state_dict().items():
        torch.testing.assert_close(value, before["network"][name])
    trainer.train()
    assert load_checkpoint(copied_run / "checkpoint.pt")["keypoints"] == 96
    assert logged(copied_run) == [64, 96]


def test_resume_drops_what_was_logged_behind_the_checkpoint(texture_folder, copied_run):
    log = copied_run / "log.csv"
    header, row = log.read_text().splitlines()
    minutes, _, rest = row.split(",", 2)
    log.write_text(f"{header}\n{row}\n{minutes},80,{rest}\n{minutes},96,0.0")
    Trainer(texture_folder, copied_run, longer(), resume=True).train()
    assert logged(copied_run) == [64, 96]


@pytest.mark.parametrize("damage", [b"", b"\0\xff\n\0,,,\n", b"keypoints\n3\n", None])
def test_resume_survives_a_damaged_log(texture_folder, copied_run, damage):
    log = copied_run / "log.csv"
    log.unlink()
    if damage is not None:
        log.write_bytes(damage)
    Trainer(texture_folder, copied_run, longer(), resume=True).train()
    assert logged(copied_run) == [96]


def test_a_fresh_run_begins_a_new_log(texture_folder, copied_run):
    (copied_run / "checkpoint.pt").unlink()
    Trainer(texture_folder, copied_run, dataclasses.replace(TINY, budget_keypoints=16)).train()
    assert logged(copied_run) == [16]


def test_resume_reads_older_checkpoints(texture_folder, copied_run):
    path = copied_run / "checkpoint.pt"
    state = load_checkpoint(path)
    del state["data"], state["train_config"]["loss"], state["train_config"]["synthesis"]["jitter"]
    torch.save(state, path)
    config = saved_config(copied_run)
    assert config.loss == "overlap"
    assert config.synthesis.jitter == SynthesisConfig().jitter
    assert Trainer(texture_folder, copied_run, longer(config), resume=True).keypoints == 64
    assert export_checkpoint(path, copied_run / "model.onnx").is_file()


def test_resume_refuses_another_beginning(texture_folder, copied_run):
    with pytest.raises(ValueError, match="seed: expected 0 as in .*, got 1"):
        Trainer(texture_folder, copied_run, longer(seed=1), resume=True)
    with pytest.raises(ValueError, match="validation_share: expected 0.25 as in .*, got 0.5"):
        Trainer(texture_folder, copied_run, longer(validation_share=0.5), resume=True)
    with pytest.raises(ValueError, match="init: expected None as in .*, got 'other.pt'"):
        Trainer(texture_folder, copied_run, longer(init="other.pt"), resume=True)
    with pytest.raises(ValueError, match="like the one to train, got one of hidden 64 and not 32"):
        Trainer(texture_folder, copied_run, longer(hidden=32), resume=True)


def test_resume_refuses_other_photographs(texture_folder, copied_run, tmp_path):
    other = Path(shutil.copytree(texture_folder, tmp_path / "other"))
    held_out = load_checkpoint(copied_run / "checkpoint.pt")["validation_files"][0]
    (other / held_out).rename(other / "new.png")
    with pytest.raises(ValueError, match="images: .* the validation photographs differ"):
        Trainer(other, copied_run, longer(), resume=True)


def test_an_interrupted_run_saves_what_it_has_learnt(texture_folder, tmp_path, monkeypatch):
    step = Trainer._step

    def interrupted(trainer, batch):
        if trainer.step == 3:
            raise KeyboardInterrupt
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    trainer = Trainer(texture_folder, tmp_path, TINY)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert (state["step"], state["keypoints"], state["minutes"]) == (3, 48, trainer.minutes)
    torch.testing.assert_close(state["network"], trainer.network.state_dict())


@pytest.mark.parametrize("failing", ["os.replace", "pathlib.Path.write_bytes"])
def test_a_killed_save_keeps_the_old_checkpoint(texture_folder, copied_run, monkeypatch, failing):
    before = (copied_run / "checkpoint.pt").read_bytes()

    def die(path, *_):
        Path(path).open("wb").close()
        raise KeyboardInterrupt

    trainer = Trainer(texture_folder, copied_run, longer(budget_keypoints=80), resume=True)
    monkeypatch.setattr(failing, die)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    monkeypatch.undo()
    assert (copied_run / "checkpoint.pt").read_bytes() == before
    assert logged(copied_run) == [64]
    names = {"checkpoint.pt", "curves.png", "log.csv", "validation.txt"}
    assert {path.name for path in copied_run.iterdir()} == names


def test_wrong_folders_are_named(texture_folder, run, tmp_path):
    with pytest.raises(ValueError, match="run: .* already holds a checkpoint"):
        Trainer(texture_folder, run, TINY)
    with pytest.raises(
        ValueError, match="checkpoint: expected .* got .*checkpoint.pt: no such file"
    ):
        Trainer(texture_folder, tmp_path / "new", TINY, resume=True)
    with pytest.raises(ValueError, match="run: expected a folder, got the file"):
        Trainer(texture_folder, texture_folder / "0.png", TINY)


@pytest.mark.parametrize("name", ["", "checkpoint.pt"])
def test_init_begins_with_the_averaged_weights(texture_folder, run, tmp_path, name):
    path = run / name
    trainer = Trainer(texture_folder, tmp_path / "run", dataclasses.replace(TINY, init=str(path)))
    expected = load_checkpoint(run / "checkpoint.pt")["average"]
    torch.testing.assert_close(trainer.network.state_dict(), expected)
    other = dataclasses.replace(TINY, init=str(path), hidden=32)
    with pytest.raises(ValueError, match=f"{path}: expected .*, got one of hidden 64 and not 32"):
        Trainer(texture_folder, tmp_path / "other", other)
    missing = dataclasses.replace(TINY, init=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="init: expected the folder of a run .*none: no such file"):
        Trainer(texture_folder, tmp_path / "other", missing)


def test_photographs_that_init_was_trained_on_are_told(texture_folder, run, tmp_path, capsys):
    config = dataclasses.replace(TINY, init=str(run), validation_share=0.5)
    Trainer(texture_folder, tmp_path / "more", config)
    assert re.search(
        r"init: was trained on [1-9]\d* of the \d+ photographs held out", capsys.readouterr().err
    )
    Trainer(texture_folder, tmp_path / "same", dataclasses.replace(config, validation_share=0.25))
    assert "trained on" not in capsys.readouterr().err


def test_init_widens_a_network_of_rings(texture_folder, tmp_path):
    narrow = dataclasses.replace(
        TINY, network="rings", stem_channels=16, channels=(16, 16, 16), hidden=16, aligned=False
    )
    run = Trainer(texture_folder, tmp_path / "narrow", narrow).train()
    wide = dataclasses.replace(narrow, stem_channels=32, channels=(32, 32, 32), init=str(run))
    trainer = Trainer(texture_folder, tmp_path / "wide", wide)
    grid = trainer.shape.grid
    patches = torch.randn(4, 1, grid.rows, grid.columns + 2 * grid.halo)
    expected = network_of(load_checkpoint(run)).eval()(patches)
    for network in (trainer.network.eval(), trainer.average.eval()):
        for one, other in zip(network(patches), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    trainer.train()
    narrower = dataclasses.replace(narrow, channels=(8, 8, 8), init=str(run))
    with pytest.raises(ValueError, match="got one of channels 16, 16, 16 and not 8, 8, 8"):
        Trainer(texture_folder, tmp_path / "narrower", narrower)


@pytest.mark.parametrize("entry", ["average", "train_config", "scale_offset_octaves"])
def test_a_checkpoint_that_lacks_an_entry_is_refused(run, tmp_path, entry):
    state = load_checkpoint(run / "checkpoint.pt")
    del state[entry]
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=f"part.pt lacks {entry}"):
        load_checkpoint(tmp_path / "part.pt")


@pytest.mark.parametrize(
    ("entry", "key", "value"),
    [
        ("average", "trunk.0.weight", torch.zeros(1)),
        ("network", "foreign", torch.zeros(1)),
        ("network_config", "hidden", 3),
        ("network_config", "foreign", 3),
        ("train_config", "streams", 0),
    ],
)
def test_a_checkpoint_whose_entries_do_not_fit_is_refused(run, tmp_path, entry, key, value):
    state = load_checkpoint(run / "checkpoint.pt")
    state[entry][key] = value
    torch.save(state, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="bad.pt does not hold together"):
        load_checkpoint(tmp_path / "bad.pt")


def test_the_options_come_back_from_the_checkpoint(run):
    assert config_of(load_checkpoint(run / "checkpoint.pt")) == TINY


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("budget_minutes", float("nan"), "a finite number > 0, got nan"),
        ("budget_minutes", float("inf"), "a finite number > 0"),
        ("budget_minutes", "60", "a finite number > 0, got '60'"),
        ("budget_keypoints", 0, "None or an integer >= 1, got 0"),
        ("batch_size", 1, "an integer >= 2"),
        ("batch_size", 2.5, "an integer >= 2"),
        ("learning_rate", 0.0, "a finite number > 0"),
        ("floor", -0.1, "a finite number >= 0"),
        ("ema", 1.0, "a number from 0 to below 1"),
        ("validation_share", 0.0, "a number between 0 and 1"),
        ("seed", -1, "an integer >= 0"),
        ("threads", -1, "an integer >= 0"),
        ("streams", 0, "an integer >= 1"),
        ("channels", (16, 0), "integers >= 1"),
        ("bfloat16", "yes", "None, True or False"),
        ("teacher_agreement", -1.0, "a finite number >= 0"),
        ("loss", "hinge", "overlap or alignment, got 'hinge'"),
    ],
)
def test_training_options_are_checked(field, value, expected):
    with pytest.raises(ValueError, match=re.escape(f"{field}: expected {expected}")):
        TrainConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("views", 1, "an integer >= 2"),
        ("margin_px", 192, "less than half of canvas_px (384), got 192"),
        ("zoom_octaves", (1.0, -1.0), "two numbers in order from -10 to 10"),
        ("jpeg_quality", (15.0, 101.0), "two numbers in order from 0 to 100"),
        ("window_px", (0.0, 20.0), "two numbers in order from 1 to 10000"),
        ("window_px", (28.0, float("nan")), "two numbers in order from 1 to 10000"),
        ("negative", 1.5, "a number from 0 to 1"),
        ("redetected", 1.1, "a number from 0 to 1"),
        ("jitter", -0.1, "a finite number >= 0"),
        ("magnification", 0.0, "a finite number > 0"),
    ],
)
def test_synthesis_options_are_checked(field, value, expected):
    with pytest.raises(ValueError, match=re.escape(f"{field}: expected {expected}")):
        SynthesisConfig(**{field: value})


def test_calibration_takes_blobs_from_everywhere(monkeypatch):
    count = 1000
    xy = np.column_stack([np.linspace(0, 299, count), np.full(count, 150.0)])
    photograph = Photograph(np.zeros((300, 300), np.uint8), xy, np.full(count, 4.0))
    seen = []

    def record(pyramid, xy_px, *arguments, **options):
        seen.append(xy_px[:, 0])
        return sample_patches(pyramid, xy_px, *arguments, **options)

    monkeypatch.setattr(calibration, "sample_patches", record)
    network = PolarNet().eval()
    shape = network.config
    offset = calibration.measure_scale_offset(network, shape.grid, shape.bins, [photograph], 12.0)
    assert np.isfinite(offset)
    assert len(seen[0]) == calibration.BLOBS_PER_PHOTOGRAPH
    assert (seen[0].min(), seen[0].max()) == (0, 299)


def test_export_agrees_with_torch_at_sizes_never_traced(run, tmp_path):
    path = export_checkpoint(run, tmp_path / "model.onnx", name="mine")
    estimator = PoseEstimator(path)
    assert estimator.metadata.name == "mine"
    assert estimator.metadata.training["keypoints"] == 64
    network = network_of(load_checkpoint(run / "checkpoint.pt")).eval()
    for batch in (1, 5, 300):
        patches = torch.randn(batch, *estimator.metadata.patch_shape)
        with torch.no_grad():
            nothing_known = torch.zeros(len(patches), 13)
            scale, orientation = network(patches, nothing_known)
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


@pytest.fixture(scope="module")
def ring_run(texture_folder, tmp_path_factory):
    """Train rings with views made by a process, in two goes."""
    folder = tmp_path_factory.mktemp("rings")
    config = dataclasses.replace(
        TINY, network="rings", aligned=False, stem_channels=16, channels=(16, 24), teacher="polar"
    )
    if "fork" in multiprocessing.get_all_start_methods():
        config = dataclasses.replace(config, workers=1)
    with warnings.catch_warnings():  # Python's, of forking beside threads
        warnings.simplefilter("ignore", DeprecationWarning)
        Trainer(texture_folder, folder, config).train()
        config = dataclasses.replace(saved_config(folder), budget_keypoints=96)
        Trainer(texture_folder, folder, config, resume=True).train()
    assert load_checkpoint(folder / "checkpoint.pt")["keypoints"] == 96
    return folder


@pytest.mark.parametrize("network", ["run", "ring_run"])
def test_export_runs_on_both_engines_alike(network, tmp_path, request):
    pytest.importorskip("onnxruntime")
    path = export_checkpoint(request.getfixturevalue(network), tmp_path / "model.onnx")
    engines = [PoseEstimator(path, engine=name) for name in ("onnxruntime", "opencv")]
    for batch in (16, 5, 16):
        shape = (batch, *engines[0].metadata.patch_shape)
        patches = np.random.default_rng(batch).standard_normal(shape).astype(np.float32)
        one, other = (engine.histograms(patches) for engine in engines)
        np.testing.assert_allclose(one.scale, other.scale, atol=1e-4)
        np.testing.assert_allclose(one.orientation, other.orientation, atol=1e-4)


def test_export_in_eight_bits_runs_on_both_engines_alike(ring_run, texture_folder, tmp_path):
    pytest.importorskip("onnxruntime")
    plain = export_checkpoint(ring_run, tmp_path / "plain.onnx")
    path = export_checkpoint(ring_run, tmp_path / "model.onnx", quantize_on=texture_folder)
    kinds = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    engines = [PoseEstimator(path, engine=name) for name in ("onnxruntime", "opencv")]
    metadata = engines[0].metadata
    assert metadata.grid == PoseEstimator(plain).metadata.grid
    assert metadata.training["eight_bits"] == ["stem", "layers", "closing"]
    shape = (64, *metadata.patch_shape)
    patches = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    one, other = (engine.histograms(patches) for engine in engines)
    for ours, theirs in zip(vars(one).values(), vars(other).values(), strict=True):
        differences = np.abs(ours - theirs).max(1)
        assert np.quantile(differences, 0.9) <= 2e-5
        assert differences.max() <= 5e-3  # a value on the edge may be rounded to either side
    exact = PoseEstimator(plain).histograms(patches)
    assert 0 < np.abs(one.orientation - exact.orientation).sum(1).mean() < 0.15


def test_eight_bits_are_for_rings_and_need_photographs(run, ring_run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="quantize_on: expected a network of rings, got polar$"):
        export_checkpoint(run, tmp_path / "model.onnx", quantize_on=tmp_path / "empty")
    with pytest.raises(ValueError, match="quantize_on: expected image files"):
        export_checkpoint(ring_run, tmp_path / "model.onnx", quantize_on=tmp_path / "empty")
    assert not list(tmp_path.glob("*.onnx"))


def test_eight_bits_that_tell_something_else_are_not_written(
    ring_run, texture_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(export_module, "QUANTIZED_TOLERANCE", 0.0)
    with pytest.raises(ModelError, match="in eight bits that move less than 0.0 of their mass"):
        export_checkpoint(ring_run, tmp_path / "model.onnx", quantize_on=texture_folder)
    assert not list(tmp_path.iterdir())


def test_export_writes_nothing_when_it_disagrees(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "TOLERANCE", -1.0)
    with pytest.raises(ModelError, match="within -1.0 of PyTorch at batch size 1"):
        export_checkpoint(run, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("magnification", [0, -3.0, float("nan"), float("inf")])
def test_export_refuses_senseless_magnifications(run, tmp_path, magnification):
    message = f"magnification: expected a finite number above 0, got {magnification!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        export_checkpoint(run, tmp_path / "model.onnx", magnification=magnification)
    assert not list(tmp_path.iterdir())


def test_export_names_the_output_that_cannot_be_written(run, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "tmp123")

    monkeypatch.setattr(export_module.tempfile, "TemporaryDirectory", lambda dir: refuse())
    with pytest.raises(PermissionError) as caught:
        export_checkpoint(run, tmp_path / "model.onnx")
    assert caught.value.filename == str(tmp_path / "model.onnx")


def test_runs_with_one_beginning_are_averaged(texture_folder, run, tmp_path):
    begun = dataclasses.replace(TINY, init=str(run / "checkpoint.pt"))
    folders = [tmp_path / "one", tmp_path / "other"]
    for seed, folder in enumerate(folders):
        Trainer(texture_folder, folder, dataclasses.replace(begun, seed=seed)).train()
    path = export_checkpoint(folders, tmp_path / "model.onnx")
    states = [load_checkpoint(folder / "checkpoint.pt") for folder in folders]
    one, other = (network_of(state).eval() for state in states)
    average = average_network(states).eval()
    for name, value in average.named_parameters():
        mean = (one.get_parameter(name) + other.get_parameter(name)) / 2
        torch.testing.assert_close(value, mean)
    estimator = PoseEstimator(path)
    patches = np.random.default_rng(0).normal(size=(5, *estimator.metadata.patch_shape))
    patches, prior = patches.astype(np.float32), np.zeros((5, 13), np.float32)
    with torch.no_grad():
        _, logits = average(torch.from_numpy(patches), torch.from_numpy(prior))
    found = estimator.histograms(patches, prior)
    np.testing.assert_allclose(found.orientation, logits.softmax(1), atol=1e-4)
    offsets = [state["scale_offset_octaves"] for state in states]
    assert estimator.metadata.scale_offset_octaves == pytest.approx(np.mean(offsets))
    assert estimator.metadata.training["averaged_2"]["recipe"]["seed"] == 1


@pytest.mark.parametrize("again", ["", "checkpoint.pt", "../run0"])
def test_a_run_is_not_averaged_with_itself(run, tmp_path, again):
    repeated = run / again.replace("run0", run.name)
    message = f"source: expected each run once, got {repeated} again"
    with pytest.raises(ValueError, match=re.escape(message)):
        export_checkpoint([run, repeated], tmp_path / "model.onnx")


@pytest.mark.parametrize("losses", [(3.0, 3.0), (3.4, 1.0), (float("nan"), 1.0)])
def test_the_highest_loss_keeps_off_the_frame(tmp_path, monkeypatch, losses):
    figures = []
    monkeypatch.setattr(curves.plt, "close", figures.append)
    rows = [
        {"keypoints": 1000.0 * i, "scale_loss": 0.0, "orientation_loss": loss}
        for i, loss in enumerate(losses)
    ]
    curves.draw_curves(rows, tmp_path / "curves.png")
    low, high = figures[0].axes[0].get_ylim()
    assert low == 0
    assert high > 1.09 * np.nanmax(losses)


def test_runs_that_began_differently_are_not_averaged(texture_folder, run, ring_run, tmp_path):
    other = tmp_path / "other"
    Trainer(texture_folder, other, dataclasses.replace(TINY, seed=5)).train()
    with pytest.raises(ValueError, match="source: expected runs that began with the same weights"):
        export_checkpoint([run, other], tmp_path / "model.onnx")
    wider = load_checkpoint(run / "checkpoint.pt")
    wider["train_config"]["synthesis"]["magnification"] = 21.0
    with pytest.raises(ValueError, match="source: expected runs of one magnification, got 18 and"):
        average_network([load_checkpoint(run / "checkpoint.pt"), wider])
    with pytest.raises(ValueError, match="source: expected runs of one network, got one of"):
        export_checkpoint([run, ring_run], tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_export_refuses_what_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="checkpoint: expected .* got .*missing.pt: no such file"):
        export_checkpoint(tmp_path / "missing.pt", tmp_path / "model.onnx")
    (tmp_path / "foreign.pt").write_bytes(b"foreign")
    with pytest.raises(ValueError, match="is not a training checkpoint"):
        export_checkpoint(tmp_path / "foreign.pt", tmp_path / "model.onnx")
    torch.save({"format": 99}, tmp_path / "old.pt")
    with pytest.raises(ValueError, match="not a checkpoint of format 1"):
        export_checkpoint(tmp_path / "old.pt", tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx"))


def test_a_pupil_learns_what_its_teacher_says(texture_folder, tmp_path):
    """Imitation above all, of the bundled model by a smaller network that reads another grid."""
    config = dataclasses.replace(
        TINY, stride=1, aligned=False, hidden=32, teacher="polar", teacher_weight=50.0,
        budget_keypoints=640, learning_rate=1e-2,
    )  # fmt: skip
    trainer = Trainer(texture_folder, tmp_path / "run", config)
    batch = next(iter(trainer._streams()[0]))
    assert batch.patches.shape[2:] == (1, 21, 42)
    assert batch.taught_orientation.shape == (16, 4, 36)

    def divergence():
        with torch.no_grad():
            logits = run_network(trainer.network, batch, trainer.shape.bins)
            return float(imitation_loss(logits, taught_by(batch, config.teacher_targets)))

    before = divergence()
    trainer.train()
    assert divergence() < 0.7 * before


def test_of_a_teacher_one_histogram_may_be_imitated():
    taught = np.full((2, 2, 13), 1 / 13, np.float32), np.full((2, 2, 36), 1 / 36, np.float32)
    batch = dataclasses.replace(known_batch(), taught_scale=taught[0], taught_orientation=taught[1])
    right, wrong = torch.zeros(2, 2, 36), 5 * torch.randn(2, 2, 13)
    logits = Logits(scale=wrong, orientation=right)
    assert float(imitation_loss(logits, taught_by(batch, ["orientation"]))) == pytest.approx(0)
    assert float(imitation_loss(logits, taught_by(batch, ["scale", "orientation"]))) > 0.5


def test_a_teacher_of_other_bins_is_refused(texture_folder, tmp_path):
    config = dataclasses.replace(TINY, scale_bins=9, teacher="polar")
    with pytest.raises(ValueError, match="teacher: expected .*scale=9.*got .*scale=13"):
        Trainer(texture_folder, tmp_path / "run", config)


def test_a_teacher_reads_windows_of_several_sizes(toy_model):
    """Its histograms of a wider window come back to the bins of the pupil's."""
    image = np.zeros((240, 240), np.uint8)
    cv2.circle(image, (120, 120), 20, 255, -1, cv2.LINE_AA)
    place, window, unknown = np.array([[120.0, 120.0]]), np.array([110.0]), np.array([np.inf])
    peaks = []
    for octaves in ((0.0,), (1 / 3,), (-1 / 3,), (-1 / 3, 0.0, 1 / 3)):
        teacher = Teacher(toy_model, PoseBins(), octaves)
        found = teacher.histograms(build_pyramid(image), place, window, unknown)
        assert found.scale.sum() == pytest.approx(1, abs=1e-5)
        assert found.orientation.sum() == pytest.approx(1, abs=1e-5)
        peaks.append(int(found.scale.argmax()))
    assert len(set(peaks)) == 1
    with pytest.raises(ValueError, match="teacher_octaves: expected whole scale bins"):
        Teacher(toy_model, PoseBins(), (0.2,))


def told(*views):
    """(1, V, S) and (1, V, R) histograms with one peak each: (bin, bin, sharpness)."""
    logits = [logits_at([[scale]], [[orientation]]) for scale, orientation, _ in views]
    sharpness = torch.tensor([[[sharp] for *_, sharp in views]]) / 4
    scale, orientation = (torch.cat([one[i] for one in logits], 1) for i in (0, 1))
    return (sharpness * scale).softmax(-1), (sharpness * orientation).softmax(-1)


def test_views_agree_on_what_most_of_them_tell():
    """Turned by 0, 30 and -25 degrees; the third view is sure of something else."""
    found = told((6, 10, 2.0), (6, 13, 2.0), (9, 20, 2.0))
    turns, none = torch.tensor([[0.0, 30.0, -25.0]]), torch.zeros(1, 3)
    scale, orientation = Agreement(PoseBins(), 1.0)(*found, turns, none)
    peaks = orientation[0].argmax(-1)
    assert peaks[:2].tolist() == [10, 13]
    assert peaks[2] in (7, 8)  # 7.5
    assert orientation[0, 2, 7] == pytest.approx(float(orientation[0, 2, 8]), rel=0.05)
    assert scale[0].argmax(-1).tolist() == [6, 6, 6]
    np.testing.assert_allclose(orientation.sum(-1), 1, atol=1e-5)
    _, surer = Agreement(PoseBins(), 3.0)(*found, turns, none)
    assert (surer.amax(-1) > orientation.amax(-1) + 0.05).all()


def test_an_agreed_scale_moves_with_the_window_of_the_pupil():
    found = told((6, 0, 2.0), (6, 0, 2.0))
    none, agree = torch.zeros(1, 2), Agreement(PoseBins(), 1.0)
    agreed = agree(*found, none, torch.tensor([[1 / 3, -2.5]]))[0][0]
    together = agree(*found, none, none)[0][0, 0]
    np.testing.assert_allclose(agreed[0, 1:], together[:-1], atol=1e-6)
    # Moved by seven bins and a half, all but the tail lies beyond the histogram.
    assert agreed[0].sum() == pytest.approx(1, abs=1e-3)
    assert agreed[1].sum() < 0.1


@pytest.mark.parametrize("tracked", [True, False])
def test_a_teacher_that_agrees_reads_the_views_before_they_were_spoilt(toy_model, tracked):
    """A disc with a bright sector in four views.

    One shows it elsewhere, also before it was spoilt; two others show it elsewhere once spoilt, and
    one of these out of its place. The pupil's window of the second is larger by a scale bin.
    """
    angles = np.array([0, 60, 200, 310])
    homographies = [
        np.vstack((cv2.getRotationMatrix2D((120, 120), -angle, 1.0), (0, 0, 1)))
        for angle in angles.tolist()
    ]

    def sector(start_deg):
        image = np.full((240, 240), 20, np.uint8)
        cv2.circle(image, (120, 120), 20, 120, -1, cv2.LINE_AA)
        begin, end = start_deg, start_deg + 50
        return cv2.ellipse(image, (120, 120), (20, 20), 0, begin, end, 255, -1, cv2.LINE_AA)

    unspoilt = [sector(angle) for angle in (angles + [0, 90, 0, 0]).tolist()]
    shown = [sector(angle) for angle in (angles + [0, 90, 180, 180]).tolist()]
    views = [View(*view) for view in zip(shown, homographies, unspoilt, strict=True)]
    config = SynthesisConfig(
        jitter_px=0.0, jitter=0.0, canvas_px=240, tracked=float(tracked), scale_sigma_octaves=0.01,
        free=0.0, window_px=(110.0, 110.0),
    )  # fmt: skip
    photograph = Photograph(sector(0), np.array([[120.0, 120.0]]), np.array([np.nan]))
    placed = place_keypoints(photograph, views, config, np.random.default_rng(0))
    placed.xy_px[0, 3] += 2
    placed.window_px[0, 1] *= 2 ** (1 / 3)
    pyramids = [build_pyramid(view.image) for view in views]
    expected = (2.5 + angles / 10) % 36

    def read(agreement, placed=placed):
        told = Teacher(toy_model, PoseBins(), agreement=agreement).tell(views, pyramids, placed)
        peaks = told.orientation[0].argmax(-1)
        wrong = np.flatnonzero(np.abs((peaks - expected + 18) % 36 - 18) > 1)
        scales = told.scale[0].argmax(-1)
        assert (scales[[0, 2]] - scales[1]).tolist() == [1, 1]
        return wrong.tolist()

    assert read(0.0) == [1, 2, 3]
    assert read(2.0) == ([] if tracked else [1, 2, 3])
    if tracked:
        # View 1 as a slanted one: its edges turn as told, which is 20 degrees more than its points.
        down, back = np.tan(np.radians(40)), np.radians(-40)
        turn = np.array([[np.cos(back), -np.sin(back)], [np.sin(back), np.cos(back)]])
        jacobian = placed.jacobian.copy()
        jacobian[:, 1] @= turn @ np.array([[1, 0], [down, 1]])
        slanted = dataclasses.replace(placed, jacobian=jacobian)
        assert 1 in read(2.0, slanted)
        edges = np.array([[[1e-9, 0], [0, 1.0]]])
        assert read(2.0, dataclasses.replace(slanted, gradients=edges)) == []


def test_a_model_does_not_tell_where_files_lay(texture_folder, run, tmp_path):
    config = dataclasses.replace(TINY, init=str(run / "checkpoint.pt"))
    Trainer(texture_folder, tmp_path / "run", config).train()
    path = export_checkpoint(tmp_path / "run", tmp_path / "model.onnx")
    assert PoseEstimator(path).metadata.training["recipe"]["init"] == "checkpoint.pt"
    assert str(tmp_path).encode() not in path.read_bytes()


FAMILY = sorted((Path(__file__).parents[1] / "benchmarks/family").glob("*.pt"))


@pytest.mark.parametrize("path", FAMILY, ids=lambda path: path.stem)
def test_checkpoints_that_are_kept_can_be_begun_with(path, texture_folder, tmp_path):
    state = load_checkpoint(path)
    kept = config_of(state)
    config = dataclasses.replace(
        kept, init=str(path), teacher=None, batch_size=4, validation_keypoints=4,
        bfloat16=False, budget_keypoints=4, reuse=1,
    )  # fmt: skip
    trainer = Trainer(texture_folder, tmp_path / "run", config)
    for name, values in trainer.average.state_dict().items():
        assert torch.equal(values, state["average"][name])
    if path.stem in ("polar", "polar-large"):
        estimator = PoseEstimator(path.stem)
        xy_px = np.random.default_rng(0).uniform(100, 400, (200, 2))
        pyramid, windows = build_pyramid(data.camera()), np.full(200, 90.0)
        patches = sample_patches(
            pyramid, xy_px, windows, np.zeros(200), estimator.metadata.grid, standardize=True
        )
        with torch.no_grad():
            logits = network_of(state).eval()(torch.from_numpy(patches))
        expected = [values.softmax(1).numpy() for values in logits]
        found = estimator.histograms(patches)
        for one, other in zip(expected, (found.scale, found.orientation), strict=True):
            assert np.abs(one - other).sum(1).mean() < QUANTIZED_TOLERANCE
