"""Time the sampler against a loop over cv2.warpAffine; print one JSON line."""

from __future__ import annotations

import argparse
import json

import cv2
import numpy as np
from timing import simd_in_use, time_interleaved

from cv_patchpose.evaluation.report import describe_environment
from cv_patchpose.patches import PolarGrid, SquareGrid, build_pyramid, sample_polar, sample_square

HEIGHT, WIDTH = 680, 850


def warp_affine_loop(image, xy_px, window_px, angle_deg, size):
    """Square patches one by one; the image is not anti-aliased."""
    result = np.empty((len(xy_px), size, size), np.uint8)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    middle = (size - 1) / 2
    for patch, (x, y), window, angle in zip(result, xy_px, window_px, angle_deg, strict=True):
        a, b = window / size * np.cos(np.radians(angle)), window / size * np.sin(np.radians(angle))
        warp = np.array([[a, -b, x - (a - b) * middle], [b, a, y - (b + a) * middle]])
        cv2.warpAffine(image, warp, (size, size), patch, flags, cv2.BORDER_REPLICATE)
    return result


def main() -> None:
    """Time each sampler on a synthetic image of 850 x 680 pixels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keypoints", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=cv2.getNumThreads())
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    cv2.setNumThreads(options.threads)

    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 1)
    xy = random.uniform(0, 1, (options.keypoints, 2)) * [WIDTH, HEIGHT]
    window = np.exp(random.uniform(np.log(24), np.log(240), options.keypoints))
    angle = random.uniform(0, 360, options.keypoints)
    pyramid, polar, square = build_pyramid(image), PolarGrid(), SquareGrid()
    keypoints = (xy, window, angle)
    calls = {
        "build_pyramid": lambda: build_pyramid(image),
        "sample_polar": lambda: sample_polar(pyramid, *keypoints, polar),
        "sample_polar standardized": lambda: sample_polar(
            pyramid, *keypoints, polar, standardize=True
        ),
        "sample_square": lambda: sample_square(pyramid, *keypoints, square),
        "cv2.warpAffine loop": lambda: warp_affine_loop(image, *keypoints, square.size),
    }
    report = {
        "benchmark": "sampling",
        "keypoints": options.keypoints,
        "simd": simd_in_use(),
        "times": time_interleaved(calls, options.repeats),
        "environment": describe_environment(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
