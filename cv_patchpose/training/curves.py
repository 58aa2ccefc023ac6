"""The log of a training run as a picture."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_PANELS = {
    "orientation, % of pairs": (
        "orientation_within_5_deg",
        "orientation_within_10_deg",
    ),
    "scale, % of pairs": ("scale_within_1_6_octave", "scale_within_1_3_octave"),
}
_STYLES = {"clean": "--", "spoilt": "-"}


def draw_curves(log: Path, picture: Path) -> None:
    """Draw losses and validation accuracies against the keypoints seen.

    Args:
        log: The run's log.csv.
        picture: PNG file to write.
    """
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: [float(row[name]) for row in rows] for name in rows[0]}
    seen = columns["keypoints"]
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for name in ("scale_loss", "orientation_loss"):
        axes[0].plot(seen, columns[name], marker=".", label=name.replace("_", " "))
    axes[0].set_title("training loss, nats")
    for axis, (title, metrics) in zip(axes[1:], _PANELS.items(), strict=True):
        for number, metric in enumerate(metrics):
            for views, style in _STYLES.items():
                axis.plot(
                    seen,
                    columns[f"{views}_{metric}"],
                    style,
                    color=f"C{number}",
                    marker=".",
                    label=f"{metric.split('_', 1)[1].replace('_', ' ')}, {views} views",
                )
        axis.set_title(f"validation: {title}")
        axis.set_ylim(0, 100)
    for axis in axes:
        axis.set_xlabel("keypoints seen")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    temporary = picture.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    plt.close(figure)
    os.replace(temporary, picture)
