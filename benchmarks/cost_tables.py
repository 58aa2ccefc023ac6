"""Write the tables of docs/performance.md from docs/results.

cost.json is from bench_cost.py, assign.jsonl has the lines that runs of bench_assign.py printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from cv_patchpose.files import write_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
COST, RUNS, PAGE = (
    DOCS / "results/cost.json",
    DOCS / "results/assign.jsonl",
    DOCS / "performance.md",
)
BEGIN, END = "<!-- {} -->", "<!-- end of {} -->"
STAGES = ("pyramid", "KeyPoints in", "sampling", "network", "modes", "KeyPoints out")
# Of the table of targets: group, what is compared with which of ours, in words, aim.
_LOOP, _KORNIA = "cv2.warpAffine loop, 32 x 32", "kornia extract_patches_from_pyramid, 32"
_SQUARE, _POLAR = (f"our sampler, 2,048 patches, {grid}" for grid in ("square", "polar"))
_NETWORK = "our network, 1,024 patches"
TARGETS = (
    ("sampling", _LOOP, "ours, square", _SQUARE, 5),
    ("sampling", _LOOP, "ours, polar", _POLAR, 5),
    ("sampling", _KORNIA, "ours, square", _SQUARE, 10),
    ("sampling", _KORNIA, "ours, polar", _POLAR, 10),
    ("network", "OriNet, ONNX Runtime", "ours", _NETWORK, 10),
    ("network", "ResNet-18 pair, ONNX Runtime", "ours", _NETWORK, 60),
)
ASSIGN = (("assign", "`assign`", 0.5), ("assign, top_k=2", "`assign` with `top_k=2`", 0.6))
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
    """Lay one group out: calls down, workloads across."""
    columns = {column_of(row): with_rest(row["times"]) for row in rows}
    names = list(dict.fromkeys(name for times in columns.values() for name in times))
    title = TITLES[rows[0]["group"]] + (f", {image}" if image else "")
    lines = [
        f"**{title}**",
        "",
        "| ms: median (IQR); CPU time | "
        + " | ".join(format_column((None, *column[1:])) for column in columns)
        + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name in names:
        cells = [format_cell(times.get(name)) for times in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_rest(times: dict[str, dict]) -> dict[str, dict]:
    """Add what assign takes beyond its stages; of a difference of medians there is no spread."""
    if not set(STAGES) <= set(times):
        return times
    rest = {
        key: times["assign"][key] - sum(times[stage][key] for stage in STAGES)
        for key in ("median_ms", "cpu_ms")
    }
    return {**times, "the rest of assign": rest}


def format_cell(time: dict | None) -> str:
    if time is None:
        return "-"
    spread = f" ({format_ms(time['iqr_ms'], 2)})" if "iqr_ms" in time else ""
    return f"{format_ms(time['median_ms'])}{spread}; {format_ms(time['cpu_ms'])}"


def format_ms(time: float, digits: int = 3) -> str:
    """Write so many digits, without an exponent."""
    return f"{float(f'{time:.{digits}g}'):,g}"


def format_growth(rows: list[dict]) -> str:
    """Fit CPU time = fixed + slope * keypoints to one thread's calls, weighted by 1 / time."""
    lines = ["| CPU time, 1 thread | fixed, ms | µs per keypoint | largest deviation |"]
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
        f"{environment['commit']}; {names}. {report['repeats']} turns. IQR: interquartile "
        "range; CPU time: of all threads."
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


def format_targets(report: dict, runs: list[dict]) -> str:
    """Set ratios of times beside what was aimed at, by the clock.

    Args:
        report: of bench_cost.py.
        runs: of bench_assign.py, of which those of the last one's commit count.
    """
    lines = ["| | aim | one thread | two threads |", "|---|---|---|---|"]
    runs = [run for run in runs if run["model"] == "polar"]
    commit = runs[-1]["environment"]["commit"]
    runs = [run for run in runs if run["environment"]["commit"] == commit]
    for key, heap in (("times", ""), ("times_warm_heap", ", warm heap")):
        of_heap = [run for run in runs if key in run]
        for name, title, aim in ASSIGN if of_heap else ():
            ratios = {
                threads: [
                    f"{run[key][name]['ratio_to_first']:.2f}"
                    for run in of_heap
                    if run["environment"]["threads"] == threads
                ]
                for threads in (1, 2)
            }
            what = f"{title} over `cv2.SIFT.detect`, {runs[0]['keypoints']:,} keypoints{heap}"
            cells = (", ".join(ratios[threads]) or "-" for threads in (1, 2))
            lines.append(f"| {what} | {aim} | {' | '.join(cells)} |")
    for group, peer, ours, title, aim in TARGETS:
        cells = (f"{ratio_of(report, group, peer, ours, threads):.3g}" for threads in (1, 2))
        lines.append(f"| {peer}, over {title} | {aim} | {' | '.join(cells)} |")
    source = (
        "`assign`: each run of `bench_assign.py` ([results](results/assign.jsonl)); the others: "
        "medians of the tables above."
    )
    lines += ["", source]
    return "\n".join(lines)


def ratio_of(report: dict, group: str, peer: str, ours: str, threads: int) -> float:
    """Compare the medians of two calls on the smaller image."""
    (times,) = (
        row["times"]
        for row in report["rows"]
        if (row["group"], row["threads"]) == (group, threads)
        and (row.get("image"), row.get("keypoints")) in ((None, None), ("0.6 megapixels", 2048))
    )
    own = next(time for name, time in times.items() if name.startswith(ours))
    return times[peer]["median_ms"] / own["median_ms"]


def fill(page: str, mark: str, text: str) -> str:
    """Replace what stands between the marks."""
    begin, end = BEGIN.format(mark), END.format(mark)
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Replace both tables of the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    report = json.loads(COST.read_text())
    runs = [json.loads(line) for line in RUNS.read_text().splitlines()]
    page = fill(PAGE.read_text(), "tables", format_all(report))
    page = fill(page, "targets", format_targets(report, runs))
    write_file(PAGE, page.encode())


if __name__ == "__main__":
    main()
