"""The log of a training run as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter

from cv_patchpose.files import write_file
from cv_patchpose.training.log import Row

_PANELS = {
    "orientation, % of pairs": (
        "orientation_within_5_deg",
        "orientation_within_10_deg",
    ),
    "scale, % of pairs": ("scale_within_1_6_octave", "scale_within_1_3_octave"),
}
_LOSSES = ("scale_loss", "orientation_loss")  # 0 where it is not learnt
_STYLES = {"clean": "--", "spoilt": "-", "val": "-"}


def draw_curves(rows: Sequence[Row], picture: Path) -> None:
    """Draw losses and validation accuracies against the keypoints seen.

    Args:
        rows: of the run's log, at least one.
        picture: PNG file to write.
    """
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    seen = columns["keypoints"]
    panels = {
        title: metrics
        for title, metrics in _PANELS.items()
        if any(f"{kind}_{metric}" in columns for kind in _STYLES for metric in metrics)
    }
    size = 4.3 * (1 + len(panels)), 4.0
    figure, (axes,) = plt.subplots(1, 1 + len(panels), figsize=size, squeeze=False)
    figure.set_layout_engine("constrained")
    for name in (loss for loss in _LOSSES if any(columns[loss])):
        axes[0].plot(seen, columns[name], marker=".", label=name.replace("_", " "))
    axes[0].set_title("training loss, nats")
    # From 0, as a loss that stays must not look as if it fell; the highest keeps off the frame.
    axes[0].set_ylim(0, 1.1 * axes[0].get_ylim()[1])
    for axis, (title, metrics) in zip(axes[1:], panels.items(), strict=True):
        for number, metric in enumerate(metrics):
            for kind, style in _STYLES.items():
                if values := columns.get(f"{kind}_{metric}"):
                    label = f"{_threshold(metric)}, {kind}"
                    axis.plot(seen, values, style, color=f"C{number}", marker=".", label=label)
        axis.set_title(f"validation: {title}")
        axis.set_ylim(0, 100)
    for axis in axes:
        axis.set_xlabel("keypoints seen")
        axis.xaxis.set_major_formatter(EngFormatter())
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    plt.close(figure)
    write_file(picture, buffer.getvalue())


def _threshold(metric: str) -> str:
    """Read the threshold in a metric's name: within 5 deg, within 1/6 octave."""
    return metric.split("_", 1)[1].replace("1_", "1/").replace("_", " ")
