"""Compare all methods on real pairs of photographs and write docs/benchmarks.md.

Planar scenes by homography-matching, calibrated scenes by two-view, each as taken and turned, with
several descriptors and matchers. What is measured is cached by the command, so that a run that
was interrupted goes on. A table whose file is in the folder of results is not measured again:
remove the files to measure a new model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cv_patchpose.evaluation.plots import draw_plots
from cv_patchpose.files import write_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
METHODS = (
    *("detector", "detector-all", "upright", "orinet", "orinet+affnet", "affnet"),
    *("polar", "polar:2", "polar-large", "resnet18"),
)
QUICK_METHODS = ("detector", "detector-all", "upright", "orinet", "polar", "polar:2")
# Of the tables that take longest: without the slowest methods, with the angle alone. The others are
# compared with the first, pair by pair.
FEWER_METHODS = (
    "polar",
    "detector",
    "upright",
    "orinet",
    "orinet+affnet",
    "polar:2",
    "polar@angle",
)
OURS = ("polar", "polar:2", "polar-large", "resnet18", "polar@angle")
MATCHING = {
    "mma_1": ("MMA@1", ".3f"),
    "mma_3": ("@3", ".3f"),
    "mma_5": ("@5", ".3f"),
    "mma_10": ("@10", ".3f"),
    "matches": ("matches", ".0f"),
    "correct_matches": ("correct", ".0f"),
    "homography_within_1_px": ("homography within 1 px, %", ".1f"),
    "homography_within_3_px": ("3 px", ".1f"),
    "homography_within_5_px": ("5 px", ".1f"),
    "pose_ms": ("pose, ms", ".0f"),
}
TWO_VIEW = {
    "maa_5": ("mAA(5)", ".3f"),
    "maa_10": ("mAA(10)", ".3f"),
    "gain": ("minus the first row's, ± its standard error", ""),
    "maa_10_easy": ("easy", ".3f"),
    "maa_10_medium": ("medium", ".3f"),
    "maa_10_hard": ("hard", ".3f"),
    "inliers": ("inliers", ".0f"),
    "pose_ms": ("pose, ms", ".0f"),
}
# What is in the summary: column, number of the table, turned, and its accuracy.
SUMMARY = (
    ("planar, RootSIFT: correct", 0, False, "correct_matches"),
    ("turned", 0, True, "correct_matches"),
    ("planar, HardTFeat: correct", 1, False, "correct_matches"),
    ("turned", 1, True, "correct_matches"),
    ("two views, AdaLAM: mAA(10)", 2, False, "maa_10"),
    ("turned", 2, True, "maa_10"),
    ("pose of an image, ms", 0, True, "pose_ms"),
)
QUICK = (0, 1, 4)  # tables of a quick run, turned
# Memory that is given back and touched anew for every batch of patches costs the peers a quarter of
# their time; this keeps it.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}
DRAWN = ((0, True), (2, True))  # tables with pictures


@dataclass(frozen=True)
class Table:
    """One call of the benchmark.

    Attributes:
        title: heading.
        benchmark: its name.
        options: of the command.
        turned: the option that turns image 2; without it, as taken.
        columns: of the result: title and format.
        methods: that are compared.
    """

    title: str
    benchmark: str
    options: str
    turned: str
    columns: dict[str, tuple[str, str]]
    methods: Sequence[str] = METHODS

    def name(self, turned: bool) -> str:
        """Name the result's file."""
        parts = [self.benchmark, *self.options.replace("--", "").split()]
        return "-".join([*parts, "turned"] if turned else parts)


def tables() -> list[Table]:
    """List what is measured."""
    planar = [
        Table(
            title,
            "homography-matching",
            f"{options} --budget keypoints",
            "--rotate 60",
            MATCHING,
            methods,
        )
        for title, options, methods in (
            ("Planar scenes, SIFT keypoints, RootSIFT", "--descriptor sift", METHODS),
            ("Planar scenes, SIFT keypoints, HardTFeat", "--descriptor hardtfeat", METHODS),
        )
    ]
    two_view = [
        Table(
            f"Two views, {title}",
            "two-view",
            f"--max-keypoints {options}",
            "--random-turn",
            TWO_VIEW,
            FEWER_METHODS,
        )
        for title, options in (
            ("2,048 SIFT keypoints, AdaLAM", "2048 --matcher adalam"),
            ("2,048 SIFT keypoints, mutual nearest neighbours", "2048 --matcher mutual"),
            ("1,024 SIFT keypoints, AdaLAM", "1024 --matcher adalam"),
            ("2,048 Key.Net keypoints, AdaLAM", "2048 --matcher adalam --detector keynet"),
        )
    ]
    return planar + two_view


