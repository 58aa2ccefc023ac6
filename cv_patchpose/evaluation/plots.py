"""Plots of a benchmark's results, as PNG files in memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.metrics import MMA_NAMES, MMA_THRESHOLDS_PX
from cv_patchpose.evaluation.samples import Sample, results_of
from cv_patchpose.evaluation.scenes import DIFFICULTIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

_SIZE_INCHES = (6.4, 4.2)
_DPI = 110
# The same in every report, whatever the worst method does; what is larger is in the bin behind.
_HISTOGRAM_LIMITS = {"px": 10.0, "degrees": 20.0, "octaves": 1.0}
_BINS = 10
_LEAST_MS = 0.01  # what fixed angles cost, on an axis that has no 0
_LABEL_GAP, _LABEL_HEIGHT = 1.4, 0.05  # of a name behind its point, and of the axis
_MARKERS = "osD^vP*X<>"


@dataclass(frozen=True)
class Plot:
    """A plot of all methods.

    Attributes:
        title: What it shows.
        note: How to read it.
        png: The file.
    """

    title: str
    note: str
    png: bytes


def require_matplotlib() -> None:
    """Import what plots need.

    Raises:
        ImportError: It is missing; tells how to get it.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("report: expected matplotlib; pip install 'cv-patchpose[eval]'") from (
            error
        )


def draw_plots(
    rows: Sequence[Row], samples: Sequence[Sample[Any]], names: Mapping[str, str]
) -> list[Plot]:
    """Draw every plot that the results have the numbers for.

    Args:
        rows: One per method.
        samples: What they summarize.
        names: What each method is called in the plots.

    Raises:
        ImportError: matplotlib is missing.
    """
    plots = []
    if "mma_1" in rows[0]:
        plots.append(_draw_mma(rows, names))
    for metric, what in (("mma_3", "MMA@3"), ("maa_10", "mAA up to 10 degrees")):
        if metric in rows[0] and "seconds_pose" in rows[0]:
            plots.append(_draw_cost(rows, names, metric, what))
    if "maa_10" in rows[0]:
        plots.append(_draw_difficulties(rows, names))
    return plots + _draw_errors(samples, names)


def _draw_mma(rows: Sequence[Row], names: Mapping[str, str]) -> Plot:
    def draw(axes: Axes) -> None:
        for number, row in enumerate(rows):
            values = [row[name] for name in MMA_NAMES]
            axes.plot(MMA_THRESHOLDS_PX, values, label=names[row["method"]], **_style(number), ms=4)
        axes.set(xlabel="threshold, pixels of image 2", ylabel="share of matches", ylim=(0, None))
        axes.set_xticks(MMA_THRESHOLDS_PX)

    note = "Share of matches within a distance of the truth, mean over pairs."
    return Plot("Mean matching accuracy", note, _render(draw))


def _draw_cost(rows: Sequence[Row], names: Mapping[str, str], metric: str, what: str) -> Plot:
    def draw(axes: Axes) -> None:
        points: list[tuple[float, float, str]] = []
        for number, row in enumerate(rows):
            cost_ms = max(1e3 * row["seconds_pose"], _LEAST_MS)
            style = _style(number) | {"linestyle": "none"}
            points.append((cost_ms, row[metric], names[row["method"]]))
            axes.plot([cost_ms], [row[metric]], **style, ms=8, mfc="none", mew=1.5)
        axes.set(xlabel="time for the poses of an image, ms", ylabel=what, xscale="log")
        axes.margins(x=0.3, y=0.1)
        _label_points(axes, points)

    note = (
        f"{what} against the median time that the poses of one image take; up and to the left "
        f"is better. Times below {_LEAST_MS} ms are drawn there. What a detector spends on "
        "orientations of its own lies in detect, not here."
    )
    return Plot("Accuracy against cost", note, _render(draw))


