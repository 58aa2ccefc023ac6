"""Time the making and the reading of PatchPose pairs; print one JSON line."""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from pathlib import Path

import cv2
from skimage import data
from timing import time_interleaved

from cv_patchpose.evaluation.report import describe_environment
from cv_patchpose.patchpose.generator import generate
from cv_patchpose.patchpose.options import KINDS, PATCH_SIZES, PatchPoseConfig
from cv_patchpose.patchpose.sources import PatchPoseDataset, PatchPoseStream

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
MILLION = 1_000_000


def write_photographs(folder: Path) -> None:
    """Write four photographs at SPair-71k's size, 500 pixels, which is larger than both margins."""
    for name in PHOTOGRAPHS:
        image = cv2.cvtColor(getattr(data, name)(), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / f"{name}.jpg"), cv2.resize(image, (500, 400)))


def read_all(source) -> None:
    for split in ("train", "val", "test"):
        for _ in source.pairs(split, seed=0):
            pass


def measure(photographs: Path, folder: Path, config: PatchPoseConfig, options) -> dict:
    """Time one kind and patch size: a dataset written, read back, and its pairs on the fly."""
    written = folder / f"{config.kind}{config.patch_size}"
    total = generate(photographs, written, config).pairs.total()
    stored, stream = PatchPoseDataset(written), PatchPoseStream(photographs, config)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        places = (Path(scratch) / str(number) for number in range(MILLION))
        calls = {
            "generate": lambda: generate(photographs, next(places), config, jobs=options.jobs),
            "read": lambda: read_all(stored),
            "on the fly": lambda: read_all(stream),
        }
        times = time_interleaved(calls, options.repeats)
    size = sum(path.stat().st_size for path in written.iterdir())
    return {
        "pairs": total,
        "bytes_per_pair": size / total,
        "seconds_per_million_pairs": {
            name: time["median_ms"] / 1000 * MILLION / total for name, time in times.items()
        },
        "times": times,
    }


def main() -> None:
    """Time four photographs, both kinds and both patch sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of photographs to take instead")
    parser.add_argument("--jobs", type=int, default=1, help="processes that generate (1)")
    parser.add_argument("--threads", type=int, default=1, help="of OpenCV and the sampler (1)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    cv2.setNumThreads(options.threads)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs = options.images or folder / "photographs"
        if options.images is None:
            photographs.mkdir()
            write_photographs(photographs)
        results = {
            f"{kind}, {size} px": measure(
                photographs, folder, PatchPoseConfig(kind=kind, patch_size=size), options
            )
            for kind in KINDS
            for size in PATCH_SIZES
        }
    report = {
        "benchmark": "generate",
        "jobs": options.jobs,
        "results": results,
        # Of this process, which with more than one job is not the one that generates.
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "environment": describe_environment(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
