"""What benchmarks measure: one result per pair and method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.matching import Matches

Figures = dict[str, Any]


class Result(Protocol):
    """What one method got on one pair; a dataclass of numbers, texts, lists and arrays."""

    def figures(self) -> Figures:
        """Return its numbers by name, the same names for each pair of a benchmark."""

    def errors(self) -> dict[str, NDArray[np.float64]]:
        """Return its errors by what they are and their unit, to be drawn as a distribution."""

    @classmethod
    def restore(cls, content: Figures) -> Self:
        """Make a result from its fields as they come out of a JSON file.

        Raises:
            TypeError: Other fields than those of a result.
        """


class RankedResult(Result, Protocol):
    """A result by which pairs can be ranked.

    Attributes:
        MERIT: What the merit is, in words.
    """

    MERIT: ClassVar[str]

    @property
    def merit(self) -> float:
        """Higher is better."""

    @property
    def summary(self) -> str:
        """What to say of it under a picture, behind the method's name."""


R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class ShownPair:
    """A pair as a picture wants it.

    Attributes:
        image1: (h, w, 3) uint8, BGR.
        image2: Likewise.
        matches: Of each method.
        counted: What those that are drawn are called.
    """

    image1: NDArray[np.uint8]
    image2: NDArray[np.uint8]
    matches: dict[str, Matches]
    counted: str = "inliers"


@dataclass(frozen=True)
class Sample(Generic[R]):
    """A result and where it is from.

    Attributes:
        sequence: Name of the sequence, scene, photograph or shard.
        pair: Name of the pair, view or keypoint in it.
        method: Name.
        result: What was measured.
        reused: Whether an earlier run measured it.
    """

    sequence: str
    pair: str
    method: str
    result: R
    reused: bool = False

    @property
    def place(self) -> tuple[str, str]:
        """Names of the sequence and the pair, the same for all methods."""
        return self.sequence, self.pair


def results_of(samples: Sequence[Sample[R]], method: str) -> list[R]:
    """Return the results of a method."""
    return [sample.result for sample in samples if sample.method == method]


def results_by_method(samples: Sequence[Sample[R]], methods: Sequence[str]) -> dict[str, list[R]]:
    """Return the results of each method that has any; one that failed everywhere has none."""
    results = {method: results_of(samples, method) for method in methods}
    return {method: found for method, found in results.items() if found}
