"""Measure what each OpenCV descriptor makes of a known pose; write docs/conformance.md.

Photographs are turned and zoomed by known amounts and given sensor noise, so the true pose of each
corner is known in both images. It is handed to every descriptor in three ways:

naive: size and angle are written, octave 0 and class_id -1 stay as the corner detector left them.
ours: the fields are written by the descriptor's rule (`rule_for`).
describe: rectified patches (`describe`).

The number is the percentage of all corners whose nearest neighbour in the other image is the right
one and passes the ratio test. A corner that is dropped counts as missed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from skimage import data

from cv_patchpose.descriptors import DESCRIPTORS, create_extractor, rule_for
from cv_patchpose.evaluation.report import describe_environment
from cv_patchpose.keypoints import KeypointArrays, arrays_from_keypoints, keypoints_from_arrays
from cv_patchpose.rectified import describe

PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "rocket", "stereo_motorcycle")
ZOOMS = (1.0, 1.5, 2.0, 3.0)
TURNS_DEG = (0.0, 35.0, 110.0)
HEADLINE = (2.0, 35.0)
METHODS = ("naive", "ours", "describe")
LONG_SIDE_PX = 360  # of the first image
CORNERS = 120  # per photograph
SPACING_PX = 8  # corners closer to each other look alike
SIZES_PX = (4.0, 10.0)  # characteristic sizes given to corners of the first image
MARGIN = 3 * np.sqrt(2)  # from the border, over the size: the whole window is on the image
LEAST_MARGIN_PX = 40
NOISE_SD = 4.0
RATIO = 0.8
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "conformance.json"
DOCUMENT = Path(__file__).parents[1] / "docs" / "conformance.md"
INTRODUCTION = """
# What reaches the descriptor

Written by `python benchmarks/conformance.py`; numbers in `results/conformance.json`.

Corners of {photographs} photographs are seen a second time, zoomed and turned, with sensor noise in
both images, and have their true size and angle written in both. The tables show the percentage of
corners whose nearest neighbour is the right one and passes the ratio test at {protocol[ratio]}.

- `naive`: only size and angle are written; octave 0 and class_id -1 stay as FAST left them.
- `ours`: every field is written for the descriptor, by `rule_for`, as `PatchPoseAssigner` does.
- `describe`: rectified patches, by `describe`.

"raises": OpenCV refuses the whole list. Extractors are those of `create_extractor`, in OpenCV
{opencv}; BRIEF and DAISY use the angle, which they do not by default.
"""


@dataclass(frozen=True)
class Scene:
    """Two images and the N corners seen in both, with their true poses, index by index."""

    images: tuple[np.ndarray, np.ndarray]
    corners: tuple[KeypointArrays, KeypointArrays]


def load_photographs(folder: Path | None) -> list[np.ndarray]:
    """Load BGR photographs of a folder, or those that come with scikit-image."""
    if folder is not None:
        loaded = (cv2.imread(str(path), cv2.IMREAD_COLOR) for path in sorted(folder.iterdir()))
        return [image for image in loaded if image is not None]
    arrays = [getattr(data, name)() for name in PHOTOGRAPHS]
    arrays = [array[0] if isinstance(array, tuple) else array for array in arrays]
    codes = {2: cv2.COLOR_GRAY2BGR, 3: cv2.COLOR_RGB2BGR}
    return [cv2.cvtColor(array, codes[array.ndim]) for array in arrays]


def warp(photograph: np.ndarray, scale: float, turn_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale and turn a photograph clockwise about its middle, anti-aliased, onto all it needs.

    Returns:
        The image, and the (2, 3) matrix from the photograph's points to the image's.
    """
    height, width = photograph.shape[:2]
    turn = np.radians(turn_deg)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    size = np.ceil(np.abs(matrix) @ [width, height]).astype(int)
    shift = (size - 1) / 2 - matrix @ [(width - 1) / 2, (height - 1) / 2]
    matrix = np.column_stack([matrix, shift])
    if scale < 1:
        photograph = cv2.GaussianBlur(photograph, (0, 0), 0.5 * np.sqrt(scale**-2 - 1))
    flags, border = cv2.INTER_CUBIC, cv2.BORDER_REPLICATE
    size = (int(size[0]), int(size[1]))
    return cv2.warpAffine(photograph, matrix, size, flags=flags, borderMode=border), matrix


