"""Trained checkpoints as ONNX models that carry everything the run time needs."""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from cv_patchpose import __version__
from cv_patchpose.errors import ModelError
from cv_patchpose.estimator import PoseEstimator
from cv_patchpose.grids import PolarGrid
from cv_patchpose.metadata import METADATA_KEY, ModelMetadata
from cv_patchpose.training.calibration import reference_patches
from cv_patchpose.training.checkpoint import (
    CHECKPOINT_NAME,
    average_network,
    load_checkpoint,
    network_of,
    shape_of,
)
from cv_patchpose.training.compression import round_weights, store_int8
from cv_patchpose.training.networks import (
    NetworkConfig,
    describe_differences,
    shape_to_entry,
)
from cv_patchpose.training.options import TARGETS
from cv_patchpose.training.photographs import Photographs, read_photographs
from cv_patchpose.training.polar import PolarNetConfig
from cv_patchpose.training.resnet import ResNetConfig, ResNetPose
from cv_patchpose.training.rings import EIGHT_BIT_PARTS, RingNet, RingNetConfig

TOLERANCE = 1e-4
QUANTIZED_TOLERANCE = 0.15  # sum of a histogram's differences, mean over patches
TRACED_BATCH = 2
CHECKED_BATCHES = (1, 3, 17)  # sizes never traced
OPSET = 17


