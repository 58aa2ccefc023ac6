"""Plots: what they show does not vanish behind what fails, and names can be read."""

from __future__ import annotations

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from cv_patchpose.evaluation.plots import draw_plots, label_points
from cv_patchpose.evaluation.results import PairResult, TwoViewResult
from cv_patchpose.evaluation.samples import Sample


def test_errors_beyond_the_axis_are_missing_from_the_curve():
    def draw(worst):
        samples = [
            Sample("s", str(n), "m", PairResult(9, 9, 9, [0.1] * 10, corner_error=error))
            for n, error in enumerate((0.5, 1.0, worst))
        ]
        (plot,) = draw_plots([{"method": "m"}], samples, {"m": "m"})
        return plot.png

    assert len({draw(worst) for worst in (30.0, 1e6, np.inf)}) == 1
    assert draw(2.0) != draw(30.0)


def test_good_poses_are_told_apart():
    """Errors of 0.1 and of 1 degree are not in one bin."""
    pictures = []
    for error in (0.1, 1.0):
        samples = [Sample("s", "1", "m", TwoViewResult("easy", (error,), 9, 5))]
        (plot,) = draw_plots([{"method": "m"}], samples, {"m": "m"})
        pictures.append(cv2.imdecode(np.frombuffer(plot.png, np.uint8), cv2.IMREAD_GRAYSCALE))
    assert np.abs(pictures[0].astype(float) - pictures[1]).max() > 50


def test_methods_that_fail_do_not_squash_the_others():
    rows = [
        {"method": name, "seconds_pose": cost, **{f"mma_{px}": share for px in range(1, 11)}}
        for name, cost, share in (("a", 0.01, 0.5), ("b", 0.1, 0.52), ("c", 0.2, 0.004))
    ]
    names = {"a": "a", "b": "b", "c": "name of c"}
    for plot, worse in zip(draw_plots(rows, [], names), _with_worse(rows, names), strict=True):
        assert "Not in view, less than a quarter of the best: name of c." in plot.note
        height = 300  # of the axes; below is the legend, which tells the figures
        one, other = (
            cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[:height]
            for png in (plot.png, worse.png)
        )
        assert np.array_equal(one, other)


def _with_worse(rows, names):
    worse = {f"mma_{px}": 0.001 for px in range(1, 11)}
    return draw_plots([*rows[:2], rows[2] | worse], [], names)


def test_names_beside_points_lie_inside_and_apart():
    figure = Figure((6.4, 4.2), dpi=110)
    axes = figure.subplots()
    points = [(10.0, 0.52, "polar"), (11.0, 0.521, "polar:2"), (0.01, 0.3, "detector-all")]
    points += [(900.0, 0.5205, "orinet+affnet"), (12.0, 0.3, "upright"), (900.0, 0.52, "resnet18")]
    for x, y, _ in points:
        axes.plot([x], [y], "o")
    axes.set_xscale("log")
    axes.margins(x=0.2, y=0.2)
    label_points(axes, points)
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without their arrows
    assert sorted(text.get_text() for text in axes.texts) == sorted(name for *_, name in points)
    for number, box in enumerate(boxes):
        assert frame.count_contains(box.corners()) == 4
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert not any(box.contains(*axes.transData.transform(point[:2])) for point in points)
