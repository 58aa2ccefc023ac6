"""Match planar scenes with the pairs of detector and descriptor that users of OpenCV combine.

Writes a JSON file of all figures and a page that shows them, losses included. What is done already
is kept with --resume.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from pathlib import Path

from cv_patchpose.evaluation.homography_matching import MatchingProtocol, run_benchmark
from cv_patchpose.evaluation.report import describe_environment
from cv_patchpose.files import check_output, write_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAIRINGS = {
    "sift": ("sift", "vgg", "boostdesc"),
    "orb": ("orb", "beblid", "sift"),
    "akaze": ("akaze", "sift"),
    "brisk": ("brisk", "freak"),
    "fast": ("brief", "freak", "orb", "sift"),
    "gftt": ("brief", "daisy", "sift"),
}
BASELINE = "detector"
ROTATIONS_DEG = (0.0, 60.0)
METRICS = {"correct_matches": ("correct matches", ".0f"), "mma_3": ("MMA@3", ".3f")}
KEY = ("detector", "descriptor", "rotate")

INTRODUCTION = """\
# Detectors and descriptors in pairs

Made by `benchmarks/pairings.py`. {pairs} pairs of photographs of planar scenes, the {points}
strongest points each, mutual nearest neighbours (Hamming distance for binary descriptors, L2 for
the others; SIFT as RootSIFT). Each cell: correct matches (distinct, within 3 px) / MMA@3.
`refused`: in how many of the pairs OpenCV raised an error, which counts as no match.

| method | pose | how the pose reaches the descriptor |
|---|---|---|
| detector | the detector's; the angle by SIFT's rule where it measures none | the detector's own \
fields where both are halves of one method, otherwise fields written by our rules |
| detector@describe | the same | rectified patches, `cv_patchpose.describe` |
| {model}@naive | ours | size and angle are new, octave and class_id as the detector left them |
| {model} | ours | fields written for the descriptor, `assign(..., descriptor=...)` |
| {model}@describe | ours | rectified patches |

Scale levels of ORB, AKAZE and BRISK keypoints are kept, and converted to SIFT's measure for other
descriptors. With SIFT's descriptor, `polar@naive` leaves octave 0 and so reads the finest level: as
many correct matches and fewer wrong ones, but many of zoomed images are lost (`orb + sift`). The
descriptor `sift-fine` (README) has much of that gain and loses nothing.
"""


def methods_of(model: str) -> tuple[str, ...]:
    """List the methods compared, with the OpenCV user's own first."""
    return BASELINE, f"{BASELINE}@describe", f"{model}@naive", model, f"{model}@describe"


def measure(options: argparse.Namespace, done: list[dict]) -> list[dict]:
    """Measure what is not done yet; write all of it after each step."""
    cells = [
        (detector, descriptor, rotate)
        for detector, descriptors in PAIRINGS.items()
        for descriptor in descriptors
        for rotate in ROTATIONS_DEG
        if f"{detector}+{descriptor}" in options.only or not options.only
    ]
    results = list(done)
    for cell in cells:
        if cell in {tuple(result[name] for name in KEY) for result in results}:
            continue
        protocol = MatchingProtocol(
            methods=methods_of(options.model),
            max_keypoints=options.max_keypoints,
            quick=options.quick,
            **dict(zip(KEY, cell, strict=True)),
        )
        outcome = run_benchmark(options.root, protocol, options.jobs)
        results.append(
            {
                **dict(zip(KEY, cell, strict=True)),
                "rows": outcome.rows,
                "failures": outcome.failures,
            }
        )
        print(format_line(results[-1], protocol.methods), flush=True)
        write(options, results)
    return results


def write(options: argparse.Namespace, results: list[dict]) -> None:
    """Write the JSON file and the page made of it."""
    content = {
        "benchmark": "pairings",
        "protocol": describe_protocol(options),
        "results": results,
        "environment": describe_environment(),
    }
    write_file(options.output, (json.dumps(content, indent=2) + "\n").encode())
    write_file(options.page, format_page(content).encode())


def describe_protocol(options: argparse.Namespace) -> dict:
    return {
        "root": options.root.name,
        "model": Path(options.model).name,
        "methods": [Path(name).name for name in methods_of(options.model)],
        "max_keypoints": min(options.max_keypoints, 500 if options.quick else math.inf),
        "quick": options.quick,
    }


