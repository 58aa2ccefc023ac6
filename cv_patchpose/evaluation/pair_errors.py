"""Errors of relative poses where methods give several candidates and histograms of whole bins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.metrics import (
    PoseErrors,
    angle_difference_deg,
    summarize_pose_errors,
)
from cv_patchpose.evaluation.patch_readings import Readings
from cv_patchpose.evaluation.samples import Figures

_ARGMAX_COLUMNS = (
    "orientation_within_5_deg",
    "orientation_within_10_deg",
    "scale_within_1_6_octave",
    "scale_within_1_3_octave",
)


@dataclass(frozen=True)
class PairErrors:
    """Errors of a method on the N pairs of one keypoint, or of the points of two images.

    Attributes:
        best_of: The smallest errors among the first 1, 2, ..., K candidates of both patches; NaN
            beyond the first of a method that gives one.
        argmax: Those of the fullest bins.
    """

    best_of: tuple[PoseErrors, ...]
    argmax: PoseErrors

    MERIT: ClassVar[str] = PoseErrors.MERIT

    @property
    def merit(self) -> float:
        """Higher is better."""
        return self.best_of[0].merit

    @property
    def summary(self) -> str:
        """In words."""
        return self.best_of[0].summary

    def figures(self) -> Figures:
        """Return the shares of the pairs within the limits."""
        return {**summarize_pair_errors([self])}

    def errors(self) -> dict[str, NDArray[np.float64]]:
        """Return the errors of the best candidates."""
        return self.best_of[0].errors()

    @classmethod
    def restore(cls, content: Figures) -> Self:
        """Make errors of their fields."""
        best_of = tuple(PoseErrors.restore(each) for each in content["best_of"])
        return cls(best_of, PoseErrors.restore(content["argmax"]))


def compare_readings(
    base: Readings,
    moved: Readings,
    octaves: NDArray[np.float64],
    turn_deg: NDArray[np.float64],
    top_k: int,
) -> PairErrors:
    """Compare what a method says of N patches, or of one, and of N others.

    Args:
        base: Of the first patches.
        moved: Of the others, with as many candidates: K, or one.
        octaves: (N,) true change of log2 of the scale; NaN to leave it unmeasured.
        turn_deg: (N,) true rotation, degrees clockwise; NaN likewise.
        top_k: K, candidates that were asked for.
    """
    octave_errors = np.abs(_changes(base.octaves, moved.octaves) - octaves[:, None, None])
    angle_errors = angle_difference_deg(
        _changes(base.angle_deg, moved.angle_deg), turn_deg[:, None, None]
    )
    return PairErrors(
        best_of=tuple(
            PoseErrors(_smallest(octave_errors, k), _smallest(angle_errors, k))
            for k in range(1, top_k + 1)
        ),
        argmax=PoseErrors(
            np.abs(moved.argmax_octaves - base.argmax_octaves - octaves),
            angle_difference_deg(moved.argmax_deg - base.argmax_deg, turn_deg),
        ),
    )


def summarize_pair_errors(results: Sequence[PairErrors]) -> dict[str, float | int | None]:
    """Percentage of pairs within each threshold, all results together.

    Args:
        results: Errors of one method.

    Returns:
        The shares of :func:`~cv_patchpose.evaluation.metrics.summarize_pose_errors`; those of the
        fullest bins, with _argmax behind their names; and, where several candidates were asked
        for, the recall with the first k of them, @k behind its name.

    Source:
        Lee, Jeong and Cho, "Self-Supervised Learning of Image Scale and Orientation",
        BMVC 2021, eq. 8, eq. 9 and Table 2.
    """
    argmax = summarize_pose_errors([result.argmax for result in results])
    best_of = [
        summarize_pose_errors([result.best_of[k] for result in results])
        for k in range(max((len(result.best_of) for result in results), default=1))
    ]
    row = best_of[0] | {f"{name}_argmax": argmax[name] for name in _ARGMAX_COLUMNS}
    if len(best_of) > 1:
        for k, summary in enumerate(best_of, 1):
            row[f"recall_orientation_10_deg@{k}"] = summary["orientation_within_10_deg"]
            row[f"recall_scale_1_3_octave@{k}"] = summary["scale_within_1_3_octave"]
    return row


def _changes(base: NDArray[np.float64], moved: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, K, K) changes from every candidate of one patch to every one of N others."""
    return moved[:, :, None] - base[:, None, :]


def _smallest(errors: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """(N,) smallest of (N, K, K) among the first candidates of both, NaN where all are."""
    if count > errors.shape[1] == 1:  # a method of one candidate has no recall with more
        return np.full(len(errors), np.nan)
    first = errors[:, :count, :count]
    smallest = np.where(np.isnan(first), np.inf, first).min((1, 2))
    return np.where(np.isinf(smallest), np.nan, smallest)
