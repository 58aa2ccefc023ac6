"""Runs a benchmark's units of work, one bad unit at a time or many at once."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from cv_patchpose.evaluation.attempts import MethodsFailed, describe_error
from cv_patchpose.evaluation.cache import cache_results
from cv_patchpose.evaluation.interface import Method, MethodSettings
from cv_patchpose.evaluation.methods import identify_method, load_method
from cv_patchpose.evaluation.samples import R, Sample

_METHODS_KEPT = 32
Version = tuple[tuple[int, int], ...]


class NamedUnit(Protocol):
    """Work that succeeds or fails as a whole."""

    @property
    def name(self) -> str:
        """For the report."""


Unit = TypeVar("Unit", bound=NamedUnit)
Measured = TypeVar("Measured")
# What was measured of a unit, and by method what was wrong; by "" what was wrong with all of it.
Attempt = tuple[list[Measured], dict[str, str]]


def _own_name(unit: NamedUnit) -> str:
    return unit.name


@dataclass(frozen=True)
class Outcome:
    """What a benchmark measured.

    Attributes:
        rows: One per method that measured anything: its name under "method", then its numbers.
        failures: For each sequence or image that is not in the rows, or not all of it, what was
            wrong with it. Where only some methods failed, the method is named first.
        samples: What the rows summarize: a result per pair and method.
        units: What was measured, by the names of sequence and pair, where pairs can be shown.
    """

    rows: list[dict[str, Any]]
    failures: dict[str, str]
    samples: list[Sample[Any]] = field(default_factory=list)
    units: Mapping[tuple[str, str], Any] = field(default_factory=dict)

    @property
    def reused(self) -> tuple[int, int]:
        """How many samples are from earlier runs, and how many there are."""
        return sum(sample.reused for sample in self.samples), len(self.samples)


def load_methods(specs: tuple[str, ...], settings: MethodSettings) -> dict[str, Method]:
    """Make the methods of a benchmark, each once per process.

    Args:
        specs: Names, see :func:`cv_patchpose.evaluation.methods.load_method`.
        settings: What the benchmark asks for.

    Raises:
        ValueError: No method, an unknown one or one that comes twice.
    """
    if not specs or len(set(specs)) < len(specs):
        raise ValueError(f"methods: expected one or more different names, got {list(specs)}")
    return {spec: _load_method(spec, settings, _version(spec)) for spec in specs}


@lru_cache(maxsize=_METHODS_KEPT)
def _load_method(spec: str, settings: MethodSettings, version: Version) -> Method:
    return load_method(spec, settings)


def _version(spec: str) -> Version:
    """Identify the state of a user's file, which may change while the process goes on."""
    _, files = identify_method(spec, ())
    return tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.is_file())


def require_choice(name: str, value: str, accepted: Sequence[str]) -> None:
    """Refuse a value that is not among the accepted ones; the message lists them."""
    if value not in accepted:
        raise ValueError(f"{name}: expected one of {', '.join(accepted)}, got {value!r}")


def require_positive(**values: float) -> None:
    """Refuse values that are not above 0, by their names."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: expected a finite number above 0, got {value}")


def measure_units(
    measure: Callable[[Unit, Any], list[Sample[R]]],
    result_class: type[R],
    units: Sequence[Unit],
    protocol: Any,
    *,
    jobs: int,
    cache: Path | None,
    group: Callable[[Unit], str] = _own_name,
    known: Mapping[str, str] | None = None,
) -> tuple[list[Sample[R]], dict[str, str]]:
    """Measure units of work under a protocol, as far as no earlier run has.

    Args:
        measure: Gives a unit's samples under a protocol; a module's function.
        result_class: Of the samples.
        units: What to measure.
        protocol: And how.
        jobs: Number of processes.
        cache: Folder where results are kept and found again, or None.
        group: Gives the name under which a unit's failure is reported.
        known: What was wrong with what is not among the units.

    Returns:
        The samples in order of the units, and what was wrong: the known and with units that failed,
        or with methods that failed on a unit.

    Raises:
        ValueError: ``jobs`` is below 1, or every unit failed, if there was one; says all that was
            wrong.
        OSError: The cache cannot be made, or a process died.
    """
    cached = cache_results(measure, result_class, protocol, cache)
    return run_units(cached, units, jobs, group, known)


def run_units(
    measure: Callable[[Unit], list[Measured]],
    units: Sequence[Unit],
    jobs: int,
    group: Callable[[Unit], str] = _own_name,
    known: Mapping[str, str] | None = None,
) -> tuple[list[Measured], dict[str, str]]:
    """Measure units of work under a progress bar; a bad one does not lose the others.

    Args:
        measure: Gives a unit's samples; with several jobs it must pickle.
        units: What to measure.
        jobs: Number of processes.
        group: Gives the name under which a unit's failure is reported.
        known: What was wrong with what is not among the units.

    Returns:
        The samples in order of the units, and by name what was wrong: the known and with units
        that failed. What several of a group say alike is said once.

    Raises:
        ValueError: ``jobs`` is below 1, or every unit failed, if there was one; says all that was
            wrong.
        ChildProcessError: A process died.
    """
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}")
    results: dict[int, list[Measured]] = {}
    failed: dict[int, dict[str, str]] = {}
    finished = _run_here(measure, units) if jobs == 1 else _run_in_pool(measure, units, jobs)
    for index, (samples, wrong) in tqdm(finished, total=len(units), unit="unit", disable=None):
        if samples or not wrong:
            results[index] = samples
        failed[index] = wrong
    told = [(units[index], *each) for index in sorted(failed) for each in failed[index].items()]
    failures = dict(known or {}) | _join_failures(told, Counter(map(group, units)), group)
    if failures and not results:
        raise ValueError(tell_failures(failures))
    return [sample for index in sorted(results) for sample in results[index]], failures


def threads_per_process(jobs: int) -> int:
    """Return the number of OpenCV's threads in each of the processes that measure."""
    return cv2.getNumThreads() if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)


