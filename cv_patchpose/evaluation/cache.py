"""Results of pairs kept in files, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from cv_patchpose.evaluation.attempts import MethodsFailed, attempt_methods
from cv_patchpose.evaluation.fingerprints import fingerprint, fingerprint_method
from cv_patchpose.evaluation.samples import R, Sample
from cv_patchpose.files import write_file

Unit = TypeVar("Unit")


@dataclass(frozen=True)
class CachedMeasure(Generic[Unit, R]):
    """Measures a unit of work with the methods that no earlier run measured it with.

    There is one file for each unit and method. Its name is the digest of everything the results
    depend on: what was changed has another name and is measured. A file that cannot be read is
    as good as none. Failures are not kept. A unit is a dataclass that holds the names of its
    samples and the paths of its files.

    Attributes:
        measure: Gives a unit's samples under a protocol.
        result_class: Of the samples.
        protocol: With the methods asked for.
        folder: Where the files are, an existing folder; None to measure everything.
        methods: Digest of each of the methods, under this protocol.
    """

    measure: Callable[[Unit, Any], list[Sample[R]]]
    result_class: type[R]
    protocol: Any
    folder: Path | None
    methods: dict[str, str]

    def __call__(self, unit: Unit) -> list[Sample[R]]:
        """Return the samples of a unit with every method.

        Raises:
            MethodsFailed: Some methods failed; what the others measured is kept all the same.
        """
        if self.folder is None:
            samples, failures = attempt_methods(self.measure, unit, self.protocol)
        else:
            samples, failures = self._measure_missing(unit, self.folder)
        if failures:
            raise MethodsFailed(samples, failures)
        return samples

    def _measure_missing(self, unit: Unit, folder: Path) -> tuple[list[Sample[R]], dict[str, str]]:
        about = fingerprint(unit)
        files = {
            method: folder / f"{fingerprint([about, digest])}.json"
            for method, digest in self.methods.items()
        }
        found = {method: self._load(path, method) for method, path in files.items()}
        missing = tuple(method for method, samples in found.items() if samples is None)
        failures: dict[str, str] = {}
        if missing:
            protocol = replace(self.protocol, methods=missing)
            measured, failures = attempt_methods(self.measure, unit, protocol)
            for method in missing:
                if method not in failures:
                    samples = [sample for sample in measured if sample.method == method]
                    write_file(files[method], _encode(samples))
                    found[method] = samples
        return [sample for samples in found.values() for sample in samples or ()], failures

    def _load(self, path: Path, method: str) -> list[Sample[R]] | None:
        try:
            entries = json.loads(path.read_bytes())
            return [self._decode(entry, method) for entry in entries]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _decode(self, entry: dict[str, Any], method: str) -> Sample[R]:
        result = self.result_class.restore(entry["result"])
        return Sample(str(entry["sequence"]), str(entry["pair"]), method, result, reused=True)


def cache_results(
    measure: Callable[[Unit, Any], list[Sample[R]]],
    result_class: type[R],
    protocol: Any,
    folder: Path | None,
) -> CachedMeasure[Unit, R]:
    """Make a measurement keep its results.

    Args:
        measure: Gives a unit's samples under a protocol; a module's function.
        result_class: Of the samples.
        protocol: With the methods asked for.
        folder: Where results are kept, made if it is missing; None to keep none.

    Raises:
        OSError: The folder cannot be made, or a model cannot be read.
    """
    if folder is None:
        return CachedMeasure(measure, result_class, protocol, None, {})
    folder.mkdir(parents=True, exist_ok=True)
    methods = {method: fingerprint_method(method, protocol) for method in protocol.methods}
    return CachedMeasure(measure, result_class, protocol, folder, methods)


def _encode(samples: list[Sample[R]]) -> bytes:
    entries = [dataclasses.asdict(sample) for sample in samples]
    return json.dumps(entries, default=np.ndarray.tolist).encode()