def result_path(options: argparse.Namespace, table: Table, turned: bool) -> Path:
    """Name the file of a table's result."""
    return Path(options.results / f"{table.name(turned)}.json")


def measure(options: argparse.Namespace, table: Table, turned: bool) -> dict:
    """Run one call and read its result."""
    planar = table.benchmark == "homography-matching"
    root = options.pairs if planar else options.scenes
    output = result_path(options, table, turned)
    methods = [name for name in table.methods if name in options.methods]
    words = [table.benchmark, str(root), "--methods", ",".join(methods)]
    words += table.options.split() + (table.turned.split() if turned else [])
    words += ["--peer-weights", str(options.weights), "--jobs", str(options.jobs)]
    words += ["--quick"] if options.quick else []
    command = [sys.executable, "-m", "cv_patchpose.cli", "evaluate", *words, "-o", str(output)]
    if not output.exists():
        print(f"== {output.stem}", flush=True)
        subprocess.run(command, check=True, env={**os.environ, **KEEP_MEMORY})
    result = json.loads(output.read_text())
    for row in result["rows"]:
        row["pose_ms"] = 1e3 * row["seconds_pose"]
        if row.get("maa_10_gain_error"):  # 0 of the first, which is compared with itself
            row["gain"] = f"{row['maa_10_gain']:+.3f} ± {row['maa_10_gain_error']:.3f}"
    return result


