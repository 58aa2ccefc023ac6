"""Matching of planar scenes: how many matches a pose gives, and how many of them are right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.descriptors import DESCRIPTORS
from cv_patchpose.evaluation.description import Features, describe_keypoints, match_features
from cv_patchpose.evaluation.detection import DETECTORS, detect
from cv_patchpose.evaluation.methods import Method, MethodSettings
from cv_patchpose.evaluation.metrics import (
    MMA_NAMES,
    count_distinct_correct,
    matching_accuracy,
)
from cv_patchpose.evaluation.runner import (
    Outcome,
    load_methods,
    require_choice,
    require_positive,
    run_units,
)
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
class MatchingProtocol:
    """How matching is measured.

    Attributes:
        methods: Names of the methods compared.
        detector: One of :data:`cv_patchpose.evaluation.detection.DETECTORS`.
        descriptor: One of :data:`cv_patchpose.descriptors.DESCRIPTORS`. Methods that keep the
            detector's size are described as a careful user of OpenCV would have it, see
            :func:`cv_patchpose.evaluation.methods.write_fields`.
        max_keypoints: Strongest points kept per image.
        corner_size: Size in pixels given to points of a detector without scale.
        rotate: Degrees clockwise by which image 2 is turned.
        zoom: Factor by which image 2 is zoomed.
        min_zoom_change: Keep only pairs whose zoom at the centre of image 1 is above this or
            below its inverse; None keeps all.
        scale_prior: See :class:`MethodSettings`.
        peer_weights: Folder with the weights of published estimators.
        quick: Every third pair, at most 500 points.
    """

    methods: tuple[str, ...]
    detector: str = "sift"
    descriptor: str = "sift"
    max_keypoints: int = 1000
    corner_size: float = 12.0
    rotate: float = 0.0
    zoom: float = 1.0
    min_zoom_change: float | None = None
    scale_prior: float | Literal["auto"] | None = "auto"
    peer_weights: Path | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        require_positive(
            max_keypoints=self.max_keypoints, corner_size=self.corner_size, zoom=self.zoom
        )
        require_choice("detector", self.detector, DETECTORS)
        require_choice("descriptor", self.descriptor, DESCRIPTORS)
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
    """

    method: str
    keypoints: float
    matches: int
    correct: int
    accuracy: list[float]
    refused: bool = False


def run_benchmark(root: Path, protocol: MatchingProtocol, jobs: int = 1) -> Outcome:
    """Match every pair under a root with every method.

    Args:
        root: Folder with sequences in HPatches layout.
        protocol: What is measured and how.
        jobs: Number of processes.

    Raises:
        ValueError: Nothing to measure, or a setting that makes no sense.
    """
    if protocol.quick:
        protocol = replace(protocol, max_keypoints=min(500, protocol.max_keypoints))
    _methods(protocol)
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
    methods = _methods(protocol)
    view1 = turn_image(read_image(sequence.first))
    features1: dict[str, Features] = {}
    results = []
    for target in sequence.targets:
        view2 = turn_image(read_image(target.path), protocol.rotate, protocol.zoom)
        homography = view2.from_photo @ target.homography
        if not _changes_zoom(view1, homography, protocol.min_zoom_change):
            continue
        features1 = features1 or compute_features(view1, methods, protocol)
        features2 = compute_features(view2, methods, protocol)
        results += [
            score_pair(name, features1[name], features2[name], homography) for name in methods
        ]
    return results


def compute_features(
    view: View, methods: dict[str, Method], protocol: MatchingProtocol
) -> dict[str, Features]:
    """Detect once, then pose and describe the points with each method."""
    points = detect(view, protocol.detector, protocol.max_keypoints, protocol.corner_size)
    return {
        name: describe_keypoints(
            view.image,
            method.pose(view.image, points, protocol.descriptor),
            protocol.descriptor,
            method.route,
        )
        for name, method in methods.items()
    }


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
    }


def _methods(protocol: MatchingProtocol) -> dict[str, Method]:
    settings = MethodSettings(
        scale_prior_octaves=protocol.scale_prior, peer_weights=protocol.peer_weights
    )
    return load_methods(protocol.methods, settings)


def _changes_zoom(view1: View, homography: NDArray[np.float64], least: float | None) -> bool:
    if least is None:
        return True
    height, width = view1.image.shape[:2]
    center = np.array([[(width - 1) / 2, (height - 1) / 2]])
    scale, _ = nearest_similarity(local_jacobian(homography, center))
    return bool(abs(np.log2(scale[0])) > np.log2(least))


def score_pair(
    method: str, features1: Features, features2: Features, homography: NDArray[np.float64]
) -> PairResult:
    """Match two images' features and compare the matches with the homography."""
    matches = match_features(features1, features2)
    xy1, xy2 = features1.xy_px[matches[:, 0]], features2.xy_px[matches[:, 1]]
    error_px = np.linalg.norm(project(homography, xy1) - xy2, axis=1)
    return PairResult(
        method=method,
        keypoints=(len(features1.xy_px) + len(features2.xy_px)) / 2,
        matches=len(matches),
        correct=count_distinct_correct(xy1, xy2, error_px),
        accuracy=matching_accuracy(error_px),
        refused=features1.refused or features2.refused,
    )