def _label_points(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write names beside points, from the lowest up, each clear of the one below."""
    low, high = axes.get_ylim()
    free = low
    for x, y, name in sorted(points, key=lambda point: point[1]):
        free = max(y, free)
        arrow = {"arrowstyle": "-", "color": "0.7", "shrinkA": 0, "shrinkB": 4}
        place = (x * _LABEL_GAP, free)
        axes.annotate(name, (x, y), place, fontsize=8, va="center", arrowprops=arrow)
        free += (high - low) * _LABEL_HEIGHT


def _draw_difficulties(rows: Sequence[Row], names: Mapping[str, str]) -> Plot:
    present = [each for each in DIFFICULTIES if rows[0][f"pairs_{each}"]]
    width = 0.8 / len(rows)

    def draw(axes: Axes) -> None:
        for number, row in enumerate(rows):
            places = np.arange(len(present)) + (number - (len(rows) - 1) / 2) * width
            values = [row[f"maa_10_{each}"] for each in present]
            color = _style(number)["color"]
            bars = axes.bar(places, values, 0.9 * width, color=color, label=names[row["method"]])
            axes.bar_label(bars, fmt="%.2f", rotation=90, fontsize=7, padding=2)  # 0 has no bar
        labels = [f"{each}, {rows[0][f'pairs_{each}']} pairs" for each in present]
        axes.set_xticks(range(len(present)), labels)
        axes.set_ylabel("mAA up to 10 degrees")
        axes.margins(y=0.15)

    note = (
        "Easy: optical axes less than 15 degrees apart, medium: less than 30, hard: more. That is "
        "not the angle of the baseline, for which 3-D points would have to be known."
    )
    return Plot("Relative pose by difficulty", note, _render(draw))


def _draw_errors(samples: Sequence[Sample[Any]], names: Mapping[str, str]) -> list[Plot]:
    errors = {
        method: [result.errors() for result in results_of(samples, method)] for method in names
    }
    kinds = dict.fromkeys(kind for parts in errors.values() for part in parts for kind in part)
    plots = []
    for kind in kinds:
        by_method = {
            method: np.concatenate([np.empty(0), *(part[kind] for part in parts)])
            for method, parts in errors.items()
        }
        if any(len(values) for values in by_method.values()):
            plots.append(_draw_histogram(kind, by_method, names))
    return plots


def _draw_histogram(
    kind: str, errors: Mapping[str, NDArray[np.float64]], names: Mapping[str, str]
) -> Plot:
    what, _, unit = kind.rpartition(", ")
    limit = _HISTOGRAM_LIMITS[unit]
    edges = np.linspace(0, limit * (1 + 1 / _BINS), _BINS + 2)
    beyond = (edges[-2] + edges[-1]) / 2

    def draw(axes: Axes) -> None:
        for number, (method, values) in enumerate(errors.items()):
            if len(values):
                counts, _ = np.histogram(np.where(values < limit, values, beyond), edges)
                color = _style(number)["color"]
                axes.stairs(counts / len(values), edges, label=names[method], color=color, lw=1.5)
        axes.set(xlabel=kind, ylabel="share", ylim=(0, None))
        axes.axvspan(limit, edges[-1], color="0.93", zorder=0)
        axes.set_xticks([*edges[:-2:2], beyond], [*(f"{x:g}" for x in edges[:-2:2]), "beyond"])

    note = f"Share of the errors in each bin; the last one holds all from {limit:g} {unit} on."
    return Plot(f"Histogram: {what}", note, _render(draw))


def _style(number: int) -> dict[str, Any]:
    """Make methods differ by colour, and where colours come again by marker."""
    return {"color": f"C{number % 10}", "marker": _MARKERS[number % len(_MARKERS)]}


def _render(draw: Callable[[Axes], None]) -> bytes:
    from matplotlib.figure import Figure  # without pyplot: no window, no state that others share

    figure = Figure(_SIZE_INCHES, dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        # Beside the axes: inside it would lie on what there is most of.
        figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
