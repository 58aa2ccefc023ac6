"""The paper's two networks: trained on views and on PatchPose pairs, joined, stored in int8."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import shutil

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from onnx.reference import ReferenceEvaluator  # noqa: E402
from skimage import data  # noqa: E402

from cv_patchpose.assigner import PatchPoseAssigner  # noqa: E402
from cv_patchpose.cli import main  # noqa: E402
from cv_patchpose.estimator import PoseEstimator  # noqa: E402
from cv_patchpose.histograms import PoseBins  # noqa: E402
from cv_patchpose.patchpose.generator import generate  # noqa: E402
from cv_patchpose.patchpose.options import PatchPoseConfig  # noqa: E402
from cv_patchpose.training.checkpoint import load_checkpoint, network_of  # noqa: E402
from cv_patchpose.training.compression import round_weights, store_int8  # noqa: E402
from cv_patchpose.training.export import export_checkpoint  # noqa: E402
from cv_patchpose.training.networks import describe_differences, network_config  # noqa: E402
from cv_patchpose.training.objective import pair_changes  # noqa: E402
from cv_patchpose.training.optimization import learning_rate  # noqa: E402
from cv_patchpose.training.options import SynthesisConfig, TrainConfig  # noqa: E402
from cv_patchpose.training.recipes import PAPER, RECIPES, VIEWS, recipe  # noqa: E402
from cv_patchpose.training.resnet import ResNetConfig, ResNetPose  # noqa: E402
from cv_patchpose.training.sources import PatchPoseSource  # noqa: E402
from cv_patchpose.training.trainer import Trainer  # noqa: E402

pytestmark = pytest.mark.train

TINY = {
    "budget_keypoints": 16,
    "batch_size": 8,
    "validation_keypoints": 64,
    "threads": 1,
    "bfloat16": False,
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Eight images for each of the splits of PatchPose pairs, which are drawn by name."""
    folder = tmp_path_factory.mktemp("photographs")
    sources = itertools.cycle((data.astronaut(), data.coffee(), data.chelsea(), data.rocket()))
    for number, image in zip(range(24), sources, strict=False):
        turned = np.rot90(image[..., ::-1], number // 4)
        cv2.imwrite(str(folder / f"{number:02d}.png"), turned)
    return folder


@pytest.fixture(scope="module")
def runs(photographs, texture_folder, tmp_path_factory):
    """One run of each target, of PatchPose pairs and of views."""
    folder = tmp_path_factory.mktemp("runs")
    orientation = dataclasses.replace(PAPER, targets=("orientation",), **TINY)
    scale = dataclasses.replace(VIEWS, targets=("scale",), temperature=20.0, **TINY)
    Trainer(photographs, folder / "orientation", orientation).train()
    Trainer(texture_folder, folder / "scale", scale).train()
    return folder


@pytest.fixture(scope="module")
def pair(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "pair.onnx"
    return export_checkpoint([runs / "orientation", runs / "scale"], path, int8=True)


def test_the_networks_are_those_of_the_paper():
    network = ResNetPose(ResNetConfig(temperature=20.0)).eval()
    for target in ("orientation", "scale"):
        parameters = sum(p.numel() for p in network.branches[target].parameters())
        assert 11.2e6 < parameters < 11.8e6  # ResNet-18 without its classifier: 11.18 million
        linear = [m for m in network.branches[target].modules() if isinstance(m, torch.nn.Linear)]
        assert len(linear) == 4
    patches = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        scale, orientation = network(patches)
        network.config = ResNetConfig(temperature=1.0)
        hot = network(patches)[1]
    assert scale.shape == (2, 13)
    assert orientation.shape == (2, 36)
    torch.testing.assert_close(20 * orientation, hot)


def test_what_is_trained_unless_asked_for_is_what_is_bundled():
    training = PoseEstimator("polar").metadata.training
    assert training["recipe"]["network"] == recipe().network
    assert training["recipe"]["channels"] == list(recipe().channels)
    assert recipe("rings") == recipe("rings", "rings-48") == recipe()


def test_the_default_recipe_is_the_paper_s():
    config = recipe("resnet18")
    assert (config.optimizer, config.learning_rate, config.momentum) == ("sgd", 3.0, 0.9)
    assert (config.batch_size, config.temperature, config.loss) == (64, 20.0, "alignment")
    assert config.source == "patchpose"
    assert config.bfloat16 is False
    assert {learning_rate(config, progress) for progress in (0.0, 0.01, 0.5, 1.0)} == {3.0}
    assert learning_rate(recipe("resnet18", "pairs"), 0.001) < 1e-3  # the others warm up
    assert recipe("polar") == TrainConfig()
    with pytest.raises(
        ValueError, match="network: expected one of rings, polar, resnet18, got 'vgg'"
    ):
        recipe("vgg")
    with pytest.raises(ValueError, match="recipe: expected one of paper, pairs, views for"):
        recipe("resnet18", "polar")


@pytest.mark.parametrize("name", RECIPES["resnet18"])
@pytest.mark.parametrize("target", ["orientation", "scale"])
def test_a_network_learns_its_target_only(photographs, tmp_path, name, target):
    config = dataclasses.replace(recipe("resnet18", name), targets=(target,), **TINY)
    trainer = Trainer(photographs, tmp_path, config)
    before = [p.clone() for p in trainer.network.parameters()]
    trainer.train()
    assert any(
        not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True)
    )
    with (tmp_path / "log.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    other = "scale" if target == "orientation" else "orientation"
    assert float(row[f"{other}_loss"]) == 0.0 < float(row[f"{target}_loss"])
    assert any(f"{target}_within" in column for column in row)
    assert not any(f"{other}_within" in column for column in row)


@pytest.mark.parametrize(
    ("targets", "turned", "zoomed"),
    [
        (("orientation",), True, False),
        (("scale",), False, True),
        (("orientation", "scale"), True, True),
    ],
)
def test_pairs_change_only_what_is_learned(photographs, targets, turned, zoomed):
    config = dataclasses.replace(PAPER, targets=targets, **TINY)
    source = PatchPoseSource(photographs, config, network_config(config))
    batch = next(iter(source.stream((0,), 64)))
    _, rotation_deg, octaves = pair_changes(batch)
    assert (np.abs(rotation_deg).max() > 1) == turned
    assert (np.abs(octaves).max() > 0.1) == zoomed
    assert batch.patches.shape == (64, 2, 3, 32, 32)
    assert 0 <= batch.patches.min() < batch.patches.max() <= 1
    whole = np.isclose(rotation_deg, 90)[:, 0] & np.isclose(octaves, 0)[:, 0]
    for first, second in batch.patches[whole]:
        # Clockwise on screen: what was on top is on the right now.
        np.testing.assert_allclose(second, np.rot90(first, -1, (1, 2)), atol=0.02)


def test_training_and_validation_images_are_disjoint(photographs):
    source = PatchPoseSource(photographs, PAPER, network_config(PAPER))
    shards = [shard for one in source.sources for shard in one.shards]
    seen = {name for shard in shards if shard.split == "train" for name in shard.images}
    assert source.held_out
    assert not seen & set(source.held_out)


def test_pairs_shuffled_over_all_images_hold_no_image_out(photographs):
    config = dataclasses.replace(PAPER, split_by="pairs")
    source = PatchPoseSource(photographs, config, network_config(config))
    assert source.held_out == []
    assert source.images == len(list(photographs.iterdir()))


def test_the_seed_of_a_training_does_not_move_its_split(photographs):
    one, other = (
        PatchPoseSource(photographs, config, network_config(config))
        for config in (PAPER, dataclasses.replace(PAPER, seed=5))
    )
    assert one.held_out == other.held_out


def test_datasets_of_the_same_images_hold_the_same_out(photographs, tmp_path):
    generate(photographs, tmp_path / "A", PatchPoseConfig(kind="A"))
    generate(photographs, tmp_path / "B", PatchPoseConfig(kind="B", held_out=0.2))
    with pytest.raises(ValueError, match="B: expected the splits of the other datasets"):
        PatchPoseSource(tmp_path, PAPER, network_config(PAPER))


def test_a_colour_network_has_no_teacher():
    with pytest.raises(ValueError, match="teacher: expected none for resnet18, got 'polar'"):
        dataclasses.replace(VIEWS, teacher="polar")


def test_generated_datasets_give_the_pairs_made_on_the_fly(photographs, tmp_path):
    for kind in ("A", "B"):
        generate(photographs, tmp_path / kind, PatchPoseConfig(kind=kind))
    config = dataclasses.replace(PAPER, targets=("orientation",), **TINY)
    shape = network_config(config)
    stored, made = (PatchPoseSource(p, config, shape) for p in (tmp_path, photographs))
    first, second = (itertools.islice(s.stream((0,), 16), 3) for s in (stored, made))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.patches, other.patches)
    assert stored.held_out == made.held_out


def test_a_small_split_gives_whole_batches(photographs, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes((photographs / f"{number:02d}.png").read_bytes())
    generate(tmp_path, tmp_path / "A", PatchPoseConfig(kind="A", keypoints_per_image=1))
    config = dataclasses.replace(PAPER, targets=("scale",), **TINY)
    source = PatchPoseSource(tmp_path / "A", config, network_config(config))
    stream = source.stream((0,), 20)  # an epoch has 13 pairs
    batches = [next(stream) for _ in range(13)]
    assert {len(batch.patches) for batch in batches} == {20}
    octaves = np.concatenate([pair_changes(batch)[2][:, 0] for batch in batches])
    assert np.unique(np.round(octaves * 3), return_counts=True)[1].tolist() == [20] * 13


def test_skipped_images_are_told(photographs, tmp_path, capsys):
    for path in photographs.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "broken.png").write_bytes(b"")
    config = dataclasses.replace(PAPER, **TINY)
    PatchPoseSource(tmp_path, config, network_config(config))
    assert capsys.readouterr().err.strip() == f"{tmp_path}: 1 images skipped: unreadable"


def test_a_split_without_pairs_is_told_and_leaves_no_run(photographs, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        cv2.imwrite(str(images / f"{number}.png"), np.zeros((300, 300, 3), np.uint8))
    options = ["--network", "resnet18", "--keypoints", "16", "--threads", "1"]
    assert main(["train", str(images), "-o", str(tmp_path / "run"), *options]) == 2
    assert "were all skipped; give more images, or larger ones" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_shapes_that_differ_are_told_by_their_fields():
    one, other = ResNetConfig(targets=("scale",)), ResNetConfig(targets=("orientation",))
    assert describe_differences(one, other) == "targets scale and not orientation"
    finer = dataclasses.replace(one, bins=PoseBins(orientation=72), temperature=1.0)
    told = "bins.orientation 72 and not 36, temperature 1.0 and not 20.0"
    assert describe_differences(finer, one) == told
    assert (
        describe_differences(one, network_config(TrainConfig())) == "network resnet18 and not polar"
    )


def test_datasets_of_another_patch_size_are_refused(photographs, tmp_path):
    generate(photographs, tmp_path, PatchPoseConfig(patch_size=64, keypoints_per_image=1))
    with pytest.raises(ValueError, match="expected patches of 32 px, .* --patch-size 32"):
        PatchPoseSource(tmp_path, PAPER, network_config(PAPER))


def test_the_pair_in_one_file(pair, runs):
    assert pair.stat().st_size < 25e6
    estimator, fallback = PoseEstimator(pair), PoseEstimator(pair, engine="opencv")
    metadata = estimator.metadata
    assert metadata.color
    assert not metadata.takes_prior
    assert metadata.patch_shape == (3, 32, 32)
    state = load_checkpoint(runs / "scale" / "checkpoint.pt")
    assert metadata.scale_offset_octaves == pytest.approx(state["scale_offset_octaves"])
    patches = np.random.default_rng(0).random((5, 3, 32, 32), np.float32)
    one, other = estimator.histograms(patches), fallback.histograms(patches)
    np.testing.assert_allclose(one.scale, other.scale, atol=1e-5)
    np.testing.assert_allclose(one.orientation, other.orientation, atol=1e-5)
    with torch.no_grad():
        network = network_of(load_checkpoint(runs / "orientation" / "checkpoint.pt"))
        exact = network.eval()(torch.from_numpy(patches))[1].softmax(1)
    np.testing.assert_allclose(one.orientation, exact, atol=0.02)  # weights of eight bits
    assert metadata.training["recipe"]["targets"] == ["orientation"]
    assert metadata.training["scale"]["recipe"]["targets"] == ["scale"]


def test_the_pair_poses_keypoints(pair):
    image = data.astronaut()[..., ::-1].copy()
    keypoints = cv2.SIFT.create(50).detect(image)
    posed = PatchPoseAssigner(pair).assign(image, keypoints)
    assert posed
    assert all(k.size > 0 and 0 <= k.angle < 360 for k in posed)


def test_one_network_is_not_enough_and_two_of_a_kind_are_too_many(runs, tmp_path, capsys):
    out = tmp_path / "model.onnx"
    another = shutil.copytree(runs / "scale", tmp_path / "another")
    for sources in ([runs / "scale"], [runs / "scale", another]):
        with pytest.raises(ValueError, match="source: expected a network for the orientation and"):
            export_checkpoint(sources, out)
    assert not out.exists()
    assert main(["export", str(runs / "scale"), "-o", str(out)]) == 2
    message = capsys.readouterr().err
    assert "got one for the scale; train another with --target orientation" in message


def test_networks_that_differ_are_not_joined(runs, tmp_path):
    state = torch.load(runs / "scale" / "checkpoint.pt", weights_only=True)
    state["network_config"]["temperature"] = 7.0
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="alike but for what they give, got temperature 7.0 and"):
        export_checkpoint([runs / "orientation", tmp_path / "other.pt"], tmp_path / "model.onnx")


def test_rounded_weights_are_stored_without_loss():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(64, 32, 3, bias=False), torch.nn.Linear(80, 7))
    small = network[1].weight.clone()
    round_weights(network)
    torch.testing.assert_close(network[1].weight, small, rtol=0, atol=0)
    # A factor per output channel, as folding a normalisation into a convolution brings.
    weight = (network[0].weight * torch.rand(32, 1, 1, 1)).detach().numpy()
    tensor = onnx.numpy_helper.from_array(weight, "w")
    output = onnx.helper.make_tensor_value_info("w2", onnx.TensorProto.FLOAT, weight.shape)
    node = onnx.helper.make_node("Identity", ["w"], ["w2"])
    graph = onnx.helper.make_graph([node], "g", [], [output], [tensor])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    store_int8(model)
    onnx.checker.check_model(model)
    assert model.ByteSize() < weight.nbytes / 3
    found = ReferenceEvaluator(model).run(None, {})[0]
    np.testing.assert_allclose(found, weight, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "bins"),
    [("polar", (9, 7)), ("polar", (18, 9)), ("polar", (72, 17)), ("resnet18", (72, 7))],
)
def test_other_numbers_of_bins(texture_folder, tmp_path, name, bins):
    orientation, scale = bins
    config = dataclasses.replace(
        recipe(name), source="views", orientation_bins=orientation, scale_bins=scale, **TINY
    )
    shape = network_config(config)
    assert shape.bins.scale_centers_octaves[[0, -1]].tolist() == [-2, 2]
    Trainer(texture_folder, tmp_path, config).train()
    estimator = PoseEstimator(export_checkpoint(tmp_path, tmp_path / "model.onnx"))
    found = estimator.histograms(np.zeros((1, *estimator.metadata.patch_shape), np.float32))
    assert (found.orientation.shape[1], found.scale.shape[1]) == bins


def test_pairs_refuse_the_options_of_views(photographs):
    config = dataclasses.replace(PAPER, synthesis=SynthesisConfig(clean=0.5))
    with pytest.raises(ValueError, match="clean: expected it left out with PatchPose pairs"):
        PatchPoseSource(photographs, config, network_config(config))
    config = dataclasses.replace(PAPER, synthesis=SynthesisConfig(magnification=20.0))
    PatchPoseSource(photographs, config, network_config(config))  # it is the model's


def test_polar_networks_refuse_what_they_cannot_learn():
    with pytest.raises(ValueError, match="source: expected views for polar"):
        TrainConfig(source="patchpose")
    with pytest.raises(ValueError, match="targets: expected both for polar"):
        TrainConfig(targets=("scale",))
    with pytest.raises(
        ValueError, match="expected a whole number of rows per octave with stride 2"
    ):
        network_config(TrainConfig(scale_bins=10))
