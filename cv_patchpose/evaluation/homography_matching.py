"""Matching of planar scenes: how many matches a pose gives, and how many of them are right."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.description import Features
from cv_patchpose.evaluation.geometry import corner_error_px, estimate_homography
from cv_patchpose.evaluation.matchers import distinct_places, match_features
from cv_patchpose.evaluation.metrics import (
    MMA_NAMES,
    count_distinct_correct,
    homography_accuracy,
    matching_accuracy,
    median_seconds,
)
from cv_patchpose.evaluation.pipeline import PipelineOptions, load_pipeline, mean_seconds
from cv_patchpose.evaluation.runner import Outcome, require_positive, run_units
from cv_patchpose.evaluation.sequences import (
    ImageSequence,
    View,
    find_sequences,
    thin_out,
    turn_image,
)
from cv_patchpose.files import read_image
from cv_patchpose.homography import local_jacobian, nearest_similarity, project


@dataclass(frozen=True, kw_only=True)
class MatchingProtocol(PipelineOptions):
    """How matching is measured; see also :class:`PipelineOptions`.

    Attributes:
        rotate: Degrees clockwise by which image 2 is turned.
        zoom: Factor by which image 2 is zoomed.
        min_zoom_change: Keep only pairs whose zoom at the centre of image 1 is above this or
            below its inverse; None keeps all.
    """

    rotate: float = 0.0
    zoom: float = 1.0
    min_zoom_change: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(zoom=self.zoom)
        if self.min_zoom_change is not None and not self.min_zoom_change > 1:
            raise ValueError(f"min_zoom_change: expected above 1, got {self.min_zoom_change}")


@dataclass(frozen=True)
class PairResult:
    """What one method got on one pair.

    Attributes:
        method: Name.
        keypoints: Mean number of described keypoints of the two images.
        matches: Number of matches.
        correct: Number of distinct correct matches.
        accuracy: Share of matches within 1, 2, ... 10 px.
        refused: Whether the descriptor raised an error over the fields it found, in either image;
            there are no matches then.
        corner_error: Of the homography that fits the matches, pixels; inf where none does.
        seconds: Time of each stage.
    """

    method: str
    keypoints: float
    matches: int
    correct: int
    accuracy: list[float]
    refused: bool = False
    corner_error: float = math.inf
    seconds: Mapping[str, float] = field(default_factory=dict)


def run_benchmark(root: Path, protocol: MatchingProtocol, jobs: int = 1) -> Outcome:
    """Match every pair under a root with every method.

    Args:
        root: Folder with sequences in HPatches layout.
        protocol: What is measured and how.
        jobs: Number of processes.

    Raises:
        ValueError: Nothing to measure, or a setting that makes no sense.
    """
    load_pipeline(protocol)
    sequences, failures = find_sequences(root)
    if protocol.quick:
        sequences = thin_out(sequences)
    results, failed = run_units(partial(measure_sequence, protocol=protocol), sequences, jobs)
    if not results:
        raise ValueError(f"root: expected pairs that meet the protocol, got none under {root}")
    rows = [summarize(results, method) for method in protocol.methods]
    return Outcome(rows, failures | failed)


def measure_sequence(sequence: ImageSequence, protocol: MatchingProtocol) -> list[PairResult]:
    """Match image 1 of a sequence with each of its targets.

    Args:
        sequence: Image 1 and its targets.
        protocol: What is measured and how.

    Returns:
        One result per kept pair and method.
    """
    pipeline = load_pipeline(protocol)
    view1 = turn_image(read_image(sequence.first))
    features1: dict[str, Features] = {}
    results = []
    for target in sequence.targets:
        view2 = turn_image(read_image(target.path), protocol.rotate, protocol.zoom)
        homography = view2.from_photo @ target.homography
        if not _changes_zoom(view1, homography, protocol.min_zoom_change):
            continue
        features1 = features1 or pipeline.compute(view1)
        features2 = pipeline.compute(view2)
        results += [
            score_pair(name, features1[name], features2[name], homography, view1, protocol.matcher)
            for name in protocol.methods
        ]
    return results


def summarize(results: list[PairResult], method: str) -> dict[str, float | str]:
    """Average a method's results over pairs."""
    own = [result for result in results if result.method == method]
    accuracy = np.mean([result.accuracy for result in own], axis=0)
    return {
        "method": method,
        **dict(zip(MMA_NAMES, accuracy.tolist(), strict=True)),
        "matches": float(np.mean([result.matches for result in own])),
        "correct_matches": float(np.mean([result.correct for result in own])),
        "keypoints": float(np.mean([result.keypoints for result in own])),
        "pairs": len(own),
        "refused_pairs": sum(result.refused for result in own),
        **homography_accuracy([result.corner_error for result in own]),
        **median_seconds([result.seconds for result in own]),
    }


def _changes_zoom(view1: View, homography: NDArray[np.float64], least: float | None) -> bool:
    if least is None:
        return True
    height, width = view1.image.shape[:2]
    center = np.array([[(width - 1) / 2, (height - 1) / 2]])
    scale, _ = nearest_similarity(local_jacobian(homography, center))
    return bool(abs(np.log2(scale[0])) > np.log2(least))


def score_pair(
    method: str,
    features1: Features,
    features2: Features,
    homography: NDArray[np.float64],
    view1: View,
    matcher: str = "mutual",
) -> PairResult:
    """Match two images' features and compare the matches with the homography."""
    seconds = mean_seconds(features1, features2)
    start = time.perf_counter()
    matches = match_features(features1, features2, matcher)
    seconds["match"] = time.perf_counter() - start
    estimated = estimate_homography(*distinct_places(features1, features2, matches))
    seconds["verify"] = time.perf_counter() - start - seconds["match"]
    xy1, xy2 = features1.xy_px[matches[:, 0]], features2.xy_px[matches[:, 1]]
    error_px = np.linalg.norm(project(homography, xy1) - xy2, axis=1)
    return PairResult(
        method=method,
        keypoints=(len(features1.keypoints) + len(features2.keypoints)) / 2,
        matches=len(matches),
        correct=count_distinct_correct(xy1, xy2, error_px),
        accuracy=matching_accuracy(error_px),
        refused=features1.refused or features2.refused,
        corner_error=corner_error_px(estimated, homography, view1.image.shape[:2]),
        seconds=seconds,
    )
