"""Write the accuracy tables of README.md, of a model card and of docs/performance.md.

They are made from docs/results, where accuracy.sh and family.sh put them.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cv_patchpose.files import write_file

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES = tuple(ROOT / page for page in ("README.md", "models/polar.md", "docs/performance.md"))
MARK = re.compile(r"<!-- table: (\S+) -->\n.*?<!-- end -->", re.DOTALL)
NONE = "-"

POSES = {
    "detector": "SIFT, first orientation",
    "detector-all": "SIFT, all orientations",
    "upright": "upright (angle 0)",
    "polar": "ours (`polar`)",
    "polar:2": "ours, `top_k=2`",
    "polar-large": "ours (`polar-large`)",
}
CORNERS = {
    "upright": "fixed size, upright",
    "polar@angle": "ours, angle only",
    "polar@1passes": "ours, `passes=1`",
    "polar": "ours (`polar`)",
    "polar:2": "ours, `top_k=2`",
    "polar-large": "ours (`polar-large`)",
    "polar-large@4passes": "ours (`polar-large`), `passes=4`",
}
KINDS = {
    "others": "neither tilted nor zoomed much",
    "tilted": "tilted: one axis 1.4 times the other, or more",
    "zoomed": "zoomed by 1.41 or more, either way",
}
MEASURES = {
    "identity": "identity (no change)",
    "detector": "SIFT",
    "gradient-histogram": "gradient histogram, strongest peak",
    "orinet": "OriNet",
    "polar": "ours (`polar`)",
    "polar@2passes": "ours, `passes=2`",
    "polar-large": "ours (`polar-large`)",
}
# Each after the network that its training went on from.
FAMILY = {
    "rings-48.onnx": "rings-48",
    "polar": "polar",
    "rings-64.onnx": "rings-64",
    "rings-64-taught.onnx": "rings-64-taught",
    "rings-192.onnx": "rings-192",
    "polar-large": "polar-large",
}


@dataclass(frozen=True)
class Column:
    """What stands in a column: of which results file, and which figure in which form."""

    title: str
    results: str
    figure: str
    form: str


def _share(title: str, results: str, figure: str) -> Column:
    return Column(title, results, figure, ".3f")


def _count(title: str, results: str, figure: str = "correct_matches") -> Column:
    return Column(title, results, figure, ",.0f")


def _matching(plain: str, rotated: str, thresholds: Iterable[int]) -> list[Column]:
    columns = []
    for name, results in (("", plain), ("rotated: ", rotated)):
        for t in thresholds:
            columns.append(_share(f"{name}MMA@{t}", results, f"mma_{t}"))
        columns.append(_count(f"{name}correct", results))
    return columns


def _pose(results: str, degrees: Iterable[int], before: str = "", kind: str = "") -> list[Column]:
    angles = [
        Column(f"{before}{d}°", results, f"{kind}orientation_within_{d}_deg", ".1f")
        for d in degrees
    ]
    scales = [
        Column(f"{before}1/{d} octave", results, f"{kind}scale_within_1_{d}_octave", ".1f")
        for d in (6, 3)
    ]
    return angles + scales


# The tables by the names at their marks: rows and columns.
TABLES: dict[str, tuple[dict[str, str], list[Column]]] = {
    "first": (
        {name: POSES[name] for name in ("detector-all", "polar:2", "detector", "polar")},
        [
            _count("keypoints", "matching", "keypoints"),
            *_matching("matching", "matching-turned", (3,)),
        ],
    ),
    "matching": (
        POSES,
        [
            _count("keypoints", "matching", "keypoints"),
            _count("matches", "matching", "matches"),
            *_matching("matching", "matching-turned", (1, 3, 5)),
        ],
    ),
    "fine": (
        POSES,
        [
            _count("keypoints", "matching-fine", "keypoints"),
            _count("matches", "matching-fine", "matches"),
            *_matching("matching-fine", "matching-fine-turned", (3,)),
        ],
    ),
    "corners": (
        CORNERS,
        [
            _count("keypoints", "corners", "keypoints"),
            *_matching("corners", "corners-turned", (3,)),
        ],
    ),
    "pose-repeated": (MEASURES, _pose("pose-repeated", (5, 10, 20))),
    "pose-fixed": (MEASURES, _pose("pose-fixed", (5, 10, 20))),
    "clean": (MEASURES, _pose("clean", (5, 10))),
    "limits": (
        KINDS,
        [
            _count("pairs", "limits", "pairs"),
            *_pose("limits", (5, 10)),
            *_pose("limits", (5, 10), "warped: ", "warped_"),
            *_pose("limits", (5, 10), "laid over: ", "aligned_"),
        ],
    ),
    "family": (
        FAMILY,
        [
            *_matching("family-matching", "family-matching-turned", (3,)),
            _count("Harris corners: correct", "family-corners"),
            *_pose("family-pose-repeated", (5, 10), "repeated: ")[:2],
            *_pose("family-pose-fixed", (5, 10), "fixed: "),
        ],
    ),
    "gradients": (
        {"detector": "SIFT, first orientation", **FAMILY},
        [
            *_pose("family-pose-repeated", (5, 10), "points: ")[:2],
            *_pose("family-pose-gradients", (5, 10), "gradients: ")[:2],
        ],
    ),
}
# The other way round, a figure to a row.
CARD_ROWS = {name: POSES[name] for name in ("detector", "polar", "polar-large")}
CARD_COLUMNS = [
    *_matching("matching", "matching-turned", (3,)),
    _count("Harris corners: correct", "corners"),
    _count("rotated: correct", "corners-turned"),
    *_pose("pose-repeated", (5, 10), "repeated SIFT points: within "),
    *_pose("pose-fixed", (5, 10), "fixed windows: within "),
    *_pose("clean", (5, 10), "clean protocol: within "),
]


def format_table(
    rows: dict[str, str], columns: list[Column], read: Callable[[str], dict[str, dict]]
) -> str:
    """Lay a table out, a method to a row.

    Args:
        rows: labels by method; those that none of the results hold are left out.
        columns: of the table.
        read: gives the rows of a results file by method.
    """
    lines = [["", *(column.title for column in columns)]]
    for method, label in rows.items():
        if any(method in read(column.results) for column in columns):
            shown = f"**{label}**" if label.startswith("ours") else label
            cells = [_cell(read(column.results).get(method, {}), column) for column in columns]
            lines.append([shown, *cells])
    return _join(lines)


def format_card(read: Callable[[str], dict[str, dict]]) -> str:
    """Lay the table of a model card out, a figure to a row."""
    lines = [["", *CARD_ROWS.values()]]
    for column in CARD_COLUMNS:
        found = read(column.results)
        lines.append([column.title, *(_cell(found.get(name, {}), column) for name in CARD_ROWS)])
    return _join(lines)


def _join(lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:]))


def _cell(row: dict, column: Column) -> str:
    value = row.get(column.figure)
    return NONE if value is None else format(value, column.form)


def fill(page: str, read: Callable[[str], dict[str, dict]]) -> str:
    """Replace the tables of a page.

    Raises:
        KeyError: A mark that names no table.
    """

    def table(found: re.Match) -> str:
        name = found[1]
        lines = format_card(read) if name == "card" else format_table(*TABLES[name], read)
        return f"<!-- table: {name} -->\n\n{lines}\n\n<!-- end -->"

    return MARK.sub(table, page)


def read_results(name: str) -> dict[str, dict]:
    """Read docs/results/NAME.json: its rows by method."""
    return {
        row["method"]: row for row in json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    }


def main() -> None:
    """Replace what stands between the marks."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for path in PAGES:
        write_file(path, fill(path.read_text(), read_results).encode())


if __name__ == "__main__":
    main()
