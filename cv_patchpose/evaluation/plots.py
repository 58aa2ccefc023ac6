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
_Box = tuple[float, float, float, float]

_SIZE_INCHES = (6.4, 4.2)
_DPI = 110
# Ticks of the curves of errors, the same in every report; what is beyond the last is not drawn.
_ERROR_TICKS = {
    "px": (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    "degrees": (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0),
    "octaves": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
}
_CURVE_POINTS = 201
_FAILS_BELOW = 0.25  # of the best: a method that far behind would squash the others
_LEAST_MS = 0.01  # what fixed angles cost, on an axis that has no 0
# Of a name: its distance from its point, its height and that of a letter's width, as shares of the
# axes.
_LABEL_GAP, _LABEL_HEIGHT, _LETTER_WIDTH = 0.025, 0.05, 0.0125
_DASHES = ("-", "--", "-.", ":")
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
    failed = _failed(rows, "mma_3")

    def draw(axes: Axes) -> None:
        for number, row in enumerate(rows):
            if row["method"] not in failed:
                values = [row[name] for name in MMA_NAMES]
                label = names[row["method"]]
                axes.plot(MMA_THRESHOLDS_PX, values, label=label, **_style(number), ms=4)
        _list_failed(axes, rows, failed, names)
        axes.set(xlabel="threshold, pixels of image 2", ylabel="share of matches")
        axes.set_xticks(MMA_THRESHOLDS_PX)

    note = "Share of matches within a distance of the truth, mean over pairs."
    return Plot("Mean matching accuracy", note + _tell_failed(failed, names), _render(draw))


def _draw_cost(rows: Sequence[Row], names: Mapping[str, str], metric: str, what: str) -> Plot:
    failed = _failed(rows, metric)

    def draw(axes: Axes) -> None:
        points: list[tuple[float, float, str]] = []
        for number, row in enumerate(rows):
            if row["method"] not in failed:
                cost_ms = max(1e3 * row["seconds_pose"], _LEAST_MS)
                style = _style(number) | {"linestyle": "none"}
                points.append((cost_ms, row[metric], names[row["method"]]))
                axes.plot([cost_ms], [row[metric]], **style, ms=8, mfc="none", mew=1.5)
        axes.set(xlabel="time for the poses of an image, ms", ylabel=what, xscale="log")
        axes.margins(x=0.2, y=0.2)
        label_points(axes, points)
        _list_failed(axes, rows, failed, names)

    note = (
        f"{what} against the median time that the poses of one image take; up and to the left "
        f"is better. Times below {_LEAST_MS} ms are drawn there. What a detector spends on "
        "orientations of its own lies in detect, not here."
    )
    return Plot("Accuracy against cost", note + _tell_failed(failed, names), _render(draw))


def _failed(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """Return what the methods reach that are too far behind the best to be in its picture."""
    least = _FAILS_BELOW * max(row[metric] for row in rows)
    return {row["method"]: row[metric] for row in rows if row[metric] < least}


def _list_failed(
    axes: Axes, rows: Sequence[Row], failed: Mapping[str, float], names: Mapping[str, str]
) -> None:
    """Put what is not in view in the legend; the picture may stand without its note."""
    for number, row in enumerate(rows):
        if row["method"] in failed:
            label = f"{names[row['method']]}: {failed[row['method']]:.3f}, off the plot"
            style = _style(number) | {"linestyle": "none"}
            axes.plot([], [], label=label, **style, mfc="none")


def _tell_failed(failed: Mapping[str, float], names: Mapping[str, str]) -> str:
    if not failed:
        return ""
    told = ", ".join(names[method] for method in failed)
    return f" Not in view, less than a quarter of the best: {told}."


def label_points(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write names beside points: inside the axes, clear of each other and of other points.

    Args:
        axes: With everything that decides its limits.
        points: Place and name of each.
    """
    axes.autoscale_view()
    to_axes = axes.transScale + axes.transLimits
    places = to_axes.transform([(x, y) for x, y, _ in points])
    taken = [(u, v, _LABEL_GAP, _LABEL_HEIGHT) for u, v in places]
    steps = sorted(range(-20, 21), key=abs)
    for (x, y, name), (u, v) in sorted(
        zip(points, places, strict=True), key=lambda each: -each[0][1]
    ):
        width = _LETTER_WIDTH * len(name)
        side = 1 if u + _LABEL_GAP + width <= 1 else -1
        middle = u + side * (_LABEL_GAP + width / 2)
        heights = (v + step * _LABEL_HEIGHT / 2 for step in steps)
        inside = [h for h in heights if _LABEL_HEIGHT / 2 <= h <= 1 - _LABEL_HEIGHT / 2]
        free = [h for h in inside if not _overlaps((middle, h, width, _LABEL_HEIGHT), taken)]
        height = (free or inside)[0]
        taken.append((middle, height, width, _LABEL_HEIGHT))
        axes.annotate(
            name,
            (x, y),
            (u + side * _LABEL_GAP, height),
            textcoords="axes fraction",
            fontsize=8,
            ha="left" if side > 0 else "right",
            va="center",
            arrowprops={"arrowstyle": "-", "color": "0.7", "shrinkA": 0, "shrinkB": 4},
        )


def _overlaps(box: _Box, others: Sequence[_Box]) -> bool:
    """Whether a box, given by its middle and its size, meets any other."""
    x, y, width, height = box
    return any(
        abs(x - u) < (width + w) / 2 and abs(y - v) < (height + h) / 2 for u, v, w, h in others
    )


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
            plots.append(_draw_shares(kind, by_method, names))
    return plots


def _draw_shares(
    kind: str, errors: Mapping[str, NDArray[np.float64]], names: Mapping[str, str]
) -> Plot:
    what, _, unit = kind.rpartition(", ")
    ticks = _ERROR_TICKS[unit]
    limits = np.geomspace(ticks[0], ticks[-1], _CURVE_POINTS)

    def draw(axes: Axes) -> None:
        for number, (method, values) in enumerate(errors.items()):
            if len(values):
                shares = np.searchsorted(np.sort(values), limits, side="right") / len(values)
                style = _style(number) | {"marker": ""}
                axes.plot(limits, shares, label=names[method], **style, lw=1.5)
        axes.set(xlabel=kind, ylabel="share of errors up to this one", xscale="log")
        axes.set(xlim=(ticks[0], ticks[-1]), ylim=(0, 1.02))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()

    note = (
        "Share of all errors up to each size; higher is better. What a curve lacks of 1 at its "
        "right end is larger still."
    )
    return Plot(f"{what.capitalize()}, cumulative", note, _render(draw))


def _style(number: int) -> dict[str, Any]:
    """Make methods differ by colour, marker, and where curves coincide by dashes.

    The first lie on top: solid lines come again later and would cover them.
    """
    return {
        "color": f"C{number % 10}",
        "linestyle": _DASHES[number % len(_DASHES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "zorder": 3 - number / 100,
    }


def _render(draw: Callable[[Axes], None]) -> bytes:
    from matplotlib.figure import Figure  # without pyplot: no window, no state that others share

    figure = Figure(_SIZE_INCHES, dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        # Beside the axes: inside it would lie on what there is most of.
        figure.legend(
            loc="outside lower center", ncols=4, fontsize=8, frameon=False, handlelength=2.6
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
