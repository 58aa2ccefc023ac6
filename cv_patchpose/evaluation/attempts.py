"""Attempts at a unit of work: a method that fails must not lose what the others measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import cv2

from cv_patchpose.errors import ModelError
from cv_patchpose.evaluation.samples import R, Sample

Unit = TypeVar("Unit")


class MethodsFailed(Exception):
    """Some methods could not measure a unit.

    Attributes:
        samples: Of the other methods.
        failures: What was wrong, by method.
    """

    def __init__(self, samples: list[Any], failures: dict[str, str]) -> None:
        super().__init__("; ".join(f"{method}: {what}" for method, what in failures.items()))
        self.samples = samples
        self.failures = failures


def attempt_methods(
    measure: Callable[[Unit, Any], list[Sample[R]]], unit: Unit, protocol: Any
) -> tuple[list[Sample[R]], dict[str, str]]:
    """Measure a unit with all methods at once and, where that fails, with each on its own.

    At once they share what does not depend on the method, such as detection.

    Args:
        measure: Gives a unit's samples under a protocol.
        unit: What to measure.
        protocol: With the methods asked for.

    Returns:
        The samples, and by method what was wrong.
    """
    try:
        return measure(unit, protocol), {}
    except Exception as error:  # a method may be anyone's code
        if len(protocol.methods) == 1:
            return [], {protocol.methods[0]: describe_error(error)}
    samples: list[Sample[R]] = []
    failures: dict[str, str] = {}
    for method in protocol.methods:
        more, wrong = attempt_methods(measure, unit, replace(protocol, methods=(method,)))
        samples += more
        failures |= wrong
    return samples, failures


def describe_error(error: Exception) -> str:
    """Say what was wrong, with the kind of an error that nobody foresaw."""
    if isinstance(error, (ValueError, OSError, cv2.error, ModelError)):
        return str(error)
    return f"{type(error).__name__}: {error}"
