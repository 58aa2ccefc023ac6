"""Time the whole of assign against the SIFT detection before it; print one JSON line."""

from __future__ import annotations

import argparse
import json

import cv2
from skimage import data
from timing import time_interleaved

from cv_patchpose import PatchPoseAssigner
from cv_patchpose.detectors import detect
from cv_patchpose.evaluation.report import describe_environment

SIZE = (850, 680)  # pixels, width and height
POINT_SIZE = 12.0  # of points without a scale


def main() -> None:
    """Time on a photograph of 850 x 680 pixels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keypoints", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=cv2.getNumThreads())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--model", default="polar")
    options = parser.parse_args()
    cv2.setNumThreads(options.threads)

    photograph = cv2.cvtColor(data.stereo_motorcycle()[0], cv2.COLOR_RGB2BGR)
    image = cv2.resize(photograph, SIZE, interpolation=cv2.INTER_AREA)
    sift = cv2.SIFT.create()
    # One keypoint per point: assign leaves the further orientations of a point out.
    places = {(k.pt, k.size): k for k in detect(image, "sift", 1_000_000)}
    keypoints = list(places.values())[: options.keypoints]
    points = [cv2.KeyPoint(*k.pt, POINT_SIZE) for k in keypoints]
    one = PatchPoseAssigner(options.model)
    two = PatchPoseAssigner(options.model, top_k=2)
    calls = {
        "cv2.SIFT.detect": lambda: sift.detect(image),
        "cv2.SIFT.detectAndCompute": lambda: sift.detectAndCompute(image, None),
        "assign": lambda: one.assign(image, keypoints),
        "assign, top_k=2": lambda: two.assign(image, keypoints),
        "assign, points of one size": lambda: one.assign(image, points),
    }
    report = {
        "benchmark": "assign",
        "keypoints": len(keypoints),
        "image": SIZE,
        "model": one.estimator.metadata.name,
        "engine": one.estimator.engine,
        "providers": one.estimator.providers,
        "times": time_interleaved(calls, options.repeats),
        "environment": describe_environment(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
