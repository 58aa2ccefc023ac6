"""A benchmark's results as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from cv_patchpose.evaluation.examples import Example, Examples
from cv_patchpose.evaluation.plots import Plot
from cv_patchpose.evaluation.report import STAGES_TITLE, format_cell, main_columns, stage_rows

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e5e5e5; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.facts td { text-align: left; }
.best { font-weight: 700; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 1.5rem; }
figure { margin: 0 0 1.5rem; }
figure img { width: 100%; height: auto; }
figcaption { color: #555; font-size: 13px; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$summary</p>
<h2>Methods</h2>
<div class="wide">$rows</div>
<p>$reading</p>
$stages
<h2>Plots</h2>
<div class="plots">$plots</div>
<h2>Examples</h2>
$examples
<h2>Not measured</h2>
$failures
<h2>Protocol</h2>
$protocol
<h2>Environment</h2>
$environment
</body>
</html>
""")

_READING = (
    "The best of each column is bold. Shares within a limit are percentages, MMA and mAA are "
    "fractions. Every column and every pair are in the tables beside this page: "
    '<a href="report.json">report.json</a>, <a href="rows.csv">rows.csv</a>, '
    '<a href="pairs.csv">pairs.csv</a>.'
)
_GAIN = "maa_10_gain"
_READING_GAIN = (
    " maa_10_gain is a method's maa_10 minus that of the first method, {first}, mean over pairs; "
    "maa_10_gain_error is its standard error, which takes pairs for independent: a gain that is "
    "not well above it may be chance."
)
_STAGES_NOTE = (
    "Detection is shared by all methods. What a detector spends on orientations of its own lies in "
    "detect, not in pose."
)
_HIGHER_IS_BETTER = ("mma_", "maa_", "correct_matches", "homography_within_", "inliers")
_SHARES = ("orientation_within_", "scale_within_", "recall_")


def render_page(
    content: Mapping[str, Any],
    names: Mapping[str, str],
    plots: Sequence[Plot],
    examples: Examples | None,
    reused: tuple[int, int],
) -> str:
    """Write the page.

    Args:
        content: What the JSON file holds.
        names: What each method is called.
        plots: Of the rows.
        examples: Pairs, if there are any to show.
        reused: How many results are from earlier runs, and how many there are.

    Returns:
        HTML without any reference to another site.
    """
    return _PAGE.substitute(
        title=escape(f"{content['benchmark']} on {content['protocol']['root']}"),
        summary=escape(_tell_timings(*reused)),
        rows=_table(content["rows"], names),
        reading=_READING + _explain_gain(content["rows"], names),
        stages=_stage_section(content["rows"], names),
        plots="".join(_figure(plot.png, "png", plot.title, plot.note) for plot in plots),
        examples=_example_section(examples),
        failures=_facts(content["failures"], "Everything was measured."),
        protocol=_facts(dict(content["protocol"]) | {"methods": tuple(names.values())}),
        environment=_facts(content["environment"]),
    )


def _tell_timings(reused: int, total: int) -> str:
    text = f"{total} results, one for each pair and method."
    if reused:
        text += (
            f" {reused} of them were measured by earlier runs of the same settings, models, files "
            "and code, and their times are of those runs."
        )
    return text


def _explain_gain(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    if _GAIN not in rows[0]:
        return ""
    return _READING_GAIN.format(first=escape(names[rows[0]["method"]]))


def _table(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    columns = main_columns(rows)
    best = {column: _best(rows, column) for column in columns[1:]}
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = []
    for row in rows:
        cells = [f"<td>{escape(names[row['method']])}</td>"]
        for column in columns[1:]:
            text = format_cell(column, row[column])
            mark = ' class="best"' if text == best[column] else ""
            cells.append(f"<td{mark}>{escape(text)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _stage_section(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    stages = stage_rows(rows)
    if not stages:
        return ""
    return (
        f'<h3>{STAGES_TITLE}</h3><div class="wide">{_table(stages, names)}</div>'
        f"<p>{_STAGES_NOTE}</p>"
    )


def _best(rows: Sequence[Mapping[str, Any]], column: str) -> str | None:
    """Return the best of a column as it is shown; None where nothing is better than the rest."""
    values = [row[column] for row in rows if row[column] is not None]
    judged = column.startswith(_HIGHER_IS_BETTER + _SHARES) and not column.startswith(_GAIN)
    if not judged or len(rows) < 2 or not any(values):
        return None
    return format_cell(column, max(values))


def _example_section(examples: Examples | None) -> str:
    if examples is None:
        return "<p>None: they need a benchmark of pairs and two methods.</p>"
    if not (examples.best or examples.worst):
        return f"<p>{escape(examples.rule)}</p><p>None is left.</p>"
    return (
        f"<p>{escape(examples.rule)}</p>"
        + _example_figures("Most gained", examples.best)
        + _example_figures("Least gained or most lost", examples.worst)
    )


def _example_figures(title: str, examples: Iterable[Example]) -> str:
    figures = "".join(_figure(each.jpeg, "jpeg", each.caption) for each in examples)
    return f"<h3>{title}</h3>{figures}" if figures else ""


def _figure(content: bytes, kind: str, title: str, note: str = "") -> str:
    data = base64.b64encode(content).decode()
    caption = f"<strong>{escape(title)}</strong> {escape(note)}"
    return (
        f'<figure><img alt="{escape(title)}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _facts(facts: Mapping[str, Any], otherwise: str = "") -> str:
    if not facts:
        return f"<p>{escape(otherwise)}</p>"
    lines = (
        f"<tr><td>{escape(name)}</td><td>{escape(_plain(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f'<table class="facts">{"".join(lines)}</table>'


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, Path):
        return value.name  # where files lie is nobody else's business
    return "-" if value is None else str(value)
