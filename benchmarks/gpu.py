"""Measure trained networks with PyTorch on a GPU: patches per second, copies to and fro included.

Give folders of training runs, or checkpoints. PyTorch stands in for ONNX Runtime here: it needs
nothing more than training did.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from cv_patchpose.evaluation.report import describe_environment
from cv_patchpose.files import write_file
from cv_patchpose.training.checkpoint import CHECKPOINT_NAME, load_checkpoint, network_of, shape_of

REPEATS = 9


def measure(network: torch.nn.Module, patches: torch.Tensor, prior: torch.Tensor, copies: bool):
    """Time one batch, seconds: median and interquartile range."""
    given = (patches, prior) if copies else (patches.cuda(), prior.cuda())
    times = []
    for _ in range(REPEATS + 3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        with torch.inference_mode():
            found = network(*(tensor.to("cuda", non_blocking=True) for tensor in given))
            if copies:
                found = [histogram.cpu() for histogram in found if histogram is not None]
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    quartiles = statistics.quantiles(times[3:], n=4)
    return quartiles[1], quartiles[2] - quartiles[0]


def main() -> None:
    """Measure every network at every batch size and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batches", type=int, nargs="*", default=[256, 2048, 16384])
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    rows = []
    for run in options.runs:
        state = load_checkpoint(run / CHECKPOINT_NAME if run.is_dir() else run)
        network, shape = network_of(state).eval().cuda(), shape_of(state)
        grid = shape.grid
        size = (
            (1, grid.rows, grid.columns + 2 * grid.halo)
            if hasattr(grid, "rows")
            else (3, grid.size, grid.size)
        )
        for batch in options.batches:
            patches = torch.randn(batch, *size).pin_memory()
            prior = torch.zeros(batch, shape.bins.scale).pin_memory()
            for copies in (False, True):
                median, spread = measure(network, patches, prior, copies)
                rows.append(
                    {
                        "network": run.name,
                        "batch": batch,
                        "copies": copies,
                        "ms": 1000 * median,
                        "iqr_ms": 1000 * spread,
                        "patches_per_second": batch / median,
                    }
                )
                print(rows[-1], flush=True)
    content = {
        "benchmark": "gpu",
        "device": torch.cuda.get_device_name(),
        "rows": rows,
        "environment": describe_environment(),
    }
    write_file(options.output, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
