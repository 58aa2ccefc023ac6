"""What the benchmarks of matching say of a method on a pair."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.metrics import (
    MAA_LIMITS_DEG,
    MMA_NAMES,
    mean_average_accuracy,
    name_seconds,
)
from cv_patchpose.evaluation.samples import Figures

_LOST_DEG = 30.0  # a pose further off is of no use at all


@dataclass(frozen=True)
class PairResult:
    """What one method got on one pair.

    Attributes:
        keypoints: Mean number of described keypoints of the two images.
        matches: Number of matches.
        correct: Number of distinct correct matches.
        accuracy: Share of matches within 1, 2, ... 10 px.
        refused: Whether the descriptor raised an error over the fields it found, in either image;
            there are no matches then.
        corner_error: Of the homography that fits the matches, pixels; inf where none does.
        seconds: Time of each stage.
    """

    keypoints: float
    matches: int
    correct: int
    accuracy: list[float]
    refused: bool = False
    corner_error: float = math.inf
    seconds: Mapping[str, float] = field(default_factory=dict)
    MERIT: ClassVar[str] = "distinct correct matches"

    @property
    def summary(self) -> str:
        """In words."""
        return f"has {self.correct} distinct correct matches"

    @property
    def merit(self) -> float:
        """Higher is better."""
        return float(self.correct)

    def figures(self) -> Figures:
        """Return the numbers by name."""
        return {
            **dict(zip(MMA_NAMES, self.accuracy, strict=True)),
            "matches": self.matches,
            "correct_matches": self.correct,
            "keypoints": self.keypoints,
            "refused": int(self.refused),
            "corner_error_px": self.corner_error,
            **name_seconds(self.seconds),
        }

    def errors(self) -> dict[str, NDArray[np.float64]]:
        """Return the error of the homography."""
        return {"mean error of the corners, px": np.array([self.corner_error])}

    @classmethod
    def restore(cls, content: Figures) -> Self:
        """Make a result of its fields."""
        return cls(**content)


@dataclass(frozen=True)
class TwoViewResult:
    """What one method got on one pair.

    Attributes:
        difficulty: Of the pair.
        errors_deg: Of the poses estimated from the matches in several orders, each as good a guess
            as the other; inf where none was found.
        matches: Number of pairs of places matched.
        inliers: Mean number of those that agree with a pose.
        keypoints: Mean number of described keypoints of the two images.
        seconds: Time of each stage.
        refused: Whether the descriptor raised an error over the fields it found.
    """

    difficulty: str
    errors_deg: tuple[float, ...]
    matches: int
    inliers: float
    keypoints: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    refused: bool = False
    MERIT: ClassVar[str] = f"smallness of the pose's error, beyond {_LOST_DEG:g} degrees all alike"

    @property
    def summary(self) -> str:
        """In words."""
        found = math.isfinite(self.error_deg)
        return f"is {self.error_deg:.1f} degrees off" if found else "finds no pose"

    @property
    def error_deg(self) -> float:
        """Median error of the pose."""
        return float(np.median(self.errors_deg))

    @property
    def merit(self) -> float:
        """Higher is better."""
        return -min(self.error_deg, _LOST_DEG)

    def figures(self) -> Figures:
        """Return the numbers by name."""
        return {
            "difficulty": self.difficulty,
            "error_deg": self.error_deg,
            **{f"maa_{x}": mean_average_accuracy(self.errors_deg, x) for x in MAA_LIMITS_DEG},
            "inliers": self.inliers,
            "matches": self.matches,
            "keypoints": self.keypoints,
            "refused": int(self.refused),
            **name_seconds(self.seconds),
        }

    def errors(self) -> dict[str, NDArray[np.float64]]:
        """Return the errors of the pose."""
        return {"error of the relative pose, degrees": np.array(self.errors_deg)}

    @classmethod
    def restore(cls, content: Figures) -> Self:
        """Make a result of its fields."""
        return cls(**content | {"errors_deg": tuple(content["errors_deg"])})
