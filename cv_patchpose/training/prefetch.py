"""Batches made in the background, by threads or by processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cv_patchpose.training.dataset import Batch, arrays_of


def prefetch(
    streams: Sequence[Iterable[Batch]], depth: int, *, processes: bool = False
) -> Generator[Batch, None, None]:
    """Make batches in the background, one worker a stream, in the streams' fixed rotation.

    OpenCV and the sampler release the interpreter lock, so threads are enough beside a network on
    the processor; a GPU wants processes. The workers end when the generator is closed;
    a thread that is at a batch then is waited for, but not for long.

    Args:
        streams: at least one.
        depth: batches held ready of each stream.
        processes: workers are processes, forked from this one.

    Raises:
        ValueError: no stream, or processes where the system cannot fork.
    """
    if not streams:
        raise ValueError("streams: expected at least one, got none")
    # macOS can fork, but its own libraries do not survive it.
    can_fork = "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
    if processes and not can_fork:
        raise ValueError("workers: expected 0 on a system that cannot fork; use streams")
    return _load(streams, depth) if processes else _rotate(streams, depth)


class _Streams(IterableDataset[dict[str, torch.Tensor]]):
    """Gives each worker its stream, as tensors, which travel in shared memory."""

    def __init__(self, streams: Sequence[Iterable[Batch]]) -> None:
        self.streams = streams

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        assert worker is not None
        for batch in self.streams[worker.id]:
            yield {name: torch.from_numpy(a) for name, a in arrays_of(batch).items()}


def _load(streams: Sequence[Iterable[Batch]], depth: int) -> Generator[Batch, None, None]:
    loader = DataLoader(
        _Streams(streams),
        batch_size=None,
        num_workers=len(streams),
        prefetch_factor=depth,
        multiprocessing_context="fork",
    )
    for tensors in loader:
        yield Batch(**{name: tensor.numpy() for name, tensor in tensors.items()})


# A thread may be at a batch that takes long; it is a daemon, and Ctrl-C need not wait for it.
_PATIENCE_S = 2.0
_Queue: TypeAlias = queue.Queue[Batch | BaseException]


def _rotate(streams: Sequence[Iterable[Batch]], depth: int) -> Generator[Batch, None, None]:
    stop = threading.Event()
    queues: list[_Queue] = [queue.Queue(depth) for _ in streams]
    threads = [
        threading.Thread(target=_fill, args=(stream, waiting, stop), daemon=True)
        for stream, waiting in zip(streams, queues, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        while True:
            for waiting in queues:
                batch = waiting.get()
                if isinstance(batch, BaseException):
                    raise batch
                yield batch
    finally:
        stop.set()
        end = time.monotonic() + _PATIENCE_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))


def _fill(stream: Iterable[Batch], waiting: _Queue, stop: threading.Event) -> None:
    def offer(item: Batch | BaseException) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                return waiting.put(item, timeout=0.1)

    try:
        for batch in stream:
            offer(batch)
            if stop.is_set():
                return
    except BaseException as error:  # carried over to the consumer
        offer(error)
