"""Tell what limits the pose in windows of a fixed size: the geometry of a pair, or its appearance.

PAIRS holds scenes in HPatches' layout. Beside the photographs, image 1 is warped into the place of
the others: then nothing differs but the geometry, and no part of the scene leaves its plane.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.homography_pose import PoseProtocol, run_benchmark
from cv_patchpose.evaluation.pair_errors import summarize_pair_errors
from cv_patchpose.evaluation.report import describe_environment
from cv_patchpose.evaluation.runner import tell_failures
from cv_patchpose.evaluation.sequences import (
    PlanarPair,
    find_sequences,
    list_pairs,
    read_photograph,
)
from cv_patchpose.files import write_file
from cv_patchpose.homography import local_jacobian, nearest_similarity

RESULTS = Path(__file__).resolve().parents[1] / "docs/results/limits.json"
KINDS = ("others", "tilted", "zoomed")
MODEL = "polar"
LARGE_TILT = 1.4  # ratio of the two axes
LARGE_ZOOM_OCTAVES = 0.5
FINER = 3  # samples along a side of each pixel of a warped image


def kind_of(pair: PlanarPair) -> str:
    """Tell what is large about the change of a pair, by its medians over the image."""
    height, width = read_photograph(pair.first).shape[:2]
    share = np.linspace(0.1, 0.9, 5)
    x, y = np.meshgrid(share * width, share * height)
    jacobian = local_jacobian(pair.target.homography, np.stack((x.ravel(), y.ravel()), 1))
    axes = np.linalg.svd(jacobian, compute_uv=False)
    if abs(np.median(np.log2(nearest_similarity(jacobian)[0]))) > LARGE_ZOOM_OCTAVES:
        return "zoomed"
    return "tilted" if np.median(axes[:, 0] / axes[:, 1]) > LARGE_TILT else "others"


def warp(pair: PlanarPair) -> NDArray[np.uint8]:
    """Show image 1 as the homography has it in image 2."""
    height, width = read_photograph(pair.target.path).shape[:2]
    middle = (FINER - 1) / 2
    enlarge = np.array([[FINER, 0, middle], [0, FINER, middle], [0, 0, 1.0]])
    large = cv2.warpPerspective(
        read_photograph(pair.first),
        enlarge @ pair.target.homography,
        (FINER * width, FINER * height),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def write_warped(pairs: list[PlanarPair], folder: Path) -> None:
    """Write scenes whose later images are warped from image 1."""
    for pair in pairs:
        scene = folder / pair.sequence
        scene.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(scene / "1.png"), read_photograph(pair.first))
        number = pair.target.path.stem
        cv2.imwrite(str(scene / f"{number}.png"), warp(pair))
        np.savetxt(scene / f"H_1_{number}", pair.target.homography)


def measure(root: Path, kinds: dict[str, str], jobs: int) -> dict[str, dict]:
    """Measure the relative pose by kind of pair.

    Raises:
        ValueError: A pair could not be measured.
    """
    outcome = run_benchmark(root, PoseProtocol(methods=(MODEL,)), jobs)
    if outcome.failures:
        raise ValueError(tell_failures(outcome.failures))
    return {
        kind: summarize_pair_errors(
            [s.result for s in outcome.samples if kinds[f"{s.sequence}/{s.pair}"] == kind]
        )
        for kind in sorted(set(kinds.values()))
    }


def main() -> None:
    """Measure and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=Path, metavar="PAIRS")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    sequences, failures = find_sequences(options.pairs)
    if failures:
        raise ValueError(tell_failures(failures))
    pairs = list_pairs(sequences, quick=False)
    kinds = {pair.name: kind_of(pair) for pair in pairs}
    photographed = measure(options.pairs, kinds, options.jobs)
    with tempfile.TemporaryDirectory() as folder:
        write_warped(pairs, Path(folder))
        warped = measure(Path(folder), kinds, options.jobs)
    rows = [
        {
            "method": kind,
            "pairs": sum(other == kind for other in kinds.values()),
            **photographed[kind],
            **{f"warped_{name}": value for name, value in warped[kind].items()},
        }
        for kind in KINDS
        if kind in photographed
    ]
    content = {"benchmark": "limits", "model": MODEL, "rows": rows}
    content["environment"] = describe_environment()
    write_file(RESULTS, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
