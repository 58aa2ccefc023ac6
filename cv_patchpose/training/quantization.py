"""Convolutions of model files in eight-bit arithmetic."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_static,
)

_BATCH = 64
_MOST_PATCHES = 1024  # more do not move the ranges


class _Patches(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
    """Hands a model's inputs to the calibration, in batches of one size, which it asks for."""

    def __init__(self, patches: NDArray[np.float32]) -> None:
        size = min(_BATCH, len(patches))
        count = len(patches) // size
        self._batches = iter(patches[: count * size].reshape(count, size, *patches.shape[1:]))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"patches": batch}


def quantize_convolutions(
    file: Path, parts: Sequence[str], patches: Sequence[NDArray[np.float32]]
) -> None:
    """Let some convolutions of a model count in eight bits, with their rectifiers and means.

    Weights have seven bits, one step per output channel: then no processor's sums overflow, and
    all give the same. Ranges of values between layers are those of the patches but for the last
    hundred-thousandth. Other layers stay as they are.

    Args:
        file: ONNX file of a network that reads "patches"; rewritten.
        parts: names of the network's modules.
        patches: arrays of (N, C, H, W) as the network will meet them.

    Source: ONNX Runtime's static quantisation.
    """
    model = onnx.load(str(file))
    graph = model.graph.node
    convolutions = [
        node
        for node in graph
        if node.op_type == "Conv" and any(f"/{part}" in node.name for part in parts)
    ]
    rectifiers = _behind(convolutions, "Relu", graph)
    counting = [*convolutions, *rectifiers, *_behind(rectifiers, "GlobalAveragePool", graph)]
    every = np.concatenate(patches)
    some = np.linspace(0, len(every) - 1, min(len(every), _MOST_PATCHES)).astype(int)
    with _quiet():
        quantize_static(
            str(file),
            str(file),
            _Patches(every[some]),
            nodes_to_quantize=[node.name for node in counting],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            calibrate_method=CalibrationMethod.Percentile,
        )
    quantized = onnx.load(str(file))
    onnx.helper.set_model_props(quantized, {p.key: p.value for p in model.metadata_props})
    onnx.save(quantized, str(file))


def _behind(
    nodes: Sequence[onnx.NodeProto], op_type: str, graph: Sequence[onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """Find the nodes of a type that read what some others made."""
    made = {node.output[0] for node in nodes}
    return [node for node in graph if node.op_type == op_type and node.input[0] in made]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's advice and prints from the user, who has no use for them."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
