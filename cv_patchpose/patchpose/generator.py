"""Writes a PatchPose dataset, shard by shard, by any number of processes and machines."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import cv2
from tqdm import tqdm

from cv_patchpose.files import write_file
from cv_patchpose.patchpose.options import PatchPoseConfig
from cv_patchpose.patchpose.plan import Shard, list_images, plan_shards
from cv_patchpose.patchpose.shards import (
    INDEX_NAME,
    Index,
    is_dataset,
    is_whole,
    read_index,
    summarize_shard,
    write_shard,
)
from cv_patchpose.patchpose.sources import cut_shard

_PARENT_CHECK_S = 1.0


@dataclass
class Report:
    """What a dataset holds so far.

    Attributes:
        shards: Planned, by every part together.
        missing: Shards that are yet to be written by other parts.
        keypoints: With patches in the dataset.
        pairs: By the split of their image.
        skipped: Number of images without patches, by reason.
        dropped: Number of candidate keypoints left out for want of content.
    """

    shards: int
    missing: int = 0
    keypoints: int = 0
    pairs: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    dropped: int = 0


def generate(
    images: Path,
    output: Path,
    config: PatchPoseConfig,
    *,
    layout: str = "auto",
    jobs: int = 1,
    part: tuple[int, int] = (1, 1),
) -> Report:
    """Write a dataset, or what is missing of it.

    The files depend on the images, the options and the version of OpenCV only. Shards that are
    there and whole are kept, so that a run that was killed goes on where it stopped. Memory holds
    one shard for each process.

    Args:
        images: Folder of images.
        output: Folder of the dataset; made if it is not there.
        config: Options.
        layout: Of the folder of images, see `plan.list_images`.
        jobs: Processes.
        part: (i, n): write every n-th shard only, from the i-th, so that n runs on any machines
            that share the folders write them all.

    Returns:
        What the dataset holds, the other parts' shards included.

    Raises:
        ValueError: Images that do not serve, a folder that holds something else, or another
            configuration; jobs or a part out of range; nothing found in any image.
        OSError: A file that cannot be written, or a process that was killed.
    """
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}")
    first, step = part
    if not 1 <= first <= step:
        raise ValueError(f"part: expected i/n with 1 <= i <= n, got {first}/{step}")
    names = list_images(images, layout)
    index = _open_index(output, Index(config, {n: (images / n).stat().st_size for n in names}))
    shards = plan_shards(names, config)
    mine = shards[first - 1 :: step]
    todo = [shard for shard in mine if not is_whole(output / shard.name, index.fingerprint)]
    _remove_parts(output, mine)
    work = partial(_write, images, output, config, index.fingerprint)
    done = map(work, todo) if jobs == 1 else _in_pool(work, todo, jobs)
    bar = tqdm(done, total=len(mine), initial=len(mine) - len(todo), unit="shard", disable=None)
    for _ in bar:
        pass
    return _report(output, shards, index.fingerprint)


def _open_index(output: Path, index: Index) -> Index:
    """Begin a dataset if there is none; return the index in force, which must be the same."""
    if not is_dataset(output):
        _require_empty(output)
        output.mkdir(parents=True, exist_ok=True)
        write_file(output / INDEX_NAME, index.to_json().encode())
    begun = read_index(output)
    _require_same(output, asdict(begun.config), asdict(index.config))
    _require_same(output, {"OpenCV": begun.opencv}, {"OpenCV": index.opencv})
    changed = dict(begun.images.items() ^ index.images.items())
    if changed:
        raise ValueError(
            f"images: expected the {len(begun.images)} files that {output} was begun with, got "
            f"{len(index.images)}, {len(changed)} of them other or changed, {min(changed)!r} for "
            "one; choose another folder"
        )
    return begun


def _require_empty(output: Path) -> None:
    """Refuse what is not a folder to begin in; another part may just be writing the index."""
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    foreign = [name for name in names - {INDEX_NAME} if not name.startswith(".")]
    if foreign or (output.exists() and not output.is_dir()):
        raise ValueError(
            f"{output}: expected an empty or new folder, or a dataset begun there, got something "
            "else; choose another folder"
        )


def _require_same(output: Path, begun: dict[str, object], asked: dict[str, object]) -> None:
    for name, value in begun.items():
        if value != asked[name]:
            raise ValueError(
                f"{name}: expected {value} as in {output / INDEX_NAME}, got {asked[name]}; "
                "choose another folder for another configuration"
            )


def _remove_parts(output: Path, mine: Sequence[Shard]) -> None:
    """Remove what writers of these shards left half written when they were killed."""
    names = {shard.name for shard in mine}
    for path in output.glob(".*.*.part"):
        if path.name[1:].rsplit(".", 2)[0] in names:
            path.unlink(missing_ok=True)


def _write(
    images: Path, output: Path, config: PatchPoseConfig, fingerprint: str, shard: Shard
) -> None:
    write_shard(output / shard.name, cut_shard(images, shard, config), fingerprint)


def _in_pool(work: partial[None], shards: Sequence[Shard], jobs: int) -> Iterator[None]:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, _begin_worker, (threads, os.getpid()))
    try:
        for future in as_completed([pool.submit(work, shard) for shard in shards]):
            yield future.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "jobs: expected processes that live, got one that was killed, perhaps for want of "
            "memory; the same command goes on where it stopped"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker(threads: int, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends its workers
    cv2.setNumThreads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent was killed, which cannot end it any more."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


def _report(output: Path, shards: Sequence[Shard], fingerprint: str) -> Report:
    report = Report(len(shards))
    for shard in shards:
        if not (output / shard.name).exists():
            report.missing += 1
            continue
        summary = summarize_shard(output / shard.name, fingerprint)
        report.keypoints += summary.keypoints
        report.pairs[shard.split] += summary.pairs
        report.skipped.update(summary.skipped.values())
        report.dropped += summary.dropped
    if not report.missing and not report.keypoints:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.skipped.items())
        raise ValueError(
            f"images: expected some with keypoints, got none: {reasons}; give larger ones, or "
            "keypoints less room with --border-px"
        )
    return report
