"""Pairs for training and evaluation, from a dataset on disk or made while they are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.files import read_image
from cv_patchpose.patchpose.options import PatchPoseConfig
from cv_patchpose.patchpose.patch_sets import TARGETS, Chosen, Pairs, PatchSet
from cv_patchpose.patchpose.plan import (
    SPLIT_RULES,
    SPLITS,
    Shard,
    list_images,
    pair_split_mask,
    plan_shards,
)
from cv_patchpose.patchpose.selection import UnusableImageError, cut_image, shrink_image
from cv_patchpose.patchpose.shards import (
    ShardContent,
    read_index,
    read_shard,
    summarize_shard,
)

_SKIPPED = (UnusableImageError, OSError, ValueError, cv2.error)
_POOL_SHARDS = 4  # mixed with each other: a bound on memory and on how well pairs are shuffled


class PairSource(ABC):
    """Gives pairs of patches, shard after shard, in bounded memory.

    Attributes:
        config: What the pairs are made with.
        shards: Of all splits.
        root: Folder that is read.
        advice: Why a split may be without pairs, and what helps.
    """

    root: Path
    advice: str

    def __init__(self, images: list[str], config: PatchPoseConfig) -> None:
        self.config = config
        self.shards = plan_shards(images, config)

    @abstractmethod
    def read(self, shard: Shard) -> ShardContent:
        """Return the patch sets of a shard."""

    @abstractmethod
    def count_skipped(self) -> Counter[str]:
        """Count the images that have no pairs, by reason, without cutting any patch."""

    def shards_of(self, split: str, split_by: str = "image") -> list[Shard]:
        """List the shards that hold pairs of a split.

        Args:
            split: "train", "val" or "test".
            split_by: "image": no image is in two splits. "pairs": the released practice, see
                `plan.pair_split_mask`; all shards hold pairs of all splits.

        Raises:
            ValueError: Another split or rule.
        """
        for name, value, accepted in (
            ("split", split, SPLITS),
            ("split_by", split_by, SPLIT_RULES),
        ):
            if value not in accepted:
                raise ValueError(f"{name}: expected one of {', '.join(accepted)}, got {value!r}")
        return [shard for shard in self.shards if split_by == "pairs" or shard.split == split]

    def patch_sets(
        self, shard: Shard, split: str, split_by: str = "image"
    ) -> Iterator[tuple[PatchSet, Chosen]]:
        """Read a shard of a split.

        Args:
            shard: One of `shards_of`.
            split: As there.
            split_by: As there.

        Yields:
            Each patch set, and (R, S) bool: which of its patches are in the split.
        """
        for patch_set in self.read(shard).sets:
            if split_by == "pairs":
                yield patch_set, pair_split_mask(patch_set, split, self.config)
            else:
                yield patch_set, np.ones(patch_set.patches.shape[:2], bool)

    def pairs(
        self,
        split: str = "train",
        *,
        split_by: str = "image",
        target: str = "joint",
        batch_size: int = 256,
        seed: int | None = None,
    ) -> Iterator[Pairs]:
        """Go once through the pairs of a split.

        Args:
            split: "train", "val" or "test".
            split_by: "image" or "pairs", see `shards_of`.
            target: "joint", "orientation" (pairs at scale 1) or "scale" (pairs at angle 0).
            batch_size: Pairs at once; the last batch may be smaller.
            seed: Of the order of the shards and of the pairs within each four of them; None: as
                written, pairs of a keypoint one after another.

        Raises:
            ValueError: An option out of range; while iterating, a split without pairs, or a shard
                that is missing or damaged.
        """
        shards = self.shards_of(split, split_by)
        if target not in TARGETS:
            raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        rng = None if seed is None else np.random.default_rng(seed)
        if rng is not None:
            shards = [shards[i] for i in rng.permutation(len(shards))]
        pools = (
            [
                (patch_set, mask & patch_set.target_mask(target))
                for shard in shards[first : first + _POOL_SHARDS]
                for patch_set, mask in self.patch_sets(shard, split, split_by)
            ]
            for first in range(0, len(shards), _POOL_SHARDS)
        )
        pieces = (piece for pool in pools for piece in _pieces(pool, batch_size, rng))
        return rebatch(pieces, batch_size, f"{split}, got none: {self.advice}")


class PatchPoseDataset(PairSource):
    """Reads a dataset that `cv-patchpose generate` wrote. Can be pickled.

    Args:
        root: Folder of the dataset.

    Raises:
        ValueError: No dataset, or one of another version.
    """

    advice = "its images were all skipped; generate with a larger held_out or more images"

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        index = read_index(self.root)
        self._fingerprint = index.fingerprint
        super().__init__(list(index.images), index.config)

    def read(self, shard: Shard) -> ShardContent:
        """Return the patch sets of a shard.

        Raises:
            ValueError: Its file is missing, truncated or damaged, or belongs to another dataset.
        """
        return read_shard(self.root / shard.name, self._fingerprint)

    def count_skipped(self) -> Counter[str]:
        """Count what the shards that are there have noted."""
        paths = [self.root / shard.name for shard in self.shards]
        noted = [summarize_shard(path, self._fingerprint) for path in paths if path.is_file()]
        return Counter(reason for summary in noted for reason in summary.skipped.values())


class PatchPoseStream(PairSource):
    """Makes the same pairs as a dataset from images while they are read, with nothing on disk.

    They are the same bit for bit on one version of OpenCV. Can be pickled.

    Args:
        images: Folder of images.
        config: What the pairs are made with.
        layout: Of the folder, see `plan.list_images`.

    Raises:
        ValueError: A folder that does not serve, see `plan.list_images`.
    """

    advice = "its images were all skipped; give more images, or larger ones"

    def __init__(
        self, images: Path | str, config: PatchPoseConfig, *, layout: str = "auto"
    ) -> None:
        self.root = Path(images)
        super().__init__(list_images(self.root, layout), config)

    def read(self, shard: Shard) -> ShardContent:
        """Cut the patch sets of a shard's images."""
        return cut_shard(self.root, shard, self.config)

    def count_skipped(self) -> Counter[str]:
        """Count images that are unreadable or too small; content shows only when they are cut."""
        names = [name for shard in self.shards for name in shard.images]
        with ThreadPoolExecutor() as pool:
            reasons = list(pool.map(self._reason_to_skip, names))
        return Counter(reason for reason in reasons if reason)

    def _reason_to_skip(self, name: str) -> str | None:
        try:
            shrink_image(read_image(self.root / name), self.config)
        except _SKIPPED as error:
            return _reason(error)
        return None


