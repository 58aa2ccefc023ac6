"""Batches made in background threads."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterable, Sequence
from typing import TypeAlias

from cv_patchpose.training.dataset import Batch


def prefetch(streams: Sequence[Iterable[Batch]], depth: int) -> Generator[Batch, None, None]:
    """Make batches in background threads, one a stream, in the streams' fixed rotation.

    OpenCV and the sampler release the interpreter lock, so threads are enough. They end when
    the generator is closed.

    Args:
        streams: at least one.
        depth: batches held ready of each stream.

    Raises:
        ValueError: no stream.
    """
    if not streams:
        raise ValueError("streams: expected at least one, got none")
    return _rotate(streams, depth)


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
        for thread in threads:
            thread.join()


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
