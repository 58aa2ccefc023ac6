"""Matching of planar scenes: how many matches a pose gives, and how many of them are right."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.description import Features
from cv_patchpose.evaluation.geometry import corner_error_px, estimate_homography
from cv_patchpose.evaluation.kept import keep_in
from cv_patchpose.evaluation.matchers import distinct_places, match_features
from cv_patchpose.evaluation.metrics import (
    MMA_NAMES,
    count_distinct_correct,
    distinct_correct,
    homography_accuracy,
    matching_accuracy,
    median_seconds,
)
from cv_patchpose.evaluation.pipeline import PipelineOptions, load_pipeline, mean_seconds
from cv_patchpose.evaluation.results import PairResult
from cv_patchpose.evaluation.runner import Outcome, measure_units, tell_failures
from cv_patchpose.evaluation.samples import Sample, ShownPair, results_by_method
from cv_patchpose.evaluation.sequences import (
    PlanarPair,
    View,
    find_sequences,
    list_pairs,
    read_photograph,
    require_view,
    sequence_of,
    turn_image,
)
from cv_patchpose.homography import local_jacobian, nearest_similarity, project
from cv_patchpose.matching import Matches

_IMAGES_KEPT = 4  # whose features are kept: image 1 of a sequence is in all of its pairs


@dataclass(frozen=True, kw_only=True)
class MatchingProtocol(PipelineOptions):
    """How matching is measured; see also :class:`PipelineOptions`.

    Attributes:
        rotate: Degrees clockwise by which image 2 is rotated.
        zoom: Factor by which image 2 is zoomed.
        min_zoom_change: Keep only pairs whose zoom at the centre of image 1 is above this or
            below its inverse; None keeps all.
    """

    rotate: float = 0.0
    zoom: float = 1.0
    min_zoom_change: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_view(self.rotate, self.zoom)
        if self.min_zoom_change is not None and not self.min_zoom_change > 1:
            raise ValueError(f"min_zoom_change: expected above 1, got {self.min_zoom_change}")


def run_benchmark(
    root: Path, protocol: MatchingProtocol, jobs: int = 1, cache: Path | None = None
) -> Outcome:
    """Match every pair under a root with every method.

    Args:
        root: Folder with sequences in HPatches layout.
        protocol: What is measured and how.
        jobs: Number of processes.
        cache: Folder where results are kept and found again, or None.

    Raises:
        ValueError: Nothing to measure, or a setting that makes no sense.
    """
    load_pipeline(protocol)
    sequences, failures = find_sequences(root)
    pairs = list_pairs(sequences, protocol.quick)
    _features.cache_clear()  # the files may have changed since
    samples, failures = measure_units(
        measure_pair, PairResult, pairs, replace(protocol, kept=keep_in(cache, protocol)),
        jobs=jobs, cache=cache, group=sequence_of, known=failures,
    )  # fmt: skip
    if not samples:
        what = f"root: expected pairs that meet the protocol, got none under {root}"
        raise ValueError("\n".join([what, tell_failures(failures)]).strip())
    results = results_by_method(samples, protocol.methods)
    rows = [summarize(found, name) for name, found in results.items()]
    units = {(pair.sequence, pair.pair): pair for pair in pairs}
    return Outcome(rows, failures, samples, units)


def measure_pair(pair: PlanarPair, protocol: MatchingProtocol) -> list[Sample[PairResult]]:
    """Match a pair with each method.

    Args:
        pair: Image 1 of a sequence and another of it.
        protocol: What is measured and how.

    Returns:
        One sample per method; none if the protocol does not want the pair.
    """
    view1, view2, homography = _read_pair(pair, protocol)
    if not _changes_zoom(view1, homography, protocol.min_zoom_change):
        return []
    features1 = _features(pair.first, protocol)
    features2 = load_pipeline(protocol).compute(view2)
    results = {
        name: score_pair(features1[name], features2[name], homography, view1, protocol.matcher)
        for name in protocol.methods
    }
    return [Sample(pair.sequence, pair.pair, name, each) for name, each in results.items()]


def show_pair(pair: PlanarPair, protocol: MatchingProtocol) -> ShownPair:
    """Match a pair with each method, to look at the correct ones."""
    view1, view2, homography = _read_pair(pair, protocol)
    features = [load_pipeline(protocol).compute(view) for view in (view1, view2)]
    matches = {}
    for name in protocol.methods:
        features1, features2 = (each[name] for each in features)
        found = match_features(features1, features2, protocol.matcher)
        xy1, xy2 = features1.xy_px[found[:, 0]], features2.xy_px[found[:, 1]]
        correct = distinct_correct(xy1, xy2, _error_px(homography, xy1, xy2))
        counts = (len(features1.keypoints), len(features2.keypoints))
        matches[name] = Matches(counts, xy1.astype(np.float32), xy2.astype(np.float32), correct)
    return ShownPair(view1.image, view2.image, matches, "distinct and correct")


def _error_px(
    homography: NDArray[np.float64], xy1: NDArray[np.float64], xy2: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(project(homography, xy1) - xy2, axis=1))


def _read_pair(
    pair: PlanarPair, protocol: MatchingProtocol
) -> tuple[View, View, NDArray[np.float64]]:
    view1 = turn_image(read_photograph(pair.first))
    view2 = turn_image(read_photograph(pair.target.path), protocol.rotate, protocol.zoom)
    return view1, view2, view2.from_photo @ pair.target.homography


@lru_cache(maxsize=_IMAGES_KEPT)
def _features(path: Path, protocol: MatchingProtocol) -> dict[str, Features]:
    return load_pipeline(protocol).compute(turn_image(read_photograph(path)))


def summarize(results: list[PairResult], method: str) -> dict[str, float | str]:
    """Average a method's results over pairs."""
    accuracy = np.mean([result.accuracy for result in results], axis=0)
    return {
        "method": method,
        **dict(zip(MMA_NAMES, accuracy.tolist(), strict=True)),
        "matches": float(np.mean([result.matches for result in results])),
        "correct_matches": float(np.mean([result.correct for result in results])),
        "keypoints": float(np.mean([result.keypoints for result in results])),
        "pairs": len(results),
        "refused_pairs": sum(result.refused for result in results),
        **homography_accuracy([result.corner_error for result in results]),
        **median_seconds([result.seconds for result in results]),
    }


def _changes_zoom(view1: View, homography: NDArray[np.float64], least: float | None) -> bool:
    if least is None:
        return True
    height, width = view1.image.shape[:2]
    center = np.array([[(width - 1) / 2, (height - 1) / 2]])
    scale, _ = nearest_similarity(local_jacobian(homography, center))
    return bool(abs(np.log2(scale[0])) > np.log2(least))


def score_pair(
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
    error_px = _error_px(homography, xy1, xy2)
    return PairResult(
        keypoints=(len(features1.keypoints) + len(features2.keypoints)) / 2,
        matches=len(matches),
        correct=count_distinct_correct(xy1, xy2, error_px),
        accuracy=matching_accuracy(error_px),
        refused=features1.refused or features2.refused,
        corner_error=corner_error_px(estimated, homography, view1.image.shape[:2]),
        seconds=seconds,
    )
