"""Results as text: an aligned table, CSV, JSON; and where they were measured."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2

from cv_patchpose.commit import current_commit
from cv_patchpose.evaluation.samples import Sample

_PACKAGES = ("cv-patchpose", "numpy", "onnxruntime", "onnxruntime-gpu", "torch", "kornia")
_LISTED_ELSEWHERE = (
    *("mma_2", "mma_4", "mma_6", "mma_7", "mma_8", "mma_9", "mma_10"),
    *("pairs_", "seconds_"),
)
_SECONDS = "seconds_"
STAGES_TITLE = (
    "Time, ms: detect, pose and describe for an image, match and verify for a pair, medians"
)
_ABSOLUTE_FOLDERS = re.compile(r"(?<![\w.:/-])/(?:[^\s/]+/)+")  # not those of URLs
_FRACTIONS = ("mma_", "maa_")


def describe_environment() -> dict[str, Any]:
    """Name the machine, the versions and the commit a result was measured with."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "threads": cv2.getNumThreads(),
        "commit": current_commit(),
        **package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of this package, OpenCV and what else a result may depend on."""
    versions = {"opencv": cv2.__version__}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def format_json(content: Mapping[str, Any]) -> str:
    """Write JSON; of paths only the name: where files lie is nobody else's business."""
    return json.dumps(content, indent=2, default=_name_of) + "\n"


def _name_of(path: Path) -> str:
    return path.name


def format_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows of named values as CSV with a header; absent ones are empty.

    Args:
        rows: Columns come in the order in which they are first seen.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def list_figures(samples: Sequence[Sample[Any]]) -> list[dict[str, Any]]:
    """Make a row of each sample: sequence, pair, method and each of the figures."""
    return [
        {
            "sequence": sample.sequence,
            "pair": sample.pair,
            "method": sample.method,
            **sample.result.figures(),
        }
        for sample in samples
    ]


def main_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the columns a table on a screen has room for."""
    return [name for name in rows[0] if not name.startswith(_LISTED_ELSEWHERE)]


def stage_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the time of each stage by method in milliseconds, nothing where none is measured."""
    return [
        {"method": row["method"]}
        | {
            name.removeprefix(_SECONDS): 1e3 * row[name]
            for name in row
            if name.startswith(_SECONDS)
        }
        for row in rows
        if any(name.startswith(_SECONDS) for name in row)
    ]


def strip_folders(text: str, root: Path) -> str:
    """Leave of paths in a message what lies below the root, of others the name."""
    for folder in {str(root), str(root.resolve())}:
        text = re.sub(rf"(?<![\w./-]){re.escape(folder)}{re.escape(os.sep)}", "", text)
    return _ABSOLUTE_FOLDERS.sub("", text)


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Align rows of named numbers under their names.

    Args:
        rows: One mapping per line, all with the same keys.

    Returns:
        The table; absent numbers are "-".
    """
    names = main_columns(rows)
    lines = [names] + [[format_cell(name, row[name]) for name in names] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def format_cell(name: str, value: Any) -> str:
    """Write a number with the digits its column needs; "-" if it is absent."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if name.startswith(_FRACTIONS) else f"{value:.1f}"
    return str(value)
