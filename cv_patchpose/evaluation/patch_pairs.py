"""The paper's protocol: pairs of stored patches of a PatchPose dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.interface import Method, MethodSettings
from cv_patchpose.evaluation.methods import require_one_pose
from cv_patchpose.evaluation.metrics import (
    PoseErrors,
    angle_difference_deg,
    summarize_pose_errors,
)
from cv_patchpose.evaluation.patch_readings import read_patches
from cv_patchpose.evaluation.runner import Outcome, load_methods, measure_units, require_positive
from cv_patchpose.evaluation.samples import Figures, Sample, results_of
from cv_patchpose.patchpose.patch_sets import Chosen, PatchSet
from cv_patchpose.patchpose.plan import Shard
from cv_patchpose.patchpose.sources import PatchPoseDataset

_ARGMAX_COLUMNS = (
    "orientation_within_5_deg",
    "orientation_within_10_deg",
    "scale_within_1_6_octave",
    "scale_within_1_3_octave",
)


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
class PairErrors:
    """Errors of a method on the N pairs of one keypoint.

    Attributes:
        best_of: The smallest errors among the first 1, 2, ..., K candidates of both patches.
        argmax: Those of the fullest bins.
    """

    best_of: tuple[PoseErrors, ...]
    argmax: PoseErrors

    def figures(self) -> Figures:
        """Return the shares of the pairs within the limits."""
        return {**summarize_pair_errors([self])}

    def errors(self) -> dict[str, NDArray[np.float64]]:
        """Return the errors of the best candidates."""
        return self.best_of[0].errors()

    @classmethod
    def restore(cls, content: Figures) -> Self:
        """Make errors of their fields."""
        best_of = tuple(PoseErrors.restore(each) for each in content["best_of"])
        return cls(best_of, PoseErrors.restore(content["argmax"]))


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
    """Compare the poses of patches with those of the same place turned or zoomed.

    Orientation is scored on pairs at scale 1, scale on pairs at angle 0, as in the released
    practice. The identity patch with itself is one pair of each, which any method gets right.

    Args:
        root: Folder of a dataset.
        protocol: What is measured and how.
        jobs: Number of processes.
        cache: Folder where results are kept and found again, or None.

    Raises:
        ValueError: No dataset, nothing to measure, or a setting that makes no sense.
    """
    dataset = PatchPoseDataset(root)
    shards = dataset.shards_of(protocol.split, protocol.split_by)[:: 3 if protocol.quick else 1]
    _methods(protocol, dataset.config.patch_size)
    files = [ShardFile(shard, dataset.root / shard.name) for shard in shards]
    samples, failures = measure_units(
        partial(measure, dataset=dataset), PairErrors, files, protocol, jobs=jobs, cache=cache
    )
    if not samples:
        raise ValueError(f"split: expected pairs in {protocol.split}, got none")
    rows = [
        {"method": name, **summarize_pair_errors(results_of(samples, name))}
        for name in protocol.methods
    ]
    return Outcome(rows, failures, samples)


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


def summarize_pair_errors(results: Sequence[PairErrors]) -> dict[str, float | int | None]:
    """Percentage of pairs within each threshold, all results together.

    Args:
        results: Errors of one method; at least one.

    Returns:
        The shares of :func:`~cv_patchpose.evaluation.metrics.summarize_pose_errors`; those of the
        fullest bins, with _argmax behind their names; and, where there are several candidates, the
        recall with the first k of them, @k behind its name.

    Source:
        Lee, Jeong and Cho, "Self-Supervised Learning of Image Scale and Orientation",
        BMVC 2021, eq. 8, eq. 9 and Table 2.
    """
    argmax = summarize_pose_errors([result.argmax for result in results])
    best_of = [
        summarize_pose_errors([result.best_of[k] for result in results])
        for k in range(len(results[0].best_of))
    ]
    row = best_of[0] | {f"{name}_argmax": argmax[name] for name in _ARGMAX_COLUMNS}
    if len(best_of) > 1:
        for k, summary in enumerate(best_of, 1):
            row[f"recall_orientation_10_deg@{k}"] = summary["orientation_within_10_deg"]
            row[f"recall_scale_1_3_octave@{k}"] = summary["scale_within_1_3_octave"]
    return row


def _measure_set(method: Method, patch_set: PatchSet, chosen: Chosen, top_k: int) -> PairErrors:
    row, column = np.nonzero(chosen)
    turn_deg = np.where(column == patch_set.identity_scale, patch_set.rotation_deg[row], np.nan)
    octaves = np.where(row == 0, patch_set.octaves[column], np.nan)
    base = read_patches(method, patch_set.identity[None], top_k)
    moved = read_patches(method, patch_set.patches[chosen], top_k)
    octave_errors = np.abs(_changes(base.octaves, moved.octaves) - octaves[:, None, None])
    angle_errors = angle_difference_deg(
        _changes(base.angle_deg, moved.angle_deg), turn_deg[:, None, None]
    )
    return PairErrors(
        best_of=tuple(
            PoseErrors(_smallest(octave_errors, k), _smallest(angle_errors, k))
            for k in range(1, top_k + 1)
        ),
        argmax=PoseErrors(
            np.abs(moved.argmax_octaves - base.argmax_octaves - octaves),
            angle_difference_deg(moved.argmax_deg - base.argmax_deg, turn_deg),
        ),
    )


def _changes(base: NDArray[np.float64], moved: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, K, K) changes from every candidate of one patch to every one of N others."""
    return moved[:, :, None] - base[:, None, :]


def _smallest(errors: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """(N,) smallest of (N, K, K) among the first candidates of both, NaN where all are."""
    first = errors[:, :count, :count].reshape(len(errors), -1)
    smallest = np.where(np.isnan(first), np.inf, first).min(1)
    return np.where(np.isinf(smallest), np.nan, smallest)


def _methods(protocol: PatchPairsProtocol, patch_size: int) -> dict[str, Method]:
    settings = MethodSettings(
        window_px=float(patch_size), scale_prior_octaves=None, peer_weights=protocol.peer_weights
    )
    return load_methods(protocol.methods, settings)
