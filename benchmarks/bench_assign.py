"""Time the whole of assign against the SIFT detection before it; print one JSON line.

Twice: in a process as it is, and with a warm heap, in a process whose allocator keeps memory that
is freed. glibc gives large buffers back to the kernel, so that SIFT.detect pays for thousands of
pages that it touches anew at every call (minor_faults); how many depends on what the process
allocated before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import cv2
from skimage import data
from timing import time_interleaved

from cv_patchpose import PatchPoseAssigner
from cv_patchpose.detectors import detect
from cv_patchpose.evaluation.report import describe_environment

SIZE = (850, 680)  # pixels, width and height
POINT_SIZE = 12.0  # of points without a scale
WARM_HEAP = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "2000000000"}


def measure(options: argparse.Namespace) -> dict:
    """Time all calls in this process."""
    cv2.setNumThreads(options.threads)
    photograph = cv2.cvtColor(data.stereo_motorcycle()[0], cv2.COLOR_RGB2BGR)
    image = cv2.resize(photograph, SIZE, interpolation=cv2.INTER_AREA)
    sift = cv2.SIFT.create()
    # One keypoint per point: assign leaves the further orientations of a point out.
    every = list({(k.pt, k.size): k for k in detect(image, "sift", 1_000_000)}.values())
    keypoints = every[: options.keypoints]
    points = [cv2.KeyPoint(*k.pt, POINT_SIZE) for k in keypoints]
    one = PatchPoseAssigner(options.model)
    two = PatchPoseAssigner(options.model, top_k=2)
    calls = {
        "cv2.SIFT.detect": lambda: sift.detect(image),
        "cv2.SIFT.detectAndCompute": lambda: sift.detectAndCompute(image, None),
        "assign": lambda: one.assign(image, keypoints),
        "assign, top_k=2": lambda: two.assign(image, keypoints),
        "assign, points of one size": lambda: one.assign(image, points),
        "assign, all of SIFT's keypoints": lambda: one.assign(image, every),
    }
    return {
        "benchmark": "assign",
        "keypoints": len(keypoints),
        "all_keypoints": len(every),
        "image": SIZE,
        "model": one.estimator.metadata.name,
        "engine": one.estimator.engine,
        "providers": one.estimator.providers,
        "times": time_interleaved(calls, options.repeats),
        "environment": describe_environment(),
    }


def measure_warm() -> dict:
    """Return the times of a process with these options and a warm heap."""
    command = [sys.executable, __file__, *sys.argv[1:], "--once"]
    environment = {**os.environ, **WARM_HEAP}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(done.stdout)["times"]


def main() -> None:
    """Time on a photograph of 850 x 680 pixels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keypoints", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=cv2.getNumThreads())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--model", default="polar")
    parser.add_argument("--once", action="store_true", help="in this process only")
    options = parser.parse_args()
    report = measure(options)
    if not options.once:
        report["times_warm_heap"] = measure_warm()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
