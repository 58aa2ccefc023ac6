"""Models whose answers are known, and photographs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from skimage import data

from cv_patchpose.histograms import PoseBins
from cv_patchpose.metadata import METADATA_KEY, ModelMetadata
from cv_patchpose.patches import PolarGrid

EDGE_RING = 12  # the first ring whose radial contrast counts in the toy model


def toy_metadata(**changes) -> ModelMetadata:
    entries = {
        "name": "toy",
        "grid": PolarGrid(),
        "bins": PoseBins(),
        "standardize": False,
        "magnification": 12.0,
        "point_window_px": 120.0,
        "scale_offset_octaves": 0.0,
        "scale_prior_octaves": 0.2,
        "second_mode_ratio": 0.3,
        "training": {"data": "none"},
    }
    return ModelMetadata(**(entries | changes))


def save_graph(path: Path, nodes, initializers, metadata: str) -> Path:
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("patches", TensorProto.FLOAT, ["n", 1, 40, 80])],
        [
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, ["n", 13]),
            helper.make_tensor_value_info("orientation", TensorProto.FLOAT, ["n", 36]),
        ],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.producer_name = "tests"
    helper.set_model_props(model, {METADATA_KEY: metadata, "other": "ignored"})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def write_toy_model(path: Path, *, contrast: float = 30.0, **changes) -> Path:
    """Write a model that points at the brightest direction and at the strongest bright-dark edge.

    Orientation bin i is the softmax of the mean brightness of the columns around direction
    10 i degrees. Scale bin i is that of how much brighter ring 11 + 2 i is than ring 13 + 2 i: a
    disc whose edge lies on ring 24 has scale 1. With contrast 0 both histograms are flat.
    """
    smoothing = np.array([0.25, 0.5, 0.25], np.float32) * contrast
    initializers = {
        "first_column": np.array([3], np.int64),
        "end_column": np.array([76], np.int64),
        "column_axis": np.array([3], np.int64),
        "along_columns": smoothing.reshape(1, 1, 1, 3),
        "inner_column": np.array([4], np.int64),
        "first_ring": np.array([EDGE_RING - 1], np.int64),
        "end_ring": np.array([EDGE_RING + 26], np.int64),
        "ring_axis": np.array([2], np.int64),
        "along_rings": np.array([1, 0, -1], np.float32).reshape(1, 1, 3, 1) * contrast,
        "orientation_shape": np.array([-1, 36], np.int64),
        "scale_shape": np.array([-1, 13], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Slice", ["patches", "first_column", "end_column", "column_axis"], ["turned"]),
        node("ReduceMean", ["turned"], ["directions"], axes=[2], keepdims=1),
        node(
            "Conv",
            ["directions", "along_columns"],
            ["pointing"],
            kernel_shape=[1, 3],
            strides=[1, 2],
        ),
        node("Reshape", ["pointing", "orientation_shape"], ["orientation_logits"]),
        node("Softmax", ["orientation_logits"], ["orientation"], axis=1),
        node("Slice", ["patches", "inner_column", "end_column", "column_axis"], ["inner"]),
        node("Slice", ["inner", "first_ring", "end_ring", "ring_axis"], ["cut"]),
        node("ReduceMean", ["cut"], ["rings"], axes=[3], keepdims=1),
        node("Conv", ["rings", "along_rings"], ["edges"], kernel_shape=[3, 1], strides=[2, 1]),
        node("Reshape", ["edges", "scale_shape"], ["scale_logits"]),
        node("Softmax", ["scale_logits"], ["scale"], axis=1),
    ]
    return save_graph(path, nodes, initializers, toy_metadata(**changes).to_json())


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("models") / "toy.onnx")


@pytest.fixture(scope="session")
def flat_model(tmp_path_factory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("models") / "flat.onnx", contrast=0.0)


@pytest.fixture
def write_model(tmp_path):
    """Return a function that writes a toy model with changed metadata."""

    def write(contrast: float = 30.0, **changes) -> Path:
        return write_toy_model(tmp_path / "changed.onnx", contrast=contrast, **changes)

    return write


@pytest.fixture
def replace_metadata(toy_model, tmp_path):
    """Return a function that writes the toy model with another metadata text, None for none."""

    def write(text: str | None) -> Path:
        model = onnx.load(toy_model)
        del model.metadata_props[:]
        helper.set_model_props(model, {"other": "x"} | ({METADATA_KEY: text} if text else {}))
        path = tmp_path / "replaced.onnx"
        onnx.save(model, path)
        return path

    return write


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    """Return a (512, 512, 3) BGR photograph; tests that write to it take a copy."""
    image = cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2BGR)
    image.flags.writeable = False
    return image


@pytest.fixture(scope="session")
def gray_photographs() -> list[np.ndarray]:
    return [data.camera(), cv2.cvtColor(data.stereo_motorcycle()[0], cv2.COLOR_RGB2GRAY)]


@pytest.fixture(scope="session")
def texture_folder(tmp_path_factory) -> Path:
    """Four pictures of smooth noise, to train on."""
    folder = tmp_path_factory.mktemp("textures")
    for seed in range(4):
        noise = np.random.default_rng(seed).normal(size=(300, 300)).astype(np.float32)
        smooth = sum(cv2.GaussianBlur(noise, (0, 0), s) * s for s in (2, 5, 12))
        image = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
        cv2.imwrite(str(folder / f"{seed}.png"), image)
    return folder
