"""What a run trains and validates on: spoilt views of photographs, or PatchPose pairs."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from cv_patchpose.files import IMAGE_SUFFIXES, files_below
from cv_patchpose.grids import SquareGrid
from cv_patchpose.patchpose.options import KINDS, PatchPoseConfig
from cv_patchpose.patchpose.patch_sets import Pairs
from cv_patchpose.patchpose.shards import is_dataset
from cv_patchpose.patchpose.sources import (
    PairSource,
    PatchPoseDataset,
    PatchPoseStream,
    rebatch,
)
from cv_patchpose.training.calibration import measure_scale_offset, scale_offset
from cv_patchpose.training.dataset import Batch, PairStream
from cv_patchpose.training.imitation import Teacher
from cv_patchpose.training.networks import NetworkConfig
from cv_patchpose.training.objective import pose_accuracy, run_network
from cv_patchpose.training.options import TARGETS, SynthesisConfig, TrainConfig
from cv_patchpose.training.photographs import read_photographs

VALIDATION_BATCH = 64
VALIDATION_SEED = 12345
POOL_BATCHES = 24

_LOGGER = logging.getLogger(__name__)


class TrainingSource(Protocol):
    """Gives a run its batches.

    Attributes:
        held_out: names of the images that are only validated on.
        images: number of the others.
        origin: notes on the data for the model's file.
    """

    held_out: list[str]
    images: int
    origin: dict[str, Any]

    def stream(self, seed: tuple[int, ...], batch_size: int) -> Iterable[Batch]:
        """Give batches to train on without end, by seed."""

    def validation(self) -> dict[str, list[Batch]]:
        """Give the batches to validate on, by kind."""

    def scale_offset(self, network: nn.Module) -> float:
        """Measure the octaves to add to a network's scales, so that their median is 1."""


def open_source(images: Path | str, config: TrainConfig, shape: NetworkConfig) -> TrainingSource:
    """Choose the source that the options ask for.

    Args:
        images: folder of photographs; for PatchPose pairs also a generated dataset, or a folder
            of such.
        config: of the training.
        shape: of the network.

    Raises:
        ValueError: too few photographs, or a dataset that does not serve.
    """
    if config.source == "views":
        _refuse_datasets(Path(images))
        return ViewSource(images, config, shape)
    return PatchPoseSource(images, config, shape)


def _refuse_datasets(images: Path) -> None:
    """Tell a folder of nothing but datasets, which some networks only can be trained on."""
    datasets = _find_datasets(images)
    if datasets and not list(files_below(images, IMAGE_SUFFIXES)):
        raise ValueError(
            f"images: expected photographs, got the PatchPose dataset {datasets[0]}; networks are "
            "trained on it with --network resnet18 and --recipe pairs or paper"
        )