def cut_shard(root: Path, shard: Shard, config: PatchPoseConfig) -> ShardContent:
    """Cut the patch sets of a shard's images; images that do not serve are skipped.

    Args:
        root: Folder of images.
        shard: Names of them.
        config: Of the dataset.
    """
    content = ShardContent([], {}, 0)
    sets, skipped, dropped = content.sets, content.skipped, 0
    for name in shard.images:
        try:
            cut, without_content = cut_image(read_image(root / name), name, config)
        except _SKIPPED as error:
            skipped[name] = _reason(error)
        else:
            sets += cut
            dropped += without_content
    return ShardContent(sets, skipped, dropped)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UnusableImageError) else "unreadable"


def _pieces(
    pool: list[tuple[PatchSet, Chosen]], batch_size: int, rng: np.random.Generator | None
) -> Iterator[Pairs]:
    """Pairs of some patch sets, at most batch_size at once."""
    sets = [patch_set for patch_set, _ in pool]
    places = [np.argwhere(mask) for _, mask in pool]
    owner = np.repeat(np.arange(len(sets)), [len(place) for place in places])
    table = np.column_stack([owner, np.concatenate([np.empty((0, 2), int), *places])])
    if rng is not None:
        table = rng.permutation(table)
    for first in range(0, len(table), batch_size):
        yield _gather(sets, table[first : first + batch_size])


def _gather(sets: list[PatchSet], table: NDArray[np.int64]) -> Pairs:
    """Pairs of an (N, 3) table: patch set, rotation, scale."""
    rows = table.tolist()
    return Pairs(
        reference=np.stack([sets[owner].identity for owner, _, _ in rows]),
        transformed=np.stack([sets[owner].patches[i, j] for owner, i, j in rows]),
        rotation_deg=np.array([sets[owner].rotation_deg[i] for owner, i, _ in rows]),
        octaves=np.array([sets[owner].octaves[j] for owner, _, j in rows]),
    )


def rebatch(pieces: Iterator[Pairs], batch_size: int, missing: str) -> Iterator[Pairs]:
    """Join pieces to batches of one size, of which only the last may be smaller.

    Args:
        pieces: At most batch_size pairs each.
        batch_size: Pairs at once.
        missing: What to say where there are no pieces.

    Raises:
        ValueError: While iterating, no pieces.
    """
    held: list[Pairs] = []
    none = True
    for piece in pieces:
        none = False
        held.append(piece)
        if sum(map(len, held)) >= batch_size:
            joined = _join(held)
            yield _part(joined, slice(0, batch_size))
            held = [_part(joined, slice(batch_size, None))]
    if none:
        raise ValueError(f"split: expected pairs in {missing}")
    if sum(map(len, held)):
        yield _join(held)


def _join(parts: list[Pairs]) -> Pairs:
    names = [field.name for field in fields(Pairs)]
    return Pairs(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


def _part(pairs: Pairs, rows: slice) -> Pairs:
    return Pairs(**{field.name: getattr(pairs, field.name)[rows] for field in fields(pairs)})
