"""The log of a training run as a table, always written whole."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from cv_patchpose.files import write_file

Row: TypeAlias = Mapping[str, float]

_LOGGER = logging.getLogger(__name__)


def read_rows(path: Path, keypoints: int) -> list[Row]:
    """Read what a log says of the first keypoints; rows that make no sense are left out.

    Args:
        path: a log.csv; a missing or unreadable one has no rows.
        keypoints: rows written after more keypoints are left out.
    """
    rows: list[Row] = []
    try:
        with path.open(newline="", errors="replace") as file:
            for row in csv.DictReader(file):
                with contextlib.suppress(TypeError, ValueError):
                    rows.append({name: float(value) for name, value in row.items()})
    except FileNotFoundError:
        return []  # stopped before the first validation
    except (OSError, csv.Error) as error:
        _LOGGER.warning("%s: %s", path, error)
    return [row for row in rows if row.get("keypoints", float("inf")) <= keypoints]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows, all of the same columns and at least one."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.10g}" for name, value in row.items()})
    write_file(path, text.getvalue().encode())
