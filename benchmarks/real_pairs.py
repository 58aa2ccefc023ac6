"""Compare all methods on real pairs of photographs and write docs/benchmarks.md.

Planar scenes by homography-matching, calibrated scenes by two-view, each as photographed and
rotated, with several descriptors and matchers. What is measured is cached by the command, so that a
run that was interrupted goes on. A table whose file is in the folder of results is not measured
again: remove the files to measure a new model.
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
from pathlib import Path

from real_pairs_page import describe_pictures, format_page, format_tables
from real_pairs_tables import DRAWN, FEWER_METHODS, METHODS, QUICK, QUICK_METHODS, Table, tables

from cv_patchpose.evaluation.plots import draw_plots
from cv_patchpose.files import write_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
# Memory that is given back and touched anew for every batch of patches costs the baselines a
# quarter of their time; this keeps it.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}


def result_path(options: argparse.Namespace, table: Table, rotated: bool) -> Path:
    """Name the file of a table's result."""
    return Path(options.results / f"{table.name(rotated)}.json")


def measure(options: argparse.Namespace, table: Table, rotated: bool) -> None:
    """Run one call."""
    output = result_path(options, table, rotated)
    print(f"== {output.stem}", flush=True)
    root = str(options.pairs if table.planar else options.scenes)
    methods = [name for name in table.methods if name in options.methods]
    words = table.words(rotated, root, methods, str(options.weights), options.jobs)
    words += ["--quick"] if options.quick else []
    command = [sys.executable, "-m", "cv_patchpose.cli", *words, "-o", str(output)]
    subprocess.run(command, check=True, env={**os.environ, **KEEP_MEMORY})


def read_result(path: Path) -> dict:
    """Read a result, its columns that are made of others added."""
    result = json.loads(path.read_text())
    for row in result["rows"]:
        row["pose_ms"] = 1e3 * row["seconds_pose"]
        if row.get("maa_10_gain_error"):  # 0 of the first, which is compared with itself
            row["gain"] = f"{row['maa_10_gain']:+.3f} ± {row['maa_10_gain_error']:.3f}"
    return result


def draw(folder: Path, table: Table, rotated: bool, result: dict) -> None:
    """Draw a table's pictures."""
    rows = result["rows"]
    plots = draw_plots(rows, [], {row["method"]: row["method"] for row in rows})
    for name, plot in zip(describe_pictures(table, rotated), plots, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        write_file(folder / name, plot.png)


def measure_all(
    options: argparse.Namespace, which: Sequence[tuple[int, bool]]
) -> tuple[dict[tuple[int, bool], dict], dict[str, float]]:
    """Measure tables; return their results and the time that each took, earlier runs included."""
    log = options.results / "seconds.json"
    seconds = json.loads(log.read_text()) if log.exists() else {}
    measured = {}
    for number, rotated in which:
        table = tables()[number]
        path = result_path(options, table, rotated)
        if not path.exists():
            if options.page_only:
                continue
            start = time.monotonic()
            measure(options, table, rotated)
            seconds[table.name(rotated)] = time.monotonic() - start
            write_file(log, (json.dumps(seconds, indent=1) + "\n").encode())
        measured[number, rotated] = read_result(path)
    return measured, seconds


def main() -> None:
    """Measure everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=Path, help="scenes in HPatches' layout")
    parser.add_argument("scenes", type=Path, help="scenes with cameras.json")
    parser.add_argument("weights", type=Path, help="weights of the baselines")
    parser.add_argument("--methods", type=lambda text: text.split(","))
    parser.add_argument("--results", type=Path, default=DOCS / "results/real-pairs")
    parser.add_argument("--page", type=Path, default=DOCS / "benchmarks.md")
    parser.add_argument("--jobs", type=int, default=2)
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
    every = [(number, rotated) for number in range(len(tables())) for rotated in (False, True)]
    measured, seconds = measure_all(options, every)
    if not measured:
        parser.error(f"--page-only: expected results in {options.results}, got none")
    for number, rotated in (each for each in DRAWN if each in measured):
        draw(options.page.parent, tables()[number], rotated, measured[number, rotated])
    minutes = sum(seconds.values()) / 60
    write_file(options.page, format_page(measured, minutes, KEEP_MEMORY).encode())
    print(f"{options.page}: {minutes:.1f} minutes in all")


if __name__ == "__main__":
    main()
