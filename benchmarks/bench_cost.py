"""Time the stages of assign, the whole of it, and peers of its sampler and its network.

Prints one JSON line; --output writes it to a file, from which cost_tables.py makes the tables of
docs/performance.md. By default a few minutes: 256 and 2,048 keypoints on 0.6 megapixels; --full
adds 20,000 keypoints and 12 megapixels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import torch
from cost_calls import make_scene, network_calls, sampling_calls, stage_calls
from timing import simd_in_use, time_interleaved

from cv_patchpose.evaluation.report import describe_environment
from cv_patchpose.files import check_output, write_file

IMAGES = {"0.6 megapixels": (850, 680), "12 megapixels": (4000, 3000)}
COUNTS = (256, 2048, 20000)
MOST_FOR_SLOW_PEERS = 2048  # kornia's extractor and grid_sample need gigabytes above


def measure(images, counts, threads: int, repeats: int) -> list[dict]:
    """Time all groups with a fixed number of threads."""
    cv2.setNumThreads(threads)
    torch.set_num_threads(threads)
    times = time_interleaved(network_calls(threads), repeats)
    rows = [{"group": "network", "threads": threads, "times": times}]
    for name in images:
        for count in counts:
            scene = make_scene(*IMAGES[name], count)
            slow = count <= MOST_FOR_SLOW_PEERS
            groups = {
                "sampling": sampling_calls(scene, slow_peers=slow),
                "stages": stage_calls(scene),
            }
            for group, calls in groups.items():
                row = {"group": group, "threads": threads, "image": name, "keypoints": count}
                rows.append({**row, "times": time_interleaved(calls, repeats)})
    return rows


# NumPy's threads look for work for some 30 ms after its import; that is not our time.
START = """import time; start = time.process_time(); import numpy, cv2
done = time.process_time(); time.sleep(0.2)
begin = time.process_time(); import cv_patchpose; imported = time.process_time()
image = numpy.eye(64, dtype="uint8")
cv_patchpose.PatchPoseAssigner().assign(image, [cv2.KeyPoint(30.0, 30.0, 6.0)])
print(1e3 * (done - start), 1e3 * (imported - begin), 1e3 * (time.process_time() - imported))"""


def measure_start(repeats: int) -> dict[str, float]:
    """Measure CPU time, ms, in fresh interpreters: imports, and the first assign."""
    command = [sys.executable, "-P", "-c", START]
    # With compiled files in place, as after an installation: the first run may write them.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    runs = [
        subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout.split()
        for _ in range(1 + repeats)
    ]
    peers, imported, first = np.median(np.array(runs[1:], float), axis=0).tolist()
    return {
        "numpy_cv2_ms": round(peers, 1),
        "import_ms": round(imported, 1),
        "first_assign_ms": round(first, 1),
    }


def main() -> None:
    """Time what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="20,000 keypoints, 12 megapixels too")
    parser.add_argument("--keypoints", type=int, nargs="+", help="these numbers of keypoints")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.output:
        check_output(options.output, (".json",))
    images = list(IMAGES) if options.full else list(IMAGES)[:1]
    counts = options.keypoints or (COUNTS if options.full else COUNTS[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter that writes plain graphs
        rows = [
            row
            for threads in options.threads
            for row in measure(images, counts, threads, options.repeats)
        ]
    report = {
        "benchmark": "cost",
        "repeats": options.repeats,
        "simd": simd_in_use(),
        "rows": rows,
        "start": measure_start(options.repeats),
        "environment": describe_environment(),
    }
    text = json.dumps(report)
    print(text)
    if options.output:
        write_file(options.output, (text + "\n").encode())


if __name__ == "__main__":
    main()
