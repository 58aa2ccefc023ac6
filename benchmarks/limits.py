"""Tell what limits the pose in windows of a fixed size: the geometry of a pair, or its appearance.

PAIRS holds scenes in HPatches' layout. Beside the photographs, image 1 is warped into the place of
the others: then nothing differs but the geometry, and no part of the scene leaves its plane. And
both windows of a keypoint are laid over each other in all rotations and zooms: what fits best then
is what could be known of their relative pose if each could be read with the other at hand.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.homography_pose import PoseProtocol, fixed_points, run_benchmark
from cv_patchpose.evaluation.metrics import PoseErrors, angle_difference_deg, summarize_pose_errors
from cv_patchpose.evaluation.pair_errors import summarize_pair_errors
from cv_patchpose.evaluation.report import describe_environment
from cv_patchpose.evaluation.runner import tell_failures
from cv_patchpose.evaluation.sequences import (
    PlanarPair,
    find_sequences,
    list_pairs,
    read_photograph,
    turn_image,
)
from cv_patchpose.files import write_file
from cv_patchpose.grids import PolarGrid
from cv_patchpose.homography import local_jacobian, nearest_similarity
from cv_patchpose.patches import build_pyramid, sample_patches

RESULTS = Path(__file__).resolve().parents[1] / "docs/results/limits.json"
KINDS = ("others", "tilted", "zoomed")
MODEL = "polar"
LARGE_TILT = 1.4  # ratio of the two axes
LARGE_ZOOM_OCTAVES = 0.5
FINER = 3  # samples along a side of each pixel of a warped image
GRID = PolarGrid(rows=56, columns=72, rows_per_octave=8, halo=0)
MOST_OCTAVES = 2.2  # of zoom, between windows laid over each other


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


def describe_edges(patches: NDArray[np.float32]) -> NDArray[np.float64]:
    """Turn (N, R, T) polar patches into (N, 2, R, T) gradients, the strong ones damped."""
    outward = np.gradient(patches, axis=1)
    around = (np.roll(patches, -1, 2) - np.roll(patches, 1, 2)) / 2
    edges = np.stack((outward, around), 1).astype(np.float64)
    return np.asarray(edges / np.sqrt(np.linalg.norm(edges, axis=1, keepdims=True) + 1e-3))


def align(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find the zoom and the rotation that lay the second patches best over the first ones.

    Args:
        first: (N, 2, R, T) of `describe_edges`.
        second: the same.

    Returns:
        (N,) octaves and degrees clockwise, by the correlation of the rings that both show.
    """
    rows, columns = GRID.rows, GRID.columns
    most = int(MOST_OCTAVES * GRID.rows_per_octave)
    spectra = np.fft.rfft(first), np.fft.rfft(second)
    found = []
    for shift in range(-most, most + 1):
        ours, theirs = (slice(max(0, move), rows + min(0, move)) for move in (-shift, shift))
        product = np.conj(spectra[0][:, :, ours]) * spectra[1][:, :, theirs]
        energy = (first[:, :, ours] ** 2).sum((1, 2, 3)) * (second[:, :, theirs] ** 2).sum(
            (1, 2, 3)
        )
        correlation = np.fft.irfft(product.sum((1, 2)), n=columns)
        found.append(correlation / (np.sqrt(energy) + 1e-6)[:, None])
    scores = np.stack(found, 1)  # (N, zooms, rotations)
    zoom, turn = np.unravel_index(scores.reshape(len(scores), -1).argmax(1), scores.shape[1:])
    each = np.arange(len(scores))
    inner = zoom.clip(1, 2 * most - 1)
    finer_zoom = _vertex(*(scores[each, inner + step, turn] for step in (-1, 0, 1)))
    finer_turn = _vertex(*(scores[each, zoom, (turn + step) % columns] for step in (-1, 0, 1)))
    octaves = (zoom + np.where(zoom == inner, finer_zoom, 0) - most) / GRID.rows_per_octave
    return octaves, (turn + finer_turn) * 360 / columns


def _vertex(
    before: NDArray[np.float64], at: NDArray[np.float64], after: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Tell where parabolas through three samples peak, in samples from the middle one."""
    bend = before - 2 * at + after
    offset = np.divide(0.5 * (before - after), bend, out=np.zeros_like(bend), where=bend < 0)
    return offset.clip(-0.5, 0.5)


def measure_aligned(pair: PlanarPair) -> PoseErrors:
    """Measure the relative pose by which the two windows of each keypoint fit best."""
    views = [turn_image(read_photograph(path)) for path in (pair.first, pair.target.path)]
    homography, window_px = pair.target.homography, PoseProtocol(methods=(MODEL,)).window_px
    both = fixed_points(*views, homography, window_px)
    edges = [
        describe_edges(
            sample_patches(
                build_pyramid(view.image),
                points.xy_px,
                np.full(len(points), window_px),
                np.zeros(len(points)),
                GRID,
                standardize=True,
            )[:, 0]
        )
        for view, points in zip(views, both, strict=True)
    ]
    octaves, turn_deg = align(*edges)
    xy_px = both[0].xy_px.astype(np.float64)
    scale, angle_deg = nearest_similarity(local_jacobian(homography, xy_px))
    return PoseErrors(np.abs(octaves - np.log2(scale)), angle_difference_deg(turn_deg, angle_deg))


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
    aligned = [(pair, measure_aligned(pair)) for pair in pairs]
    fits = {
        kind: summarize_pose_errors([e for pair, e in aligned if kinds[pair.name] == kind])
        for kind in photographed
    }
    rows = [
        {
            "method": kind,
            "pairs": sum(other == kind for other in kinds.values()),
            **photographed[kind],
            **{f"warped_{name}": value for name, value in warped[kind].items()},
            **{f"aligned_{name}": value for name, value in fits[kind].items()},
        }
        for kind in KINDS
        if kind in photographed
    ]
    content = {"benchmark": "limits", "model": MODEL, "rows": rows}
    content["environment"] = describe_environment()
    write_file(RESULTS, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