class _Histograms(nn.Module):
    """A network followed by the softmax of both outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: Tensor, log_prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scale, orientation = self.network(patches, log_prior)
        return scale.softmax(1), orientation.softmax(1)


def export_checkpoint(
    source: Path | str | Sequence[Path | str],
    output: Path | str,
    *,
    name: str | None = None,
    magnification: float | None = None,
    scale_prior_octaves: float | None = 0.2,
    second_mode_ratio: float = 0.25,
    int8: bool = False,
    quantize_on: Path | str | None = None,
) -> Path:
    """Write a trained network as an ONNX model with metadata.

    The model is run by the run time's own engine at batch sizes that were not traced and compared
    with PyTorch; only a model that agrees is put in place.

    Args:
        source: A checkpoint or the folder of a training run. Or several: of resnet18 two, one of a
            network for the orientation and one of a network for the scale; of other networks runs
            that began with the same weights, which are averaged, as are their calibrations
            (`checkpoint.average_network`).
        output: ONNX file to write.
        name: Name in the metadata; the output's stem when None.
        magnification: Diameter of the support window over the keypoint's size; that of the
            training when None.
        scale_prior_octaves: Default prior on the scale of keypoints that have one, octaves.
        second_mode_ratio: Further poses are kept down to this share of the best one's score.
        int8: Round the weights to eight bits, which quarters the file; they are read as float32.
        quantize_on: Folder of photographs; where patches of them set the ranges, the larger
            convolutions of a ring network count in eight bits, which takes a quarter of its time.

    Returns:
        The output's path.

    Raises:
        ValueError: The source is no checkpoint, or lacks one of the two histograms; runs that do
            not go together, or one named twice; a magnification that is not positive; or eight
            bits are asked for of another network, or without photographs.
        ImportError: Eight bits are asked for without ONNX Runtime.
        ModelError: The exported model does not agree with PyTorch.
        OSError: The output cannot be written.
    """
    if magnification is not None and not 0.0 < magnification < math.inf:
        raise ValueError(f"magnification: expected a finite number above 0, got {magnification!r}")
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    _refuse_repeated(sources)
    states = [load_checkpoint(path) for path in sources]
    state = states[0]
    logits, shape = _complete_network(states)
    if quantize_on is not None:
        if not isinstance(shape, RingNetConfig):
            network_name = shape_to_entry(shape)["network"]
            raise ValueError(f"quantize_on: expected a network of rings, got {network_name}")
        _import_quantization()
    if int8:
        round_weights(logits)
    network = _Histograms(logits).eval()
    polar = isinstance(shape.grid, PolarGrid)
    target = Path(output)
    trained = state["train_config"]["synthesis"]["magnification"]
    if magnification is None:
        magnification = trained
    metadata = ModelMetadata(
        name=name or target.stem,
        grid=shape.grid,
        bins=shape.bins,
        color=not polar,
        standardize=polar,
        takes_prior=isinstance(shape, PolarNetConfig) and shape.aligned,
        magnification=magnification,
        scale_offset_octaves=_scale_offset(states) + math.log2(magnification / trained),
        scale_prior_octaves=scale_prior_octaves,
        second_mode_ratio=second_mode_ratio,
        training=_training_notes(states)
        | ({} if quantize_on is None else {"eight_bits": list(EIGHT_BIT_PARTS)}),
    )
    with _folder_beside(target) as folder:
        file = Path(folder) / target.name
        _write(network, metadata, file, int8=int8)
        _check_agreement(network, metadata, file)
        if quantize_on is not None:
            photographs = read_photographs(quantize_on, argument="quantize_on")
            _quantize(network, metadata, file, photographs)
        os.replace(file, target)
    return target


def _refuse_repeated(sources: Sequence[Path | str]) -> None:
    """Refuse a run named twice, which would count double in an average."""
    seen: set[Path] = set()
    for source in sources:
        folder = Path(source).resolve()
        if folder.name == CHECKPOINT_NAME:
            folder = folder.parent
        if folder in seen:
            raise ValueError(f"source: expected each run once, got {source} again")
        seen.add(folder)


def _complete_network(states: Sequence[dict[str, Any]]) -> tuple[nn.Module, NetworkConfig]:
    """Join the networks of checkpoints to one that gives both histograms."""
    shapes = [shape_of(state) for state in states]
    shape = shapes[0]
    if not isinstance(shape, ResNetConfig):
        network = average_network(states)
        return network.folded() if isinstance(network, RingNet) else network, shape
    networks = [network_of(state) for state in states]
    targets: list[str] = []
    joint = replace(shape, targets=TARGETS)
    for other in shapes:
        if isinstance(other, ResNetConfig):
            targets += other.targets
            other = replace(other, targets=TARGETS)
        if other != joint:
            raise ValueError(
                "source: expected two networks alike but for what they give, got "
                f"{describe_differences(other, joint)}"
            )
    if sorted(targets) != sorted(TARGETS):
        lacking = [target for target in TARGETS if target not in targets]
        raise ValueError(
            "source: expected a network for the orientation and one for the scale, got one for the "
            + " and one for the ".join(targets)
            + "".join(f"; train another with --target {target}" for target in lacking)
        )
    complete = ResNetPose(joint)
    for network in networks:
        complete.branches.update(network.branches)  # type: ignore[arg-type]
    return complete.eval(), joint


def _scale_offset(states: Sequence[dict[str, Any]]) -> float:
    """Average the calibrations of the networks that give the scale."""
    shapes = [shape_of(state) for state in states]
    return float(
        np.mean(
            [
                state["scale_offset_octaves"]
                for state, shape in zip(states, shapes, strict=True)
                if not isinstance(shape, ResNetConfig) or "scale" in shape.targets
            ]
        )
    )


def _folder_beside(target: Path) -> tempfile.TemporaryDirectory[str]:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"output: expected an existing folder, got {str(target.parent)!r}")
    try:
        return tempfile.TemporaryDirectory(dir=target.parent)
    except OSError as error:  # names a folder that nobody asked for
        raise OSError(error.errno, error.strerror, str(target)) from error


def _write(network: nn.Module, metadata: ModelMetadata, file: Path, *, int8: bool) -> None:
    patches = torch.zeros(TRACED_BATCH, *metadata.patch_shape)
    log_prior = torch.zeros(TRACED_BATCH, metadata.bins.scale)
    # A network that does not read the prior loses that input in the graph.
    inputs = ["patches", "log_prior"] if metadata.takes_prior else ["patches"]
    outputs = ["scale", "orientation"]
    with warnings.catch_warnings():
        # The TorchScript exporter is announced to go, but writes the plain graph cv2.dnn can run.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (patches, log_prior)[: len(inputs)],
            str(file),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={key: {0: "N"} for key in inputs + outputs},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(str(file))
    if int8:
        store_int8(model)
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    onnx.checker.check_model(model)
    onnx.save(model, str(file))


def _check_agreement(network: nn.Module, metadata: ModelMetadata, file: Path) -> None:
    estimator = PoseEstimator(file)
    random = np.random.default_rng(0)
    for batch in CHECKED_BATCHES:
        patches = random.standard_normal((batch, *metadata.patch_shape)).astype(np.float32)
        log_prior = -random.random((batch, metadata.bins.scale), np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(patches), torch.from_numpy(log_prior))
        found = estimator.histograms(patches, log_prior)
        for label, one, other in zip(
            ("scale", "orientation"), expected, (found.scale, found.orientation), strict=True
        ):
            error = float(np.abs(one.numpy() - other).max())
            if not error <= TOLERANCE:
                raise ModelError(
                    f"{file.name}: expected {label} histograms within {TOLERANCE} of PyTorch at "
                    f"batch size {batch}, got a difference of {error:.2g}"
                )


def _import_quantization() -> ModuleType:
    """Import what needs ONNX Runtime, which models in float32 can do without."""
    try:
        from cv_patchpose.training import quantization
    except ImportError as error:
        raise ImportError("eight bits need: pip install 'cv-patchpose[cpu]'") from error
    return quantization


def _quantize(
    network: nn.Module, metadata: ModelMetadata, file: Path, photographs: Photographs
) -> None:
    """Quantise a model by patches of photographs, and see whether it still tells the same."""
    assert isinstance(metadata.grid, PolarGrid)
    patches = reference_patches(metadata.grid, photographs, metadata.magnification)
    if not patches:
        raise ValueError("quantize_on: expected photographs with SIFT keypoints, got none")
    _import_quantization().quantize_convolutions(file, EIGHT_BIT_PARTS, patches)
    estimator = PoseEstimator(file)
    some = patches[0]
    with torch.no_grad():
        expected = network(torch.from_numpy(some))
    found = estimator.histograms(some)
    for label, one, other in zip(
        ("scale", "orientation"), expected, (found.scale, found.orientation), strict=True
    ):
        error = float(np.abs(one.numpy() - other).mean() * other.shape[1])
        if not error <= QUANTIZED_TOLERANCE:
            raise ModelError(
                f"{file.name}: expected {label} histograms in eight bits that move less than "
                f"{QUANTIZED_TOLERANCE} of their mass, got {error:.2g}"
            )


def _training_notes(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    state = states[0]
    foreign = ("grid", "bins", "network", "targets")
    notes = {
        "version": __version__,
        "commit": state.get("commit", ""),
        "keypoints": state["keypoints"],
        "minutes": round(state["minutes"], 1),
        "photographs": state["photographs"],
        "data": state.get("data", ""),
        "network": {k: v for k, v in state["network_config"].items() if k not in foreign},
        "recipe": _without_folders(state["train_config"]),
    }
    for number, other in enumerate(states[1:], 2):
        shape = shape_of(other)
        name = shape.targets[0] if isinstance(shape, ResNetConfig) else f"averaged_{number}"
        notes[name] = {k: v for k, v in _training_notes([other]).items() if v != notes[k]}
    return notes


def _without_folders(recipe: dict[str, Any]) -> dict[str, Any]:
    """Keep the names of files that a run began with, not where they lay."""
    names = {k: Path(recipe[k]).name for k in ("init", "teacher") if recipe.get(k)}
    return {**recipe, **names}
