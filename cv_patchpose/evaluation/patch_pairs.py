"""The paper's protocol: pairs of stored patches of a PatchPose dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cv_patchpose.evaluation.interface import Method, MethodSettings
from cv_patchpose.evaluation.methods import require_one_pose
from cv_patchpose.evaluation.pair_errors import (
    PairErrors,
    compare_readings,
    summarize_pair_errors,
)
from cv_patchpose.evaluation.patch_readings import read_patches
from cv_patchpose.evaluation.runner import Outcome, load_methods, measure_units, require_positive
from cv_patchpose.evaluation.samples import Sample, results_by_method
from cv_patchpose.patchpose.patch_sets import Chosen, PatchSet
from cv_patchpose.patchpose.plan import Shard
from cv_patchpose.patchpose.sources import PatchPoseDataset


@dataclass(frozen=True, kw_only=True)
class PatchPairsProtocol:
    """How pairs of a dataset are measured.

    Attributes:
        methods: Names of the methods compared.
        split: "train", "val" or "test".
        split_by: "image", or "pairs" as in the released practice.
        top_k: Recall is given for 1 to so many candidates of each patch, if above 1.
        peer_weights: Folder with the weights of published estimators.
        quick: A third of the shards.
    """

    methods: tuple[str, ...]
    split: str = "test"
    split_by: str = "image"
    top_k: int = 1
    peer_weights: Path | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        require_positive(top_k=self.top_k)
        require_one_pose(self.methods)


@dataclass(frozen=True)
class ShardFile:
    """A shard of a dataset and where it is."""

    shard: Shard
    path: Path

    @property
    def name(self) -> str:
        """Of the file."""
        return self.shard.name


def run_benchmark(
    root: Path, protocol: PatchPairsProtocol, jobs: int = 1, cache: Path | None = None
) -> Outcome:
    """Compare the poses of patches with those of the same place rotated or zoomed.

    Orientation is scored on pairs at scale 1, scale on pairs at angle 0, as in the released
    practice. The identity patch with itself is one pair of each, which any method gets right.

    Args:
        root: Folder of a dataset.
        protocol: What is measured and how.
        jobs: Number of processes.
        cache: Folder where results are kept and found again, or None.

    Raises:
        ValueError: No dataset, a shard that is missing, nothing to measure, or a setting that makes
            no sense.
    """
    dataset = PatchPoseDataset(root)
    shards = dataset.shards_of(protocol.split, protocol.split_by)[:: 3 if protocol.quick else 1]
    _methods(protocol, dataset.config.patch_size)
    files = [ShardFile(shard, dataset.root / shard.name) for shard in shards]
    _require_all(files, protocol.split)
    samples, failures = measure_units(
        partial(measure, dataset=dataset), PairErrors, files, protocol, jobs=jobs, cache=cache
    )
    if not samples:
        raise ValueError(f"split: expected pairs in {protocol.split}, got none")
    results = results_by_method(samples, protocol.methods)
    rows = [{"method": name, **summarize_pair_errors(found)} for name, found in results.items()]
    return Outcome(rows, failures, samples)


def _require_all(files: Sequence[ShardFile], split: str) -> None:
    missing = [file.path for file in files if not file.path.is_file()]
    if missing:
        raise ValueError(
            f"{missing[0]}: expected a shard, got no file ({len(missing)} of the {len(files)} with "
            f"pairs of {split} are missing); run the cv-patchpose generate command of the dataset "
            "again, it writes what is missing"
        )


def measure(
    file: ShardFile, protocol: PatchPairsProtocol, dataset: PatchPoseDataset
) -> list[Sample[PairErrors]]:
    """Measure the pairs of a shard's keypoints.

    Args:
        file: Of the dataset.
        protocol: How it is measured.
        dataset: What is measured.

    Returns:
        One sample per keypoint and method.

    Raises:
        ValueError: The shard is missing or damaged.
    """
    methods = _methods(protocol, dataset.config.patch_size)
    sets = dataset.patch_sets(file.shard, protocol.split, protocol.split_by)
    samples = []
    for number, (patch_set, mask) in enumerate(sets):
        chosen = mask & (patch_set.target_mask("orientation") | patch_set.target_mask("scale"))
        if not chosen.any():
            continue
        for name, method in methods.items():
            errors = _measure_set(method, patch_set, chosen, protocol.top_k)
            samples.append(Sample(file.name, f"keypoint {number}", name, errors))
    return samples


def _measure_set(method: Method, patch_set: PatchSet, chosen: Chosen, top_k: int) -> PairErrors:
    row, column = np.nonzero(chosen)
    turn_deg = np.where(column == patch_set.identity_scale, patch_set.rotation_deg[row], np.nan)
    octaves = np.where(row == 0, patch_set.octaves[column], np.nan)
    return compare_readings(
        read_patches(method, patch_set.identity[None], top_k),
        read_patches(method, patch_set.patches[chosen], top_k),
        octaves,
        turn_deg,
        top_k,
    )


def _methods(protocol: PatchPairsProtocol, patch_size: int) -> dict[str, Method]:
    settings = MethodSettings(
        window_px=float(patch_size), scale_prior_octaves=None, peer_weights=protocol.peer_weights
    )
    return load_methods(protocol.methods, settings)
