"""Write the tables of docs/performance.md from docs/results/cost.json, which bench_cost.py made."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS, PAGE = DOCS / "results" / "cost.json", DOCS / "performance.md"
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
TITLES = {
    "sampling": "Sampling",
    "stages": "`assign`, its stages and SIFT",
    "network": "Networks, 1,024 patches",
}


def column_of(row: dict) -> tuple:
    """Name what a column holds beside its group."""
    return row.get("image"), row.get("keypoints"), row["threads"]


def format_column(column: tuple) -> str:
    image, keypoints, threads = column
    parts = [image, keypoints and f"{keypoints:,}", f"{threads} thread{'s' * (threads > 1)}"]
    return ", ".join(part for part in parts if part)


def format_group(rows: list[dict], image: str | None) -> str:
    """Lay one group out: calls down, workloads across; each cell is median (spread), CPU time."""
    columns = {column_of(row): row["times"] for row in rows}
    names = list(dict.fromkeys(name for times in columns.values() for name in times))
    title = TITLES[rows[0]["group"]] + (f", {image}" if image else "")
    lines = [
        f"**{title}**",
        "",
        "| ms | " + " | ".join(format_column((None, *column[1:])) for column in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name in names:
        cells = [format_cell(times.get(name)) for times in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_cell(time: dict | None) -> str:
    if time is None:
        return "-"
    return f"{time['median_ms']:.3g} ({time['iqr_ms']:.2g}), {time['cpu_ms']:.3g}"


def format_growth(rows: list[dict]) -> str:
    """Fit CPU time = fixed + slope * keypoints to one thread's calls, weighted by 1 / time."""
    lines = ["| CPU time, 1 thread | fixed, ms | us per keypoint | largest deviation |"]
    lines.append("|---|---|---|---|")
    chosen = {
        "sampling": ("ours, square", "ours, polar"),
        "stages": ("assign",),
    }
    for image in dict.fromkeys(row.get("image") for row in rows if "image" in row):
        for group, names in chosen.items():
            wanted = [
                row
                for row in rows
                if (row["group"], row.get("image"), row["threads"]) == (group, image, 1)
            ]
            count = np.array([row["keypoints"] for row in wanted], float)
            every = (
                [name for name in wanted[0]["times"] if name.startswith(names)] if wanted else []
            )
            for name in every:
                time = np.array([row["times"][name]["cpu_ms"] for row in wanted])
                system = np.column_stack([np.ones_like(count), count]) / time[:, None]
                fixed, slope = np.linalg.lstsq(system, np.ones_like(time), rcond=None)[0]
                worst = np.abs((fixed + slope * count) / time - 1).max()
                lines.append(
                    f"| {name}, {image} | {fixed:.2g} | {1e3 * slope:.3g} | {100 * worst:.0f}% |"
                )
    return "**Growth with the number of keypoints**\n\n" + "\n".join(lines)


def format_all(report: dict) -> str:
    rows, environment = report["rows"], report["environment"]
    versions = ("opencv", "numpy", "onnxruntime", "torch", "kornia")
    names = ", ".join(f"{name} {environment[name]}" for name in versions if name in environment)
    head = (
        f"{environment['cpu']}, {environment['cpus']} CPUs, kernel {report['simd']}, commit "
        f"{environment['commit']}; {names}. {report['repeats']} turns. Each cell: median "
        "(interquartile range), CPU time of all threads."
    )
    start = report["start"]
    parts = [
        head,
        f"In a fresh interpreter, CPU time: `import cv_patchpose` {start['import_ms']:.0f} ms on "
        f"top of the {start['numpy_cv2_ms']:.0f} ms of NumPy and OpenCV; the first `assign`, ONNX "
        f"Runtime's import included, {start['first_assign_ms']:.0f} ms more.",
    ]
    for group in TITLES:
        of_group = [row for row in rows if row["group"] == group]
        for image in dict.fromkeys(row.get("image") for row in of_group):
            parts.append(format_group([r for r in of_group if r.get("image") == image], image))
    return "\n\n".join([*parts, format_growth(rows)])


def main() -> None:
    """Replace what stands between the marks."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    tables = format_all(json.loads(RESULTS.read_text()))
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")


if __name__ == "__main__":
    main()
