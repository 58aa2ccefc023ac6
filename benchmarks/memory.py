"""Measure the memory of assign beside the image and the keypoints given; print one JSON line.

Resident memory at its peak, as Linux counts it, network and keypoints returned included.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

from cv_patchpose import PatchPoseAssigner
from cv_patchpose.evaluation.report import describe_environment
from cv_patchpose.patches import build_pyramid

PROCESS = Path("/proc/self")


def resident_mb(field: str) -> float:
    """Return VmRSS, what is resident now, or VmHWM, the most since the last reset."""
    lines = (PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def main() -> None:
    """Measure one call, after a first one that opens what stays open."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keypoints", type=int, default=1_000_000)
    parser.add_argument("--image", type=int, nargs=2, default=(850, 680), metavar=("W", "H"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    cv2.setNumThreads(options.threads)
    width, height = options.image
    image = cv2.randu(np.empty((height, width), np.uint8), 0, 256)
    random, most = np.random.default_rng(0), (width - 1, height - 1, 12)
    rows = random.uniform((0, 0, 2), most, (options.keypoints, 3)).tolist()
    keypoints = [cv2.KeyPoint(*row) for row in rows]
    del rows
    assigner = PatchPoseAssigner()
    assigner.assign(np.eye(64, dtype=np.uint8), [cv2.KeyPoint(30.0, 30.0, 6.0)])
    (PROCESS / "clear_refs").write_text("5")  # resets the peak
    before = resident_mb("VmRSS")
    assigned = assigner.assign(image, keypoints)
    peak = resident_mb("VmHWM") - before
    report = {
        "benchmark": "memory",
        "image": options.image,
        "keypoints": len(assigned),
        "peak_mb": round(peak, 1),
        "pyramid_mb": round(sum(x.nbytes for x in build_pyramid(image).levels[1:]) / 1e6, 1),
        "environment": describe_environment(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