def format_table(rows: Sequence[dict], columns: dict[str, tuple[str, str]]) -> list[str]:
    """Show rows of a result, the best of each column in bold."""
    lines = ["| pose | " + " | ".join(title for title, _ in columns.values()) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    ranked = [name for name in columns if name not in ("pose_ms", "gain")]
    best = {name: max(row[name] or 0 for row in rows) for name in ranked}
    for row in rows:
        cells = []
        for name, (_, form) in columns.items():
            value = row.get(name)
            text = "-" if value is None else format(value, form)
            cells.append(f"**{text}**" if value and value == best.get(name) else text)
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return [*lines, ""]


def losses(rows: Sequence[dict], columns: dict[str, tuple[str, str]]) -> str:
    """Say where the best of ours is behind the best of the others."""
    told = []
    judged = {"mma_3": "MMA@3", "correct_matches": "correct matches", "maa_10": "mAA(10)"}
    judged = {name: title for name, title in judged.items() if name in columns}
    for name, title in judged.items():
        form = columns[name][1]
        ours = max((row for row in rows if row["method"] in OURS), key=lambda row: row[name])
        ahead = [row for row in rows if row["method"] not in OURS and row[name] > ours[name]]
        if ahead:
            others = ", ".join(f"{row['method']} {row[name]:{form}}" for row in ahead)
            told.append(f"{title} {ours[name]:{form}} ({ours['method']}) against {others}")
    if not told:
        return f"The best of ours is ahead of all others in {' and '.join(judged.values())}.\n"
    return f"Ours is behind: {'; '.join(told)}.\n"


def format_summary(measured: dict[tuple[int, bool], dict]) -> list[str]:
    """Show one number of the main tables for each method."""
    columns = {str(i): (column[0], ".0f") for i, column in enumerate(SUMMARY)}
    columns |= {str(i): (c[0], ".3f") for i, c in enumerate(SUMMARY) if c[3] == "maa_10"}
    columns["pose_ms"] = columns.pop(str(len(SUMMARY) - 1))
    rows = []
    for method in dict.fromkeys((*METHODS, *FEWER_METHODS)):
        row = {"method": method}
        for key, (_, table, turned, value) in zip(columns, SUMMARY, strict=True):
            found = {each["method"]: each for each in measured[table, turned]["rows"]}
            row[key] = found[method][value] if method in found else None
        rows.append(row)
    return format_table([row for row in rows if any(row[key] for key in columns)], columns)


def format_page(measured: dict[tuple[int, bool], dict], seconds: dict[str, float]) -> str:
    """Write the page of all tables."""
    first = measured[0, False]
    environment = first["environment"]
    parts = [
        "# Real pairs, real peers\n",
        "Made by `benchmarks/real_pairs.py PAIRS STRECHA WEIGHTS --jobs 2`, which calls "
        "`cv-patchpose evaluate`; all numbers are in [results](results/real-pairs). Planar scenes: "
        "five of HPatches, four of Oxford, six of homogr, the 1,000 strongest keypoints. Two "
        "views: fountain-P11 and castle-P19 of Strecha; after the matcher a robust essential "
        "matrix. Turned: image 2 by 60 degrees (planar) or by an angle drawn for each image (two "
        "views). All get the same number of keypoints: where a place has two poses, fewer places "
        "fit in.\n",
        "`detector` is the detector's own pose with one orientation, `detector-all` all of them; "
        "`upright` and `affnet` know that the photographs are upright, the latter adds AffNet's "
        "affine shape, which patch descriptors (HardTFeat) see and SIFT does not; `polar` "
        "is ours, `polar:2` with up to two poses, `polar@angle` with the detector's size, "
        "`resnet18` the paper's network, trained here. Bold is the best of a column. MMA@t and "
        "correct: as in the [README](../README.md#measured). mAA(t): the share of pairs whose pose "
        "is right within 1, 2, ... t degrees, mean of these; easy, medium and hard by the angle "
        "between the optical axes (from 15, from 30 degrees). In two views each method's mAA(10) "
        "is compared with that of `polar` pair by pair: where the difference is not well above its "
        "standard error, other pairs might turn it round.\n",
        *format_summary(measured),
        *format_tables(measured),
        f"{environment['cpu']}; OpenCV {environment['opencv']}, kornia "
        f"{environment.get('kornia')}, commit {environment['commit']}; all of it took "
        f"{sum(seconds.values()) / 60:.0f} minutes.\n",
    ]
    return "\n".join(parts)


def format_tables(measured: dict[tuple[int, bool], dict]) -> list[str]:
    """Show every table that was measured, with its command and where ours is behind."""
    parts = []
    for (number, turned), result in measured.items():
        table = tables()[number]
        title = f"{table.title}, {'turned' if turned else 'as taken'}"
        how = f"{table.options} {table.turned if turned else ''}".strip()
        parts += [f"## {title}\n", f"`evaluate {table.benchmark} {how}`\n"]
        parts += format_table(result["rows"], table.columns)
        parts.append(losses(result["rows"], table.columns))
        if (number, turned) in DRAWN:
            parts += [f"![{name}]({name})\n" for name in picture_names(table, turned)]
    return parts


def picture_names(table: Table, turned: bool) -> list[str]:
    """Name a table's pictures, beside the page."""
    kinds = ("mma", "cost") if table.columns is MATCHING else ("cost", "difficulty")
    return [f"real-pairs/{table.name(turned)}-{kind}.png" for kind in kinds]


def draw(folder: Path, table: Table, turned: bool, result: dict) -> None:
    """Draw a table's pictures."""
    rows = result["rows"]
    plots = draw_plots(rows, [], {row["method"]: row["method"] for row in rows})
    for name, plot in zip(picture_names(table, turned), plots, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        write_file(folder / name, plot.png)


def measure_all(
    options: argparse.Namespace, which: Sequence[tuple[int, bool]]
) -> tuple[dict[tuple[int, bool], dict], dict[str, float]]:
    """Measure tables; return their results and the time that each took, earlier runs included."""
    log = options.results / "seconds.json"
    seconds = json.loads(log.read_text()) if log.exists() else {}
    measured = {}
    for number, turned in which:
        table = tables()[number]
        if options.page_only and not result_path(options, table, turned).exists():
            continue
        start = time.monotonic()
        measured[number, turned] = measure(options, table, turned)
        seconds.setdefault(table.name(turned), time.monotonic() - start)
        write_file(log, (json.dumps(seconds, indent=1) + "\n").encode())
    return measured, seconds


def main() -> None:
    """Measure everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=Path, help="scenes in HPatches' layout")
    parser.add_argument("scenes", type=Path, help="scenes with cameras.json")
    parser.add_argument("weights", type=Path, help="weights of the peers")
    parser.add_argument("--methods", type=lambda text: text.split(","))
    parser.add_argument("--results", type=Path, default=DOCS / "results/real-pairs")
    parser.add_argument("--page", type=Path, default=DOCS / "benchmarks.md")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="three tables, printed, not kept")
    parser.add_argument("--page-only", action="store_true", help="of the tables that are there")
    options = parser.parse_args()
    options.methods = options.methods or (
        QUICK_METHODS if options.quick else {*METHODS, *FEWER_METHODS}
    )
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            options.results = Path(folder)
            print("\n".join(format_tables(measure_all(options, [(n, True) for n in QUICK])[0])))
        return
    options.results.mkdir(parents=True, exist_ok=True)
    every = [(number, turned) for number in range(len(tables())) for turned in (False, True)]
    measured, seconds = measure_all(options, every)
    for number, turned in DRAWN:
        draw(options.page.parent, tables()[number], turned, measured[number, turned])
    write_file(options.page, format_page(measured, seconds).encode())
    print(f"{options.page}: {sum(seconds.values()) / 60:.1f} minutes in all")


if __name__ == "__main__":
    main()