def read_done(options: argparse.Namespace) -> list[dict]:
    """Read the results of an earlier run; ValueError if it measured something else."""
    if not (options.resume and options.output.exists()):
        return []
    content = json.loads(options.output.read_text())
    if content["protocol"] != describe_protocol(options):
        raise ValueError(f"{options.output}: expected the same protocol, got another")
    return content["results"]


def format_page(content: dict) -> str:
    """Show the figures as tables, then say where ours is not ahead."""
    protocol, results = content["protocol"], content["results"]
    methods = protocol["methods"]
    pairs = max(row["pairs"] for result in results for row in result["rows"])
    parts = [
        INTRODUCTION.format(pairs=pairs, points=protocol["max_keypoints"], model=protocol["model"])
    ]
    for rotate in ROTATIONS_DEG:
        turned = [result for result in results if result["rotate"] == rotate]
        if turned:
            title = f"Image 2 turned by {rotate:g} degrees" if rotate else "As photographed"
            parts += [f"## {title}\n", format_table(turned, methods)]
    parts.append("## Where ours is not ahead\n")
    parts.append(format_losses(results, protocol["model"]))
    environment = content["environment"]
    parts.append(f"OpenCV {environment['opencv']}, commit {environment['commit']}.\n")
    return "\n".join(parts)


def format_table(results: list[dict], methods: list[str]) -> str:
    lines = [f"| pair | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    lines += [f"| {format_line(result, methods)} |" for result in results]
    return "\n".join(lines) + "\n"


def format_line(result: dict, methods: list[str] | tuple[str, ...]) -> str:
    """Name a pair and its figures, the most correct matches in bold."""
    most = max(row["correct_matches"] for row in result["rows"])
    cells = [
        format_cell(row, bold=row["correct_matches"] == most)
        for row, _ in zip(result["rows"], methods, strict=True)
    ]
    return " | ".join([f"{result['detector']} + {result['descriptor']}", *cells])


def format_cell(row: dict, *, bold: bool) -> str:
    correct = f"{row['correct_matches']:.0f}"
    text = f"{f'**{correct}**' if bold else correct} / {row['mma_3']:.3f}"
    return f"{text}, refused {row['refused_pairs']}" if row["refused_pairs"] else text


def format_losses(results: list[dict], model: str) -> str:
    """List each pair and metric in which the detector's pose is not behind ours."""
    lines = []
    for result in results:
        rows = {Path(row["method"]).name: row for row in result["rows"]}
        behind = []
        for name, (title, form) in METRICS.items():
            own, best = (
                max(rows[method][name], rows[f"{method}@describe"][name])
                for method in (BASELINE, model)
            )
            if best <= own:
                behind.append(f"{title} {best:{form}} against {own:{form}}")
        if behind:
            turn = f", turned by {result['rotate']:g} degrees" if result["rotate"] else ""
            pair = f"{result['detector']} + {result['descriptor']}"
            lines.append(f"- {pair}{turn}: {'; '.join(behind)}.")
    what = f"The better of {model} and {model}@describe against the better of {BASELINE} and "
    what += f"{BASELINE}@describe"
    if not lines:
        return f"{what}: ahead everywhere.\n"
    return f"{what}:\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Measure every pair, plain and turned."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, metavar="PAIRS", help="scenes in HPatches' layout")
    parser.add_argument("-o", "--output", type=Path, default=DOCS / "results/pairings.json")
    parser.add_argument("--page", type=Path, default=DOCS / "pairings.md")
    parser.add_argument("--model", default="polar", help="name or ONNX file (polar)")
    parser.add_argument("--max-keypoints", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a third of the pairs, 500 points")
    parser.add_argument("--resume", action="store_true", help="keep what the output holds")
    parser.add_argument("--only", nargs="*", default=(), metavar="DETECTOR+DESCRIPTOR")
    options = parser.parse_args()
    check_output(options.output, (".json",))
    check_output(options.page, (".md",))
    warnings.simplefilter("error")
    write(options, measure(options, read_done(options)))


if __name__ == "__main__":
    main()
