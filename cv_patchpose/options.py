"""Options of the assigner, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

_MOST_PASSES = 16  # each may double the window where nothing is to be seen


@dataclass(frozen=True, kw_only=True)
class AssignerOptions:
    """What a `PatchPoseAssigner` was asked for; its constructor describes each option.

    Raises:
        ValueError: An option out of range, or two that exclude each other.
        TypeError: An option of the wrong type.
    """

    top_k: int
    assign_scale: bool
    assign_orientation: bool
    keep_duplicates: bool
    magnification: float | None
    window_px: float | None
    scale_prior_octaves: float | Literal["auto"] | None
    passes: int | Literal["auto"]
    num_threads: int | None

    def __post_init__(self) -> None:
        """Check every option."""
        _check_count("top_k", self.top_k)
        for name in ("assign_scale", "assign_orientation", "keep_duplicates"):
            _check_flag(name, getattr(self, name))
        _check_positive("magnification", self.magnification)
        _check_positive("window_px", self.window_px)
        _check_prior(self.scale_prior_octaves)
        _check_count("passes", self.passes, or_auto=True, most=_MOST_PASSES)
        if self.window_px is None:
            return
        if self.magnification is not None:
            raise ValueError("window_px: expected None together with magnification, got both")
        if self.scale_prior_octaves not in ("auto", None, math.inf):
            raise ValueError(
                'scale_prior_octaves: expected "auto" or None together with window_px, '
                f"got {self.scale_prior_octaves}"
            )


def _check_count(name: str, value: Any, *, or_auto: bool = False, most: float = math.inf) -> None:
    if or_auto and isinstance(value, str) and value == "auto":
        return
    if (
        not isinstance(value, (int, np.integer))
        or isinstance(value, bool)
        or not 1 <= value <= most
    ):
        others = '"auto" or ' if or_auto else ""
        bounds = "of at least 1" if most == math.inf else f"from 1 to {most}"
        raise ValueError(f"{name}: expected {others}an integer {bounds}, got {value!r}")


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, (int, np.bool_)) or value not in (0, 1):  # a word would count as True
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _check_positive(name: str, value: Any) -> None:
    if value is None:
        return
    if not _is_number(value):
        raise TypeError(f"{name}: expected a number or None, got {value!r}")
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0 or None, got {value!r}")


def _check_prior(prior: Any) -> None:
    if prior is None or (isinstance(prior, str) and prior == "auto"):
        return
    if not _is_number(prior) or not prior >= 0:
        raise ValueError(
            f'scale_prior_octaves: expected "auto", a number of at least 0 or None, got {prior!r}'
        )