def add_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noisy = image + rng.normal(0, NOISE_SD, image.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def choose_corners(image: np.ndarray, rng: np.random.Generator) -> KeypointArrays:
    """Find the strongest corners apart from each other, with random poses that fit the image."""
    found = arrays_from_keypoints(cv2.FastFeatureDetector.create().detect(image, None))
    size_px = SIZES_PX[0] * (SIZES_PX[1] / SIZES_PX[0]) ** rng.random(len(found))
    margin_px = np.maximum(MARGIN * size_px, LEAST_MARGIN_PX)[:, None]
    last = np.array([image.shape[1] - 1, image.shape[0] - 1])
    inside = (found.xy_px >= margin_px) & (found.xy_px <= last - margin_px)
    chosen: list[int] = []
    for index in np.argsort(-found.response, kind="stable"):
        apart = np.hypot(*(found.xy_px[chosen] - found.xy_px[index]).T) >= SPACING_PX
        if inside[index].all() and apart.all():
            chosen.append(int(index))
    chosen = chosen[:CORNERS]
    posed = replace(
        found,
        size_px=size_px.astype(np.float32),
        angle_deg=rng.uniform(0, 360, len(found)).astype(np.float32),
    )
    return posed.take(np.array(chosen, np.int64))


def make_scene(photograph: np.ndarray, zoom: float, turn_deg: float, seed: int) -> Scene:
    """See a photograph twice, the second time zoomed and turned."""
    rng = np.random.default_rng(seed)
    scale = LONG_SIDE_PX / max(photograph.shape[:2])
    first, to_first = warp(photograph, scale, 0.0)
    second, to_second = warp(photograph, scale * zoom, turn_deg)
    corners = choose_corners(first, rng)
    on_photograph = (corners.xy_px - to_first[:, 2]) @ np.linalg.inv(to_first[:, :2]).T
    moved = replace(
        corners,
        xy_px=(on_photograph @ to_second[:, :2].T + to_second[:, 2]).astype(np.float32),
        size_px=corners.size_px * np.float32(zoom),
        angle_deg=(corners.angle_deg + np.float32(turn_deg)) % np.float32(360),
    )
    return Scene((add_noise(first, rng), add_noise(second, rng)), (corners, moved))


def describe_corners(image, corners: KeypointArrays, name: str, method: str):
    """Return the index (M,) of the corners that were described, and their rows (M, ...)."""
    extractor = create_extractor(name)
    if name != "lucid":
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    if method == "describe":
        return np.arange(len(corners)), describe(image, keypoints_from_arrays(corners), extractor)[
            1
        ]
    given = corners
    if method == "ours":
        given = rule_for(extractor).write(corners, image.shape[:2])
    keypoints = keypoints_from_arrays(given)
    index_at = {keypoint.pt: index for index, keypoint in enumerate(keypoints)}
    found, rows = extractor.compute(image, keypoints)
    return np.array([index_at[keypoint.pt] for keypoint in found], np.int64), rows


def count_matched(scene: Scene, name: str, method: str) -> int:
    """Count the corners of the first image whose nearest neighbour is right and distinct."""
    described = [
        describe_corners(image, corners, name, method)
        for image, corners in zip(scene.images, scene.corners, strict=True)
    ]
    (first, rows_1), (second, rows_2) = described
    if rows_1 is None or rows_2 is None or len(second) < 2:
        return 0
    matcher = cv2.BFMatcher(create_extractor(name).defaultNorm())
    pairs = matcher.knnMatch(rows_1, rows_2, k=2)
    return sum(
        best.distance < RATIO * next_best.distance and first[best.queryIdx] == second[best.trainIdx]
        for best, next_best in pairs
    )


def share_matched(scenes: Sequence[Scene], name: str, method: str) -> float | None:
    """Return the percentage of corners that match, None where OpenCV refuses the keypoints."""
    try:
        matched = sum(count_matched(scene, name, method) for scene in scenes)
    except cv2.error:
        return None
    return round(100 * float(matched) / sum(len(scene.corners[0]) for scene in scenes), 1)


def measure(photographs: Sequence[np.ndarray], names: Sequence[str]) -> list[dict]:
    """Measure every descriptor, zoom, turn and method; return one row each."""
    rows = []
    for zoom in ZOOMS:
        for turn_deg in TURNS_DEG:
            scenes = [make_scene(p, zoom, turn_deg, seed) for seed, p in enumerate(photographs)]
            total = sum(len(scene.corners[0]) for scene in scenes)
            for name in names:
                row = {"descriptor": name, "zoom": zoom, "turn_deg": turn_deg, "corners": total}
                rows.append(row | {m: share_matched(scenes, name, m) for m in METHODS})
    return rows


def format_share(share: float | None) -> str:
    return "raises" if share is None else f"{share:.1f}"


def format_headline(rows: Sequence[dict]) -> str:
    """Write the table at one zoom and turn, with what the descriptor reads."""
    heads = ("descriptor", "reads the angle", "reads the size", *METHODS)
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        if (row["zoom"], row["turn_deg"]) == HEADLINE:
            rule = rule_for(row["descriptor"])
            reads = ["yes" if flag else "no" for flag in (rule.keeps_angle, rule.keeps_scale)]
            numbers = [format_share(row[method]) for method in METHODS]
            lines.append(f"| {' | '.join([row['descriptor'], *reads, *numbers])} |")
    return "\n".join(lines)


def format_method(rows: Sequence[dict], method: str) -> str:
    """Write the table of one method over all zooms and turns."""
    cells = [(zoom, turn) for zoom in ZOOMS for turn in TURNS_DEG]
    lines = ["| descriptor | " + " | ".join(f"{z:g}x, {t:g}°" for z, t in cells) + " |"]
    lines.append("|---" * (len(cells) + 1) + "|")
    for name in dict.fromkeys(row["descriptor"] for row in rows):
        numbers = {(r["zoom"], r["turn_deg"]): r[method] for r in rows if r["descriptor"] == name}
        lines.append(
            f"| {name} | " + " | ".join(format_share(numbers[cell]) for cell in cells) + " |"
        )
    return "\n".join(lines)


def format_document(report: dict) -> str:
    """Write docs/conformance.md."""
    rows = report["rows"]
    parts = [
        INTRODUCTION.format(**report, opencv=report["environment"]["opencv"]).strip(),
        f"## Zoom {HEADLINE[0]:g} and a turn of {HEADLINE[1]:g} degrees",
        format_headline(rows),
    ]
    for method in METHODS:
        parts += [f"## All zooms and turns: {method}", format_method(rows, method)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, write the results and the document, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of photographs to use instead")
    parser.add_argument("--descriptors", nargs="+", default=DESCRIPTORS, choices=DESCRIPTORS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file to write")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="markdown file to write")
    options = parser.parse_args()
    photographs = load_photographs(options.images)
    if not photographs:
        parser.error(f"--images: expected a folder of photographs, got {options.images}")
    report = {
        "benchmark": "conformance",
        "protocol": {
            "corners": CORNERS,
            "spacing_px": SPACING_PX,
            "sizes_px": SIZES_PX,
            "long_side_px": LONG_SIDE_PX,
            "noise_sd": NOISE_SD,
            "ratio": RATIO,
        },
        "photographs": len(photographs),
        "rows": measure(photographs, options.descriptors),
        "environment": describe_environment(),
    }
    options.results.write_text(json.dumps(report, indent=1) + "\n")
    options.document.write_text(format_document(report))
    print(format_headline(report["rows"]))


if __name__ == "__main__":
    main()