def tell_failures(failures: Mapping[str, str]) -> str:
    """Write a line for each of them."""
    return "\n".join(f"{name}: {what}" for name, what in failures.items())


def _join_failures(
    failures: Iterable[tuple[Unit, str, str]],
    sizes: Mapping[str, int],
    group: Callable[[Unit], str],
) -> dict[str, str]:
    """Say by method and group what was wrong, and with how many of its units."""
    told: dict[tuple[str, str], dict[str, list[str]]] = {}
    for unit, method, what in failures:
        told.setdefault((method, group(unit)), {}).setdefault(what, []).append(unit.name)
    return {
        f"{method}: {name}" if method else name: "; ".join(
            _count_units(units, sizes[name]) + what for what, units in messages.items()
        )
        for (method, name), messages in told.items()
    }


def _count_units(names: Sequence[str], total: int) -> str:
    """Say of which units a message is; nothing where the group is the unit."""
    if total == 1:
        return ""
    first = names[0].rpartition("/")[2]
    which = first if len(names) == 1 else f"the first {first}"
    return f"{len(names)} of {total} pairs ({which}): "


def _attempt(measure: Callable[[Unit], list[Measured]], unit: Unit) -> Attempt[Measured]:
    try:
        return measure(unit), {}
    except MethodsFailed as error:
        if not error.samples and len(set(error.failures.values())) == 1:
            return [], {"": next(iter(error.failures.values()))}  # such as an image nobody can read
        return error.samples, error.failures
    except Exception as error:  # one bad pair must not lose the rest
        return [], {"": describe_error(error)}


def _run_here(
    measure: Callable[[Unit], list[Measured]], units: Sequence[Unit]
) -> Iterator[tuple[int, Attempt[Measured]]]:
    return ((index, _attempt(measure, unit)) for index, unit in enumerate(units))


def _prepare_worker(threads: int) -> None:
    cv2.setNumThreads(threads)
    # Ctrl-C reaches every process: as an exception it would end one unit, and the next would start.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run_in_pool(
    measure: Callable[[Unit], list[Measured]], units: Sequence[Unit], jobs: int
) -> Iterator[tuple[int, Attempt[Measured]]]:
    threads = threads_per_process(jobs)
    jobs = max(1, min(jobs, len(units)))
    context = multiprocessing.get_context("spawn")
    # Neighbours share images, whose features a process keeps: each has a row of its own.
    shares = [deque(share) for share in np.array_split(np.arange(len(units)), jobs)]
    pools = [ProcessPoolExecutor(1, context, _prepare_worker, (threads,)) for _ in range(jobs)]
    pending: dict[Future[Attempt[Measured]], tuple[int, int]] = {}

    def start_next(worker: int) -> None:
        own, longest = shares[worker], max(shares, key=len)
        if own or longest:
            index = int(own.popleft() if own else longest.pop())
            pending[pools[worker].submit(_attempt, measure, units[index])] = worker, index

    try:
        for worker in range(jobs):
            start_next(worker)
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                worker, index = pending.pop(future)
                start_next(worker)
                yield index, future.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"jobs: expected {jobs} processes that finish, got one that died, most likely for "
            "lack of memory: try fewer --jobs. Unless --no-cache was given, a rerun continues "
            "from the results that are cached"
        ) from error
    finally:
        for pool in pools:  # each finishes the unit that it is at, whose results are kept
            pool.shutdown()
