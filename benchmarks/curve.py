"""Draw accuracy on real pairs against cost, for models of several sizes, into docs.

MODELS are names or ONNX files; PAIRS holds scenes in HPatches' layout. Time is that of sampling and
network, one thread, for 2,048 keypoints, in turn with cv2.SIFT.detect on the same image.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
from skimage import data
from timing import time_interleaved

from cv_patchpose.estimator import PoseEstimator
from cv_patchpose.evaluation.plots import label_points
from cv_patchpose.evaluation.report import describe_environment
from cv_patchpose.files import write_file
from cv_patchpose.patches import build_pyramid, sample_patches

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS = DOCS / "results/curve.json"
KEYPOINTS = 2048
TICKS_US = (5, 10, 20, 50, 100, 200, 500, 1000)
MEASURES = {
    "matching": ("homography-matching", ()),
    "turned": ("homography-matching", ("--rotate", "60")),
    "repeated": ("homography-pose", ("--points", "repeated", "--rotate", "60")),
    "fixed": ("homography-pose", ()),
}
COLUMNS = {
    "MMA@3": ("matching", "mma_3"),
    "correct": ("matching", "correct_matches"),
    "turned MMA@3": ("turned", "mma_3"),
    "turned correct": ("turned", "correct_matches"),
    "repeated, 5 deg": ("repeated", "orientation_within_5_deg"),
    "repeated, 10 deg": ("repeated", "orientation_within_10_deg"),
    "repeated, 1/6 octave": ("repeated", "scale_within_1_6_octave"),
    "fixed, 5 deg": ("fixed", "orientation_within_5_deg"),
    "fixed, 10 deg": ("fixed", "orientation_within_10_deg"),
    "fixed, 1/6 octave": ("fixed", "scale_within_1_6_octave"),
}
# What is drawn, in words: percentages but for MMA.
DRAWN = {
    "turned MMA@3": "MMA@3 of real pairs,\nimage 2 rotated by 60 degrees",
    "repeated, 5 deg": "Orientations within 5 degrees, %:\nSIFT points found in both images",
    "fixed, 5 deg": "Orientations within 5 degrees, %:\ngiven points in windows of 96 pixels",
}


def measure_accuracy(models: list[str], pairs: Path, options: list[str]) -> dict[str, list[dict]]:
    """Evaluate all models on the real pairs; rows by measure, in the order of the models."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (benchmark, more) in MEASURES.items():
            output = Path(folder) / f"{name}.json"
            words = ["evaluate", benchmark, str(pairs), "--methods", ",".join(models)]
            command = [sys.executable, "-m", "cv_patchpose.cli", *words, *more, *options]
            subprocess.run([*command, "--no-cache", "-o", str(output)], check=True)
            found[name] = json.loads(output.read_text())["rows"]
    return found


def measure_time(models: list[str], repeats: int) -> dict[str, dict[str, float]]:
    """Time sampling and network of each model beside SIFT's detection, one thread."""
    cv2.setNumThreads(1)
    photograph = cv2.resize(cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2GRAY), (850, 680))
    pyramid, random = build_pyramid(photograph), np.random.default_rng(0)
    places = random.uniform(0, (850, 680), (KEYPOINTS, 2))
    windows, angles = random.uniform(24, 144, KEYPOINTS), np.zeros(KEYPOINTS)
    sift = cv2.SIFT.create(nfeatures=KEYPOINTS)
    calls = {"cv2.SIFT.detect": lambda: sift.detect(photograph)}

    def run(estimator: PoseEstimator) -> None:
        metadata = estimator.metadata
        for first in range(0, KEYPOINTS, 512):
            some = slice(first, first + 512)
            patches = sample_patches(
                pyramid,
                places[some],
                windows[some],
                angles[some],
                metadata.grid,
                standardize=metadata.standardize,
                num_threads=1,
            )
            estimator.histograms(patches)

    for model in models:
        estimator = PoseEstimator(model, num_threads=1)
        calls[model] = lambda estimator=estimator: run(estimator)
    return time_interleaved(calls, repeats)


def draw(rows: list[dict], path: Path) -> None:
    """Draw accuracy against time."""
    figure, every = plt.subplots(1, len(DRAWN), figsize=(12, 3.8), constrained_layout=True)
    times = [row["us_per_keypoint"] for row in rows]
    for axes, (column, title) in zip(every, DRAWN.items(), strict=True):
        points = [(row["us_per_keypoint"], row[column], row["model"]) for row in rows]
        for place in points:
            axes.plot(*place[:2], "o", color="tab:blue")
        axes.set(xscale="log", xlabel="sampling and network, µs per keypoint", title=title)
        axes.minorticks_off()
        axes.set_xticks(TICKS_US, labels=map(str, TICKS_US))
        axes.set_xlim(0.8 * min(times), 3 * max(times))  # room for names
        axes.margins(y=0.1)
        axes.grid(alpha=0.3)
        label_points(axes, points)
    figure.savefig(path, dpi=110)


def format_table(rows: list[dict]) -> str:
    """Lay the rows out, fastest first."""
    names = [*COLUMNS]
    lines = ["| model | µs per keypoint | of SIFT.detect | " + " | ".join(names) + " |"]
    lines.append("|---" * (len(names) + 3) + "|")
    for row in rows:
        cells = [f"{row[n]:.3f}" if "MMA" in n else f"{row[n]:.1f}" for n in names]
        head = f"| {row['model']} | {row['us_per_keypoint']:.0f} | {row['ratio_to_sift']:.2f} | "
        lines.append(head + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> dict:
    """Measure time and accuracy of all models; the fastest comes first."""
    times = measure_time(options.models, options.repeats)
    quick = ["--quick"] if options.quick else []
    accuracy = measure_accuracy(options.models, options.pairs, ["--jobs", options.jobs, *quick])
    rows = []
    for number, model in enumerate(options.models):
        time = times[model]
        rows.append(
            {
                "model": Path(model).stem,
                "us_per_keypoint": 1000 * time["cpu_ms"] / KEYPOINTS,
                "ratio_to_sift": time["cpu_ms"] / times["cv2.SIFT.detect"]["cpu_ms"],
                **{name: accuracy[m][number][key] for name, (m, key) in COLUMNS.items()},
            }
        )
    return {
        "benchmark": "curve",
        "quick": options.quick,
        "rows": sorted(rows, key=lambda row: row["us_per_keypoint"]),
        "times": {Path(n).stem if n.endswith(".onnx") else n: t for n, t in times.items()},
        "environment": describe_environment(),
    }


def main() -> None:
    """Measure, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=Path, nargs="?", metavar="PAIRS")
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--quick", action="store_true", help="a third of the pairs, fewer points")
    parser.add_argument("--redraw", action="store_true", help="measure nothing, draw what is there")
    options = parser.parse_args()
    if not (options.redraw or options.models):
        parser.error("expected PAIRS and one MODEL or more, or --redraw")
    if not options.redraw:
        write_file(RESULTS, (json.dumps(measure(options), indent=1) + "\n").encode())
    rows = json.loads(RESULTS.read_text())["rows"]
    draw(rows, DOCS / "curve.png")
    print(format_table(rows))


if __name__ == "__main__":
    main()
