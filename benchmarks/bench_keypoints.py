"""Time the conversion of keypoints to arrays and back, beside other ways; print one JSON line."""

from __future__ import annotations

import argparse
import json
from operator import attrgetter

import cv2
import numpy as np
from timing import time_interleaved

from cv_patchpose.evaluation.report import describe_environment
from cv_patchpose.keypoints import arrays_from_keypoints, keypoints_from_arrays

FIELDS = ("size", "angle", "response", "octave", "class_id")


def make_keypoints(count: int) -> list[cv2.KeyPoint]:
    random = np.random.default_rng(0)
    fields = random.uniform(1, 500, (count, 5)).astype(np.float32).tolist()
    return [cv2.KeyPoint(*row, 3, -1) for row in fields]


def read_in_a_loop(keypoints: list[cv2.KeyPoint]) -> list[np.ndarray]:
    """Field by field, by comprehensions."""
    xy = np.array([k.pt for k in keypoints], np.float32)
    return [xy, *(np.array([getattr(k, name) for k in keypoints]) for name in FIELDS)]


def read_at_once(keypoints: list[cv2.KeyPoint]) -> list[np.ndarray]:
    """All fields of a keypoint as one tuple."""
    return [np.array(c) for c in zip(*map(attrgetter("pt", *FIELDS), keypoints), strict=True)]


def main() -> None:
    """Time each way, one thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keypoints", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    keypoints = make_keypoints(options.keypoints)
    arrays = arrays_from_keypoints(keypoints)
    columns = [*arrays.xy_px.T, *(value for name, value in vars(arrays).items() if name != "xy_px")]
    calls = {
        "in, ours": lambda: arrays_from_keypoints(keypoints),
        "in, comprehensions": lambda: read_in_a_loop(keypoints),
        "in, tuples of all fields": lambda: read_at_once(keypoints),
        "in, cv2.KeyPoint.convert: centres only": lambda: cv2.KeyPoint.convert(keypoints),
        "out, ours": lambda: keypoints_from_arrays(arrays),
        "out, comprehension over rows": lambda: [
            cv2.KeyPoint(*row) for row in zip(*(c.tolist() for c in columns), strict=True)
        ],
        "out, comprehension over elements": lambda: [
            cv2.KeyPoint(float(x), float(y), float(s), float(a), float(r), int(o), int(c))
            for x, y, s, a, r, o, c in zip(*columns, strict=True)
        ],
        "out, cv2.KeyPoint.convert: centres only": lambda: cv2.KeyPoint.convert(arrays.xy_px),
    }
    report = {
        "benchmark": "keypoints",
        "keypoints": options.keypoints,
        "times": time_interleaved(calls, options.repeats),
        "environment": describe_environment(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
