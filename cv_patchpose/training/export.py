"""Trained checkpoints as ONNX models that carry everything the run time needs."""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from cv_patchpose import __version__
from cv_patchpose.errors import ModelError
from cv_patchpose.estimator import PoseEstimator
from cv_patchpose.metadata import METADATA_KEY, ModelMetadata
from cv_patchpose.training.checkpoint import CHECKPOINT_NAME, load_checkpoint, network_of

TOLERANCE = 1e-4
TRACED_BATCH = 2
CHECKED_BATCHES = (1, 3, 17)  # sizes never traced
OPSET = 17


class _Histograms(nn.Module):
    """A network followed by the softmax of both outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor]:
        scale, orientation = self.network(patches, log_prior)
        return scale.softmax(1), orientation.softmax(1)


def export_checkpoint(
    source: Path | str,
    output: Path | str,
    *,
    name: str | None = None,
    magnification: float | None = None,
    scale_prior_octaves: float | None = 0.2,
    second_mode_ratio: float = 0.3,
) -> Path:
    """Write a trained network as an ONNX model with metadata.

    The model is run by the run time's own engine at batch sizes that were not traced and compared
    with PyTorch; only a model that agrees is put in place.

    Args:
        source: A checkpoint or the folder of a training run.
        output: ONNX file to write.
        name: Name in the metadata; the output's stem when None.
        magnification: Diameter of the support window over the keypoint's size; that of the
            training when None.
        scale_prior_octaves: Default prior on the scale of keypoints that have one, octaves.
        second_mode_ratio: Further poses are kept down to this share of the best one's score.

    Returns:
        The output's path.

    Raises:
        ValueError: The source is no checkpoint.
        ModelError: The exported model does not agree with PyTorch.
        OSError: The output cannot be written.
    """
    checkpoint = Path(source)
    if checkpoint.is_dir():
        checkpoint = checkpoint / CHECKPOINT_NAME
    state = load_checkpoint(checkpoint)
    logits = network_of(state)
    network = _Histograms(logits).eval()
    target = Path(output)
    trained = state["train_config"]["synthesis"]["magnification"]
    magnification = magnification or trained
    metadata = ModelMetadata(
        name=name or target.stem,
        grid=logits.config.grid,
        bins=logits.config.bins,
        standardize=True,
        takes_prior=True,
        magnification=magnification,
        scale_offset_octaves=state["scale_offset_octaves"] + math.log2(magnification / trained),
        scale_prior_octaves=scale_prior_octaves,
        second_mode_ratio=second_mode_ratio,
        training=_training_notes(state),
    )
    with tempfile.TemporaryDirectory(dir=_existing_folder(target)) as folder:
        file = Path(folder) / target.name
        _write(network, metadata, file)
        _check_agreement(network, metadata, file)
        os.replace(file, target)
    return target


def _existing_folder(target: Path) -> Path:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"output: expected an existing folder, got {str(target.parent)!r}")
    return target.parent


def _write(network: nn.Module, metadata: ModelMetadata, file: Path) -> None:
    patches = torch.zeros(TRACED_BATCH, *metadata.patch_shape)
    log_prior = torch.zeros(TRACED_BATCH, metadata.bins.scale)
    inputs, outputs = ["patches", "log_prior"], ["scale", "orientation"]
    with warnings.catch_warnings():
        # The TorchScript exporter is announced to go, but writes the plain graph cv2.dnn can run.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (patches, log_prior),
            str(file),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={key: {0: "N"} for key in inputs + outputs},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(str(file))
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


def _training_notes(state: dict[str, Any]) -> dict[str, Any]:
    config = dict(state["train_config"])
    network = {k: v for k, v in state["network_config"].items() if k not in ("grid", "bins")}
    return {
        "version": __version__,
        "commit": state.get("commit", ""),
        "keypoints": state["keypoints"],
        "minutes": round(state["minutes"], 1),
        "photographs": state["photographs"],
        "data": state.get("data", ""),
        "network": network,
        "recipe": config,
    }
