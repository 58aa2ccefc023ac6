"""Where patches are sampled: polar and square grids around a keypoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Float64: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class PolarGrid:
    """Rings around a keypoint: log radius along the rows, direction along the columns.

    Column j looks in the direction angle_deg + j * 360 / columns, clockwise on screen; at angle 0
    column 0 looks right. The outermost ring lies on the circle whose diameter is the window.

    Attributes:
        rows: rings, innermost first.
        columns: directions.
        rows_per_octave: rings per doubling of the radius.
        halo: columns repeated on each side; the first one sampled is column -halo.
    """

    rows: int = 40
    columns: int = 72
    rows_per_octave: int = 6
    halo: int = 4

    def __post_init__(self) -> None:
        """Check the counts; ValueError names the first bad one."""
        for name in ("rows", "columns", "rows_per_octave"):
            check_integer(name, getattr(self, name), 1)
        check_integer("halo", self.halo, 0)
        if self.halo > self.columns:
            raise ValueError(f"halo: expected at most {self.columns} columns, got {self.halo}")

    @property
    def radii(self) -> Float64:
        """Radius of each ring, (rows,) float64, in units of the window."""
        octaves = (np.arange(self.rows) - (self.rows - 1)) / self.rows_per_octave
        return 0.5 * 2.0**octaves

    @property
    def spacing(self) -> Float64:
        """Distance between neighbouring samples of each ring, (rows,), in units of the window."""
        return self.radii * max(2 * math.pi / self.columns, math.log(2) / self.rows_per_octave)


@dataclass(frozen=True)
class SquareGrid:
    """A square of size x size samples, turned clockwise on screen by the keypoint's angle.

    Before, row i, column j lies (j - (size - 1) / 2, i - (size - 1) / 2) * window / size away.

    Attributes:
        size: samples along a side.
    """

    size: int = 32

    def __post_init__(self) -> None:
        """Check the size; ValueError if it is below 1."""
        check_integer("size", self.size, 1)


def check_integer(name: str, count: int, least: int) -> None:
    """Raise ValueError unless a count is a whole number of at least `least`."""
    if not isinstance(count, int | np.integer) or count < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {count!r}")
