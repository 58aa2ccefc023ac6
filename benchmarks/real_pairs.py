"""Compare all methods on real pairs of photographs and write docs/benchmarks.md.

Planar scenes by homography-matching, calibrated scenes by two-view, each as taken and turned, with
several descriptors and matchers. What is measured is cached by the command, so that a run that
was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cv_patchpose.files import write_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
METHODS = (
    *("detector", "detector-all", "upright", "orinet", "orinet+affnet", "affnet"),
    *("polar", "polar:2", "resnet18"),
)
OURS = ("polar", "polar:2", "resnet18")
MATCHING = {
    "mma_1": ("MMA@1", ".3f"),
    "mma_3": ("@3", ".3f"),
    "mma_5": ("@5", ".3f"),
    "matches": ("matches", ".0f"),
    "correct_matches": ("correct", ".0f"),
    "homography_within_3_px": ("homography within 3 px", ".1f"),
}
TWO_VIEW = {
    "maa_5": ("mAA(5)", ".3f"),
    "maa_10": ("mAA(10)", ".3f"),
    "maa_10_easy": ("easy", ".3f"),
    "maa_10_medium": ("medium", ".3f"),
    "maa_10_hard": ("hard", ".3f"),
    "inliers": ("inliers", ".0f"),
}


@dataclass(frozen=True)
class Table:
    """One call of the benchmark.

    Attributes:
        title: heading.
        benchmark: its name.
        options: of the command.
        turned: the option that turns image 2; without it, as taken.
        columns: of the result: title and format.
    """

    title: str
    benchmark: str
    options: str
    turned: str
    columns: dict[str, tuple[str, str]]

    def name(self, turned: bool) -> str:
        """Name the result's file."""
        parts = [self.benchmark, *self.options.replace("--", "").split()]
        return "-".join([*parts, "turned"] if turned else parts)


def tables() -> list[Table]:
    """List what is measured."""
    planar = [
        Table(title, "homography-matching", options, "--rotate 60", MATCHING)
        for title, options in (
            ("Planar scenes, SIFT keypoints, RootSIFT", "--descriptor sift"),
            ("Planar scenes, SIFT keypoints, HardTFeat", "--descriptor hardtfeat"),
            ("Planar scenes, SIFT keypoints, TFeat", "--descriptor tfeat"),
            (
                "Planar scenes, Key.Net keypoints, HardTFeat",
                "--detector keynet --descriptor hardtfeat",
            ),
        )
    ]
    two_view = [
        Table(
            f"Two views, {count:,} keypoints, RootSIFT, {title}",
            "two-view",
            f"--max-keypoints {count} --matcher {matcher}",
            "--random-turn",
            TWO_VIEW,
        )
        for count in (1024, 2048)
        for matcher, title in (("adalam", "AdaLAM"), ("mutual", "mutual nearest neighbours"))
    ]
    return planar + two_view


def measure(options: argparse.Namespace, table: Table, turned: bool) -> dict:
    """Run one call and read its result."""
    planar = table.benchmark == "homography-matching"
    root = options.pairs if planar else options.scenes
    output = options.results / f"{table.name(turned)}.json"
    words = [table.benchmark, str(root), "--methods", ",".join(options.methods)]
    words += table.options.split() + (table.turned.split() if turned else [])
    words += ["--peer-weights", str(options.weights), "--jobs", str(options.jobs)]
    words += ["--quick"] if options.quick else []
    command = [sys.executable, "-m", "cv_patchpose.cli", "evaluate", *words, "-o", str(output)]
    if not output.exists():
        print(f"== {output.stem}", flush=True)
        subprocess.run(command, check=True)
    return json.loads(output.read_text())


def format_table(rows: Sequence[dict], columns: dict[str, tuple[str, str]]) -> list[str]:
    """Show rows of a result, the best of each column in bold."""
    lines = ["| pose | " + " | ".join(title for title, _ in columns.values()) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    best = {name: max(row[name] or 0 for row in rows) for name in columns}
    for row in rows:
        cells = []
        for name, (_, form) in columns.items():
            text = "-" if row[name] is None else format(row[name], form)
            cells.append(f"**{text}**" if row[name] == best[name] else text)
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return [*lines, ""]


def losses(rows: Sequence[dict], columns: dict[str, tuple[str, str]]) -> str:
    """Say where the best of ours is behind the best of the others."""
    behind = []
    for name in [n for n in columns if n in ("mma_3", "correct_matches", "maa_10")]:
        ours = max((row for row in rows if row["method"] in OURS), key=lambda row: row[name])
        other = max((row for row in rows if row["method"] not in OURS), key=lambda row: row[name])
        if ours[name] <= other[name]:
            title, form = columns[name]
            behind.append(
                f"{title} {ours[name]:{form}} ({ours['method']}) against "
                f"{other[name]:{form}} ({other['method']})"
            )
    return f"Behind: {'; '.join(behind)}.\n" if behind else "Ahead of all others.\n"


def format_page(measured: list[tuple[Table, bool, dict]]) -> str:
    """Write the page of all tables."""
    environment = measured[0][2]["environment"]
    parts = [
        "# Real pairs, real peers\n",
        "Made by `benchmarks/real_pairs.py`, which calls `cv-patchpose evaluate`; the numbers are "
        "in [results](results/real-pairs). Planar scenes: five of HPatches, four of Oxford, six "
        "of homogr, 1,000 "
        "keypoints. Two views: fountain-P11 and castle-P19 of Strecha. `detector` is the "
        "detector's own pose with one orientation, `detector-all` all of them; `affnet` is upright "
        "with AffNet's shape; `polar:2` ours with up to two poses. Turned: image 2 by 60 degrees "
        "(planar) or by an angle drawn for each pair.\n",
    ]
    for table, turned, result in measured:
        title = f"{table.title}, {'turned' if turned else 'as taken'}"
        how = f"{table.options} {table.turned if turned else ''}".strip()
        parts += [f"## {title}\n", f"`evaluate {table.benchmark} {how}`\n"]
        parts += format_table(result["rows"], table.columns)
        parts.append(losses(result["rows"], table.columns))
    parts.append(
        f"{environment['cpu']}; OpenCV {environment['opencv']}, kornia "
        f"{environment.get('kornia')}, commit {environment['commit']}.\n"
    )
    return "\n".join(parts)


def main() -> None:
    """Measure everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=Path, help="scenes in HPatches' layout")
    parser.add_argument("scenes", type=Path, help="scenes with cameras.json")
    parser.add_argument("weights", type=Path, help="weights of the peers")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=METHODS)
    parser.add_argument("--results", type=Path, default=DOCS / "results/real-pairs")
    parser.add_argument("--page", type=Path, default=DOCS / "benchmarks.md")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    measured = [
        (table, turned, measure(options, table, turned))
        for table in tables()
        for turned in (False, True)
    ]
    write_file(options.page, format_page(measured).encode())


if __name__ == "__main__":
    main()
