"""What the benchmarks count: matching accuracy, correct matches, and pose errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.interface import Estimates
from cv_patchpose.evaluation.samples import Figures

MMA_THRESHOLDS_PX = tuple(range(1, 11))
MMA_NAMES = tuple(f"mma_{px}" for px in MMA_THRESHOLDS_PX)
CORRECT_PX = 3.0
ORIENTATION_LIMITS_DEG = (5, 10, 20)
# Whole bins differ by a limit or not at all, whatever the last digit of their centres is.
_ROUNDING = 1e-9
RIGHT_DEG = 10  # by which pairs are ranked
SCALE_LIMITS_OCTAVES = {"1_6": 1 / 6, "1_3": 1 / 3}
CORNER_LIMITS_PX = (1, 3, 5)
MAA_LIMITS_DEG = (5, 10)


def matching_accuracy(error_px: NDArray[np.float64]) -> list[float]:
    """Share of a pair's matches within each of :data:`MMA_THRESHOLDS_PX`.

    Args:
        error_px: (M,) distance of each match from the truth in image 2, pixels.

    Returns:
        One share in [0, 1] per threshold; zeros when there are no matches.
    """
    if not len(error_px):
        return [0.0] * len(MMA_THRESHOLDS_PX)
    return [float(np.mean(error_px <= threshold)) for threshold in MMA_THRESHOLDS_PX]


def count_distinct_correct(
    xy1_px: NDArray[np.float64], xy2_px: NDArray[np.float64], error_px: NDArray[np.float64]
) -> int:
    """Count the matches that :func:`distinct_correct` chooses."""
    return int(distinct_correct(xy1_px, xy2_px, error_px).sum())


def distinct_correct(
    xy1_px: NDArray[np.float64], xy2_px: NDArray[np.float64], error_px: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Choose correct matches, each location of either image at most once.

    Matches are taken from the most to the least exact; one that reuses a location is left out,
    so several keypoints at one location earn one correct match.

    Args:
        xy1_px: (M, 2) matched locations of image 1.
        xy2_px: (M, 2) matched locations of image 2.
        error_px: (M,) distance from the truth in image 2, pixels.

    Returns:
        (M,) bool, some of the matches within :data:`CORRECT_PX`.
    """
    chosen = np.zeros(len(error_px), np.bool_)
    used1: set[tuple[float, ...]] = set()
    used2: set[tuple[float, ...]] = set()
    for index in np.argsort(error_px, kind="stable"):
        if not error_px[index] <= CORRECT_PX:
            break
        first, second = tuple(xy1_px[index].tolist()), tuple(xy2_px[index].tolist())
        if first not in used1 and second not in used2:
            used1.add(first)
            used2.add(second)
            chosen[index] = True
    return chosen


def homography_accuracy(corner_error_px: Sequence[float]) -> dict[str, float]:
    """Percentage of pairs whose homography is within each of :data:`CORNER_LIMITS_PX`.

    Args:
        corner_error_px: One error per pair, see
            :func:`cv_patchpose.evaluation.geometry.corner_error_px`; inf where none was found.
    """
    error = np.asarray(corner_error_px, np.float64)
    return {
        f"homography_within_{limit}_px": float(100.0 * np.mean(error <= limit))
        for limit in CORNER_LIMITS_PX
    }


def mean_average_accuracy(error_deg: Sequence[float], limit_deg: int) -> float:
    """Mean over 1, 2, ... ``limit_deg`` degrees of the share of estimates within.

    Args:
        error_deg: One error per estimate, at least one; inf where no pose was found.
        limit_deg: The largest threshold.

    Source: Jin et al., "Image Matching across Wide Baselines: From Paper to Practice", IJCV 2020,
        https://doi.org/10.1007/s11263-020-01385-0, section 4.
    """
    thresholds = np.arange(1, limit_deg + 1)[:, None]
    return float(np.mean(np.asarray(error_deg, np.float64) <= thresholds))


