"""Runs a benchmark's units of work, one bad unit at a time or many at once."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import cv2
from tqdm import tqdm

from cv_patchpose.errors import ModelError
from cv_patchpose.evaluation.interface import Method, MethodSettings
from cv_patchpose.evaluation.methods import load_method


class NamedUnit(Protocol):
    """Work that succeeds or fails as a whole."""

    @property
    def name(self) -> str:
        """For the report."""


Unit = TypeVar("Unit", bound=NamedUnit)
Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Outcome:
    """What a benchmark measured.

    Attributes:
        rows: One per method: its name under "method", then its numbers.
        failures: For each sequence or image that is not in the rows, what was wrong with it.
    """

    rows: list[dict[str, Any]]
    failures: dict[str, str]


@lru_cache(maxsize=1)
def load_methods(specs: tuple[str, ...], settings: MethodSettings) -> dict[str, Method]:
    """Make the methods of a benchmark, once per process.

    Args:
        specs: Names, see :func:`cv_patchpose.evaluation.methods.load_method`.
        settings: What the benchmark asks for.

    Raises:
        ValueError: No method, an unknown one or one that comes twice.
    """
    if not specs or len(set(specs)) < len(specs):
        raise ValueError(f"methods: expected one or more different names, got {list(specs)}")
    return {spec: load_method(spec, settings) for spec in specs}


def require_choice(name: str, value: str, accepted: Sequence[str]) -> None:
    """Refuse a value that is not among the accepted ones; the message lists them."""
    if value not in accepted:
        raise ValueError(f"{name}: expected one of {', '.join(accepted)}, got {value!r}")


def require_positive(**values: float) -> None:
    """Refuse values that are not above 0, by their names."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: expected a finite number above 0, got {value}")


def run_units(
    measure: Callable[[Unit], list[Sample]], units: Sequence[Unit], jobs: int
) -> tuple[list[Sample], dict[str, str]]:
    """Measure units of work under a progress bar; a bad one does not lose the others.

    Args:
        measure: Gives a unit's samples; with several jobs it must pickle.
        units: What to measure.
        jobs: Number of processes.

    Returns:
        The samples in order of the units, and by name what was wrong with units that failed.

    Raises:
        ValueError: ``jobs`` is below 1, or every unit failed.
    """
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}")
    results: dict[int, list[Sample]] = {}
    failures: dict[str, str] = {}
    finished = _run_here(measure, units) if jobs == 1 else _run_in_pool(measure, units, jobs)
    for index, result in tqdm(finished, total=len(units), unit="unit", disable=None):
        if isinstance(result, Exception):
            failures[units[index].name] = str(result)
        else:
            results[index] = result
    if failures and not results:
        raise ValueError("; ".join(f"{name}: {what}" for name, what in failures.items()))
    return [sample for index in sorted(results) for sample in results[index]], failures


def _attempt(measure: Callable[[Unit], list[Sample]], unit: Unit) -> list[Sample] | Exception:
    try:
        return measure(unit)
    except (ValueError, OSError, cv2.error, ModelError) as error:
        return error


def _run_here(
    measure: Callable[[Unit], list[Sample]], units: Sequence[Unit]
) -> Iterator[tuple[int, list[Sample] | Exception]]:
    return ((index, _attempt(measure, unit)) for index, unit in enumerate(units))


def _run_in_pool(
    measure: Callable[[Unit], list[Sample]], units: Sequence[Unit], jobs: int
) -> Iterator[tuple[int, list[Sample] | Exception]]:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, cv2.setNumThreads, (threads,)) as pool:
        pending = {pool.submit(_attempt, measure, unit): i for i, unit in enumerate(units)}
        for future in as_completed(pending):
            yield pending[future], future.result()
