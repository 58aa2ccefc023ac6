"""Weights of eight bits in model files, which engines read as float32."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

SMALLEST = 4096  # weights; smaller tensors stay as they are
_LARGEST_CODE = 127


@torch.no_grad()
def round_weights(network: nn.Module) -> None:
    """Round large weights, in place, to 255 levels per output channel."""
    for weight in network.parameters():
        if weight.dim() >= 2 and weight.numel() >= SMALLEST:
            codes, steps = _quantize(weight.cpu().numpy())
            weight.copy_(torch.from_numpy(codes * steps))


def store_int8(model: onnx.ModelProto) -> None:
    """Replace large float32 initialisers, in place, by int8 codes and a step per output channel.

    Two ordinary nodes, a cast and a product, give the weights back; engines compute them once
    when they load the model. Nothing is lost of weights that `round_weights` has rounded, even
    after a factor per output channel, as folding a normalisation brings.
    """
    graph = model.graph
    kept, nodes = [], []
    for tensor in graph.initializer:
        weight = numpy_helper.to_array(tensor)
        if weight.ndim < 2 or weight.size < SMALLEST or weight.dtype != np.float32:
            kept.append(tensor)
            continue
        name = tensor.name
        codes, steps = _quantize(weight)
        kept += [
            numpy_helper.from_array(codes.astype(np.int8), f"{name}_codes"),
            numpy_helper.from_array(steps, f"{name}_steps"),
        ]
        nodes += [
            onnx.helper.make_node(
                "Cast", [f"{name}_codes"], [f"{name}_float"], to=onnx.TensorProto.FLOAT
            ),
            onnx.helper.make_node("Mul", [f"{name}_float", f"{name}_steps"], [name]),
        ]
    nodes += graph.node
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def _quantize(weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return whole codes from -127 to 127 and the (O, 1, ...) steps they count."""
    axes = tuple(range(1, weight.ndim))
    largest = np.abs(weight).max(axis=axes, keepdims=True)
    steps = (np.where(largest > 0, largest, 1) / _LARGEST_CODE).astype(np.float32)
    return np.rint(weight / steps).astype(np.float32), steps