class ViewSource:
    """Views of photographs, by known geometry and spoilt.

    Args:
        images: folder of photographs.
        config: of the training.
        shape: of the network, whose grid is sampled.

    Raises:
        ValueError: too few photographs.
    """

    def __init__(self, images: Path | str, config: TrainConfig, shape: NetworkConfig) -> None:
        self.config, self.shape = config, shape
        self.teacher = None
        if config.teacher:
            self.teacher = Teacher(
                config.teacher, shape.bins, config.teacher_octaves, config.teacher_agreement
            )
        photographs = read_photographs(images, color=isinstance(shape.grid, SquareGrid))
        self.training, self.held = photographs.split(config.validation_share)
        self.held_out = [str(path) for path in self.held.paths]
        if config.workers:
            self.training.find_all()
        self.images = len(self.training)
        self.origin = photographs.describe(images)

    def stream(self, seed: tuple[int, ...], batch_size: int) -> Iterable[Batch]:
        """Give batches of views without end."""
        config = self.config
        return PairStream(
            self.training,
            self.shape.grid,
            config.synthesis,
            batch_size=batch_size,
            pool_size=POOL_BATCHES * batch_size,
            seed=seed,
            reuse=config.reuse,
            teacher=self.teacher,
        )

    def validation(self) -> dict[str, list[Batch]]:
        """Give batches of clean views and of views as spoilt as those of the training."""
        config = self.config.synthesis
        kinds = {
            "clean": dataclasses.replace(config, clean=1.0),
            "spoilt": dataclasses.replace(config, clean=0.0),
        }
        count = max(1, self.config.validation_keypoints // VALIDATION_BATCH)
        size = VALIDATION_BATCH
        return {
            name: list(
                itertools.islice(
                    PairStream(
                        self.held,
                        self.shape.grid,
                        synthesis,
                        batch_size=size,
                        pool_size=size,
                        seed=VALIDATION_SEED,
                    ),
                    count,
                )
            )
            for name, synthesis in kinds.items()
        }

    def scale_offset(self, network: nn.Module) -> float:
        """Measure the offset on SIFT keypoints of the photographs held out."""
        magnification = self.config.synthesis.magnification
        return measure_scale_offset(
            network, self.shape.grid, self.shape.bins, self.held, magnification
        )


class PatchPoseSource:
    """The pairs of PatchPose A and B, half each, split by image.

    Args:
        images: folder of images, whose pairs are made while training; or a generated dataset, or
            a folder of such.
        config: of the training; a single target takes the pairs that change nothing else.
        shape: of the network, whose patch size the pairs have.

    Raises:
        ValueError: a folder or a dataset that does not serve, or an option of views.

    Source: Lee, Jeong, Cho, BMVC 2021, section 4.1.
    """

    def __init__(self, images: Path | str, config: TrainConfig, shape: NetworkConfig) -> None:
        _refuse_view_options(config.synthesis)
        self.config, self.shape = config, shape
        self.target = config.targets[0] if len(config.targets) < len(TARGETS) else "joint"
        self.sources = _open_pairs(Path(images), shape.grid, config)
        # Both kinds made on the fly are of the same images.
        for source in {source.root: source for source in self.sources}.values():
            _tell_skipped(source)
        self.images = len(self._images("train"))
        self.held_out = [] if config.split_by == "pairs" else sorted(self._images("val"))
        self.origin = {
            "folder": Path(images).resolve().name,
            "patchpose": [dataclasses.asdict(source.config) for source in self.sources],
        }

    def _images(self, split: str) -> set[str]:
        shards = [s for one in self.sources for s in one.shards_of(split, self.config.split_by)]
        return {name for shard in shards for name in shard.images}

    def stream(self, seed: tuple[int, ...], batch_size: int) -> Iterable[Batch]:
        """Give batches without end, an equal part of each from every source."""
        parts = np.array_split(np.arange(batch_size), len(self.sources))
        streams = [
            self._endless(source, len(part), (*seed, number))
            for number, (source, part) in enumerate(zip(self.sources, parts, strict=True))
            if len(part)
        ]
        while True:
            yield _batch([next(stream) for stream in streams])

    def validation(self) -> dict[str, list[Batch]]:
        """Give pairs of the split "val", drawn once, from up to four of each source's shards."""
        return {"val": self._validation}

    @cached_property
    def _validation(self) -> list[Batch]:
        count = max(1, self.config.validation_keypoints // VALIDATION_BATCH)
        each = -(-count // len(self.sources))
        return [
            _batch([pairs])
            for source in self.sources
            for pairs in itertools.islice(
                source.pairs(
                    "val",
                    split_by=self.config.split_by,
                    target=self.target,
                    batch_size=VALIDATION_BATCH,
                    seed=VALIDATION_SEED,
                ),
                each,
            )
        ]

    @torch.no_grad()
    def scale_offset(self, network: nn.Module) -> float:
        """Measure the offset on the patches of scale 1 of the split "val"."""
        references = [batch.patches[:, 0] for batch in self._validation]
        return scale_offset(network, references, self.shape.bins)

    def _endless(
        self, source: PairSource, batch_size: int, seed: tuple[int, ...]
    ) -> Iterator[Pairs]:
        """Give full batches; what an epoch leaves over begins the next."""
        epochs = (
            source.pairs(
                "train",
                split_by=self.config.split_by,
                target=self.target,
                batch_size=batch_size,
                seed=int(np.random.SeedSequence((*seed, epoch)).generate_state(1)[0]),
            )
            for epoch in itertools.count()
        )
        return rebatch(itertools.chain.from_iterable(epochs), batch_size, "train")


def _refuse_view_options(synthesis: SynthesisConfig) -> None:
    for field in dataclasses.fields(synthesis):
        value = getattr(synthesis, field.name)
        # The magnification is the model's, whatever it was trained on.
        if field.name != "magnification" and value != field.default:
            raise ValueError(
                f"{field.name}: expected it left out with PatchPose pairs, of which no views are "
                f"made (--recipe views makes them), got {value!r}"
            )


def _open_pairs(images: Path, grid: object, config: TrainConfig) -> list[PairSource]:
    if not isinstance(grid, SquareGrid):
        raise ValueError(f"source: expected a network of square patches, got {grid}")
    datasets = _find_datasets(images)
    if not datasets:
        return [
            PatchPoseStream(images, PatchPoseConfig(kind=kind, patch_size=grid.size))
            for kind in KINDS
        ]
    sources: list[PairSource] = [PatchPoseDataset(path) for path in datasets]
    for path, source in zip(datasets, sources, strict=True):
        if source.config.patch_size != grid.size:
            raise ValueError(
                f"{path}: expected patches of {grid.size} px, as the network reads, got "
                f"{source.config.patch_size}; generate with --patch-size {grid.size}"
            )
    _refuse_other_splits(sources)
    return sources


def _refuse_other_splits(sources: list[PairSource]) -> None:
    """Refuse datasets of the same images that hold out others: they would be trained on."""
    held_of: dict[frozenset[str], frozenset[str]] = {}
    for source in sources:
        names = frozenset(name for shard in source.shards for name in shard.images)
        held = frozenset(n for shard in source.shards if shard.split == "val" for n in shard.images)
        if held_of.setdefault(names, held) != held:
            raise ValueError(
                f"{source.root}: expected the splits of the other datasets of these images, got "
                "others; generate them with the same --held-out and --seed"
            )


def _find_datasets(images: Path) -> list[Path]:
    datasets = [images] if is_dataset(images) else []
    if images.is_dir():
        datasets += [path for path in sorted(images.iterdir()) if is_dataset(path)]
    return datasets


def _tell_skipped(source: PairSource) -> None:
    for reason, count in sorted(source.count_skipped().items()):
        report = f"{source.root}: {count} images skipped: {reason}"
        _LOGGER.info(report)
        tqdm.write(report, file=sys.stderr)


def _batch(parts: list[Pairs]) -> Batch:
    """Turn pairs into a batch of two views; the first is the reference."""
    patches = np.concatenate([np.stack((p.reference, p.transformed), 1) for p in parts])
    angle = np.radians(np.concatenate([p.rotation_deg for p in parts]))
    zoom = 2.0 ** np.concatenate([p.octaves for p in parts])
    turned = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    same = np.broadcast_to(np.eye(2), (len(angle), 2, 2))
    return Batch(
        patches=np.ascontiguousarray(np.moveaxis(patches, -1, 2), np.float32) / np.float32(255),
        jacobian=np.stack((same, np.moveaxis(turned, -1, 0)), 1),
        log2_window=np.zeros((len(angle), 2)),
        scale_sigma=np.full((len(angle), 2), np.inf),
    )


@torch.no_grad()
def measure(
    network: nn.Module, batches: dict[str, list[Batch]], shape: NetworkConfig
) -> dict[str, float]:
    """Measure `pose_accuracy` of a network in evaluation mode.

    Returns:
        Percentages by kind of batch and metric.
    """
    row: dict[str, float] = {}
    for name, group in batches.items():
        measured = [
            pose_accuracy(run_network(network, b, shape.bins), b, shape.bins) for b in group
        ]
        for metric in measured[0]:
            row[f"{name}_{metric}"] = float(np.mean([m[metric] for m in measured]))
    return row