def median_seconds(seconds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median time of each stage, under the name ``seconds_STAGE``.

    Args:
        seconds: One mapping per pair, at least one, from stage to seconds.
    """
    return name_seconds(
        {stage: float(np.median([each[stage] for each in seconds])) for stage in seconds[0]}
    )


def name_seconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the time of each stage under the name ``seconds_STAGE``."""
    return {f"seconds_{stage}": value for stage, value in seconds.items()}


@dataclass(frozen=True)
class PoseErrors:
    """Errors of one method at N points.

    Attributes:
        scale_octaves: (N,), NaN where scale is not measured or the method has none.
        angle_deg: (N,), NaN where orientation is not measured or the method has none.
    """

    scale_octaves: NDArray[np.float64]
    angle_deg: NDArray[np.float64]

    MERIT: ClassVar[str] = f"points whose orientation is right within {RIGHT_DEG} degrees"

    @property
    def merit(self) -> float:
        """Higher is better."""
        return float(np.sum(self.angle_deg <= RIGHT_DEG))

    @property
    def summary(self) -> str:
        """In words."""
        return f"is right at {self.merit:.0f} of {len(self.angle_deg)} points"

    def figures(self) -> Figures:
        """Return the shares of the points within the limits."""
        return {**summarize_pose_errors([self])}

    def errors(self) -> dict[str, NDArray[np.float64]]:
        """Return the errors where they are measured."""
        named = {
            "error of orientation, degrees": self.angle_deg,
            "error of scale, octaves": self.scale_octaves,
        }
        return {name: errors[~np.isnan(errors)] for name, errors in named.items()}

    @classmethod
    def restore(cls, content: Figures) -> Self:
        """Make errors of their fields."""
        return cls(**{name: np.asarray(value, np.float64) for name, value in content.items()})


def pose_errors(
    estimates1: Estimates,
    estimates2: Estimates,
    true_scale: NDArray[np.float64] | float,
    true_angle_deg: NDArray[np.float64] | float,
) -> PoseErrors:
    """Compare the change of estimated poses with the true change.

    Args:
        estimates1: N poses in image 1.
        estimates2: Poses of the same points in image 2.
        true_scale: Size in image 2 over size in image 1; NaN to leave scale unmeasured.
        true_angle_deg: Rotation from image 1 to image 2, degrees clockwise; NaN likewise.

    Source:
        Lee, Jeong and Cho, "Self-Supervised Learning of Image Scale and Orientation",
        BMVC 2021, eq. 9.
    """
    ratio = estimates2.size_px / estimates1.size_px
    turn_deg = estimates2.angle_deg - estimates1.angle_deg
    return PoseErrors(
        scale_octaves=np.abs(np.log2(ratio / true_scale)),
        angle_deg=angle_difference_deg(turn_deg, true_angle_deg),
    )


def angle_difference_deg(
    first_deg: NDArray[np.float64], second_deg: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """Absolute difference of angles on the circle, degrees in [0, 180]."""
    return np.asarray(np.abs((first_deg - second_deg + 180.0) % 360.0 - 180.0))


def summarize_pose_errors(results: list[PoseErrors]) -> dict[str, float | int | None]:
    """Percentage of points within each threshold, all results together.

    Args:
        results: Errors of one method; NaN entries are left out.

    Returns:
        Shares by name, None for what the method never says, and the number of points of each.
    """
    angle_deg = np.concatenate([np.empty(0), *(result.angle_deg for result in results)])
    scale_octaves = np.concatenate([np.empty(0), *(result.scale_octaves for result in results)])
    limits_deg = {f"orientation_within_{limit}_deg": limit for limit in ORIENTATION_LIMITS_DEG}
    limits_octaves = {f"scale_within_{k}_octave": v for k, v in SCALE_LIMITS_OCTAVES.items()}
    return {
        **_shares(angle_deg, limits_deg),
        **_shares(scale_octaves, limits_octaves),
        "orientation_points": int(np.sum(~np.isnan(angle_deg))),
        "scale_points": int(np.sum(~np.isnan(scale_octaves))),
    }


def _shares(error: NDArray[np.float64], limits: Mapping[str, float]) -> dict[str, float | None]:
    error = error[~np.isnan(error)]
    if not len(error):
        return dict.fromkeys(limits)
    return {
        name: float(100.0 * np.mean(error <= limit + _ROUNDING)) for name, limit in limits.items()
    }
