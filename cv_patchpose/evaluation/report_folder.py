"""A folder with everything a benchmark found: a page to read and tables to work with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cv_patchpose.evaluation.examples import ShowPair, draw_examples
from cv_patchpose.evaluation.page import render_page
from cv_patchpose.evaluation.plots import draw_plots, require_matplotlib
from cv_patchpose.evaluation.report import format_csv, format_json, list_figures
from cv_patchpose.evaluation.runner import Outcome
from cv_patchpose.files import write_file

PAGE, JSON, ROWS, PAIRS = "report.html", "report.json", "rows.csv", "pairs.csv"


def prepare_report(folder: Path) -> None:
    """Make the folder and check what a report needs, before the work and not after it.

    Raises:
        ValueError: It is a file.
        OSError: The folder cannot be made.
        ImportError: matplotlib is missing.
    """
    require_matplotlib()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"report: expected a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)


def write_report(
    folder: Path,
    content: Mapping[str, Any],
    outcome: Outcome,
    protocol: Any,
    show: ShowPair | None,
) -> None:
    """Write the page and the tables, each whole or not at all.

    Args:
        folder: An existing folder.
        content: What the JSON file holds.
        outcome: What was measured.
        protocol: And how.
        show: Makes a pair ready to be drawn, if the benchmark's can be.

    Raises:
        OSError: A file cannot be written.
    """
    names = short_names(protocol.methods)
    examples = show and draw_examples(outcome.samples, outcome.units, show, protocol, names)
    plots = draw_plots(outcome.rows, outcome.samples, names)
    page = render_page(content, names, plots, examples or None, outcome.reused)
    files = {
        JSON: format_json(content),
        ROWS: format_csv(outcome.rows),
        PAIRS: format_csv(list_figures(outcome.samples)),
        PAGE: page,
    }
    for name, text in files.items():
        write_file(folder / name, text.encode())


def short_names(methods: Sequence[str]) -> dict[str, str]:
    """Call methods that are files by the file's name, where that tells them apart."""
    last = {method: Path(method).name for method in methods}
    shared = [name for name in last.values() if list(last.values()).count(name) > 1]
    return {method: method if name in shared else name for method, name in last.items()}
