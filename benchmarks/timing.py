"""What the benchmarks of cost share: calls timed in turn in one process, and by which kernel."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Mapping

import numpy as np

from cv_patchpose import patches


def time_interleaved(
    calls: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, dict[str, float]]:
    """Time calls in turn, so that a machine that drifts is as slow for one as for the other.

    Each is timed right behind an untimed call of its own: what it finds in the caches, and which
    threads are still busy, is its own doing and not that of the call before it.

    Returns:
        By name: median_ms, iqr_ms, and ratio_to_first, the median over the turns of the time over
        that of the first call in the same turn; cpu_ms, the median of what all threads of the
        process worked, which other processes on the machine disturb less; system_ms, the median
        of what of it the kernel worked for the process, and minor_faults, the median number of
        pages of memory that it had to hand out anew.
    """
    times, work, system, faults = np.empty((4, repeats, len(calls)))
    for turn in range(repeats):
        for number, call in enumerate(calls.values()):
            call()
            before = resource.getrusage(resource.RUSAGE_SELF)
            start, start_work = time.perf_counter(), time.process_time()
            call()
            work[turn, number] = 1e3 * (time.process_time() - start_work)
            times[turn, number] = 1e3 * (time.perf_counter() - start)
            after = resource.getrusage(resource.RUSAGE_SELF)
            system[turn, number] = 1e3 * (after.ru_stime - before.ru_stime)
            faults[turn, number] = after.ru_minflt - before.ru_minflt
    low, median, high = np.percentile(times, (25, 50, 75), axis=0)
    ratio = np.median(times / times[:, :1], axis=0)
    cpu, kernel, pages = (np.median(values, axis=0) for values in (work, system, faults))
    return {
        name: {
            "median_ms": round(median[i], 3),
            "iqr_ms": round(high[i] - low[i], 3),
            "ratio_to_first": round(ratio[i], 3),
            "cpu_ms": round(cpu[i], 3),
            "system_ms": round(kernel[i], 3),
            "minor_faults": int(pages[i]),
        }
        for i, name in enumerate(calls)
    }


def simd_in_use() -> str | None:
    """Return the instruction set of the compiled sampler; None: there is only NumPy's."""
    if patches._core is None:
        return None
    return os.environ.get("PATCHPOSE_SIMD") or patches._core.simd_names()[0]
