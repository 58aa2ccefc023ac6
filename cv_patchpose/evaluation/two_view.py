"""Relative pose of two calibrated photographs: how often matches lead to the right one.

The pipeline is that of the paper's last table: keypoints and their poses, descriptors, mutual
nearest neighbours, rejection of outliers by AdaLAM, a robust essential matrix, and the share of
pairs whose pose is right within 1 to 10 degrees.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.cameras import pose_error_deg, relative_pose
from cv_patchpose.evaluation.description import Features
from cv_patchpose.evaluation.geometry import epipolar_error_px, estimate_relative_pose
from cv_patchpose.evaluation.kept import keep_in
from cv_patchpose.evaluation.matchers import distinct_places, match_features
from cv_patchpose.evaluation.metrics import (
    CORRECT_PX,
    MAA_LIMITS_DEG,
    mean_average_accuracy,
    median_seconds,
)
from cv_patchpose.evaluation.pipeline import PipelineOptions, load_pipeline, mean_seconds
from cv_patchpose.evaluation.results import TwoViewResult
from cv_patchpose.evaluation.runner import Outcome, measure_units
from cv_patchpose.evaluation.samples import Sample, ShownPair, results_by_method
from cv_patchpose.evaluation.scenes import DIFFICULTIES, ViewPair, find_pairs
from cv_patchpose.evaluation.sequences import read_photograph, require_view, turn_image
from cv_patchpose.matching import Matches

# Images whose features are kept, more than IMC2021's scenes have: image 1 of one pair is image 2 of
# others. Of 2048 keypoints with 128 floats each, they take 140 MB per method in each process.
_IMAGES_KEPT = 128
_ESTIMATES = 3


@dataclass(frozen=True, kw_only=True)
class TwoViewProtocol(PipelineOptions):
    """How relative pose of two views is measured; see also :class:`PipelineOptions`.

    Attributes:
        rotate: Degrees clockwise by which image 2 is rotated, its camera with it.
        zoom: Factor by which image 2 is zoomed.
        random_turn: Rotate image 2 by a further angle, drawn for each image.
        seed: Of the angles drawn.
    """

    matcher: str = "adalam"
    max_keypoints: int = 2048
    budget: str = "keypoints"
    rotate: float = 0.0
    zoom: float = 1.0
    random_turn: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_view(self.rotate, self.zoom)

    def turn_deg(self, pair: ViewPair) -> float:
        """Angle by which image 2 of a pair is rotated: one per image, the same in every run."""
        if not self.random_turn:
            return self.rotate
        name = f"{pair.sequence}/{pair.second.path.name}"
        generator = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        return self.rotate + float(generator.uniform(0.0, 360.0))


def run_benchmark(
    root: Path, protocol: TwoViewProtocol, jobs: int = 1, cache: Path | None = None
) -> Outcome:
    """Find the pose of every pair under a root with every method.

    Args:
        root: Folder with scenes; see :mod:`cv_patchpose.evaluation.scenes`.
        protocol: What is measured and how.
        jobs: Number of processes.
        cache: Folder where results are kept and found again, or None.

    Raises:
        ValueError: Nothing to measure, or a setting that makes no sense.
        ImportError: A package that is missing.
    """
    load_pipeline(protocol)
    pairs, failures = find_pairs(root)
    if protocol.quick:
        pairs = pairs[::3]
    _features.cache_clear()  # the files may have changed since
    samples, failures = measure_units(
        measure_pair, TwoViewResult, pairs, replace(protocol, kept=keep_in(cache, protocol)),
        jobs=jobs, cache=cache, group=_scene_of, known=failures,
    )  # fmt: skip
    first = {each.place: each.result for each in samples if each.method == protocol.methods[0]}
    several = len({each.sequence for each in samples}) > 1
    rows = []
    for name, found in results_by_method(samples, protocol.methods).items():
        places = [each.place for each in samples if each.method == name]
        scenes = [scene for scene, _ in places] if several else None
        rows.append(summarize(found, name, [first.get(place) for place in places], scenes))
    units = {(pair.sequence, pair.pair): pair for pair in pairs}
    return Outcome(rows, failures, samples, units)


def measure_pair(pair: ViewPair, protocol: TwoViewProtocol) -> list[Sample[TwoViewResult]]:
    """Find the relative pose of a pair with each method.

    Args:
        pair: Two photographs.
        protocol: What is measured and how.

    Returns:
        One sample per method.
    """
    turned, features1, features2 = _describe_pair(pair, protocol)
    results = {
        name: score_pair(features1[name], features2[name], turned, protocol.matcher)
        for name in protocol.methods
    }
    return [Sample(pair.sequence, pair.pair, name, each) for name, each in results.items()]


def show_pair(pair: ViewPair, protocol: TwoViewProtocol) -> ShownPair:
    """Match a pair with each method, to look at what agrees with the true pose."""
    turned, *features = _describe_pair(pair, protocol)
    matches = {}
    for name in protocol.methods:
        features1, features2 = (each[name] for each in features)
        found = match_features(features1, features2, protocol.matcher)
        xy1, xy2 = distinct_places(features1, features2, found)
        error_px = epipolar_error_px(xy1, xy2, turned.first.camera, turned.second.camera)
        right = error_px <= CORRECT_PX
        counts = (len(features1.keypoints), len(features2.keypoints))
        matches[name] = Matches(counts, xy1.astype(np.float32), xy2.astype(np.float32), right)
    images = (
        turn_image(_read(pair.first.path, pair.first.size)),
        turn_image(
            _read(pair.second.path, pair.second.size), protocol.turn_deg(pair), protocol.zoom
        ),
    )
    counted = f"within {CORRECT_PX:g} px of the true epipolar lines"
    return ShownPair(images[0].image, images[1].image, matches, counted)


def _scene_of(pair: ViewPair) -> str:
    """One bad image fails in many pairs."""
    return pair.sequence


def _describe_pair(
    pair: ViewPair, protocol: TwoViewProtocol
) -> tuple[ViewPair, dict[str, Features], dict[str, Features]]:
    """Return the pair, rotated as the protocol wants it, and the features of its images."""
    features1, _ = _features(pair.first.path, pair.first.size, 0.0, 1.0, protocol)
    second = pair.second
    features2, from_photo = _features(
        second.path, second.size, protocol.turn_deg(pair) % 360.0, protocol.zoom, protocol
    )
    turned = replace(second, camera=second.camera.turn(from_photo))
    return replace(pair, second=turned), features1, features2


@lru_cache(maxsize=_IMAGES_KEPT)
def _features(
    path: Path,
    size: tuple[int, int] | None,
    turn_deg: float,
    zoom: float,
    protocol: TwoViewProtocol,
) -> tuple[dict[str, Features], NDArray[np.float64]]:
    """Return the features of a rotated photograph, and the map from the photograph to it."""
    view = turn_image(_read(path, size), turn_deg, zoom)
    return load_pipeline(protocol).compute(view), view.from_photo


def score_pair(
    features1: Features, features2: Features, pair: ViewPair, matcher: str
) -> TwoViewResult:
    """Match two images' features and compare the poses that fit with the cameras'.

    A robust estimate depends on the order of the matches: the pose is estimated for several.

    Source: Jin et al., "Image Matching across Wide Baselines: From Paper to Practice", IJCV 2020,
        averages over several runs likewise.
    """
    seconds = mean_seconds(features1, features2)
    start = time.perf_counter()
    matches = match_features(features1, features2, matcher)
    xy1, xy2 = distinct_places(features1, features2, matches)
    seconds["match"] = time.perf_counter() - start
    camera1, camera2 = pair.first.camera, pair.second.camera
    orders = [np.random.default_rng(seed).permutation(len(xy1)) for seed in range(_ESTIMATES)]
    fits = [estimate_relative_pose(xy1[order], xy2[order], camera1, camera2) for order in orders]
    seconds["verify"] = (time.perf_counter() - start - seconds["match"]) / _ESTIMATES
    true = relative_pose(camera1, camera2)
    return TwoViewResult(
        difficulty=pair.difficulty,
        errors_deg=tuple(
            math.inf if fit is None else pose_error_deg(fit.pose, true) for fit in fits
        ),
        matches=len(xy1),
        inliers=float(np.mean([0 if fit is None else fit.inlier.sum() for fit in fits])),
        keypoints=(len(features1.keypoints) + len(features2.keypoints)) / 2,
        seconds=seconds,
        refused=features1.refused or features2.refused,
    )


def summarize(
    results: list[TwoViewResult],
    method: str,
    first: Sequence[TwoViewResult | None] | None = None,
    scenes: Sequence[str] | None = None,
) -> dict[str, float | str | None]:
    """Average a method's results over pairs; difficulties without a pair give None.

    Args:
        results: The method's, of every pair.
        method: Its name.
        first: Those of the method to compare with, pair by pair, if there is one; None for a pair
            on which it failed. The gain in mAA(10) comes with its standard error: pairs are few,
            and those that one method finds and another does not are fewer.
        scenes: Of each result. If given, mAA is also averaged over scenes, each counting the same
            however many pairs it has, as the Image Matching Challenge does.
    """
    row: dict[str, float | str | None] = {"method": method}
    for limit in MAA_LIMITS_DEG:
        row[f"maa_{limit}"] = mean_average_accuracy(_errors_deg(results), limit)
    if scenes is not None:
        for limit in MAA_LIMITS_DEG:
            row[f"maa_{limit}_scenes"] = _mean_over_scenes(results, scenes, limit)
    for difficulty in DIFFICULTIES:
        alike = [each for each in results if each.difficulty == difficulty]
        row[f"maa_10_{difficulty}"] = (
            mean_average_accuracy(_errors_deg(alike), 10) if alike else None
        )
        row[f"pairs_{difficulty}"] = len(alike)
    if first is not None:
        gains = [
            _accuracy(one) - _accuracy(other)
            for one, other in zip(results, first, strict=True)
            if other is not None
        ]
        row["maa_10_gain"] = float(np.mean(gains)) if gains else None
        row["maa_10_gain_error"] = (
            float(np.std(gains, ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else None
        )
    return {
        **row,
        "inliers": float(np.mean([each.inliers for each in results])),
        "matches": float(np.mean([each.matches for each in results])),
        "keypoints": float(np.mean([each.keypoints for each in results])),
        "pairs": len(results),
        "refused_pairs": sum(each.refused for each in results),
        **median_seconds([each.seconds for each in results]),
    }


def _mean_over_scenes(results: Sequence[TwoViewResult], scenes: Sequence[str], limit: int) -> float:
    by_scene: dict[str, list[TwoViewResult]] = {}
    for result, scene in zip(results, scenes, strict=True):
        by_scene.setdefault(scene, []).append(result)
    return float(
        np.mean([mean_average_accuracy(_errors_deg(own), limit) for own in by_scene.values()])
    )


def _accuracy(result: TwoViewResult) -> float:
    return mean_average_accuracy(result.errors_deg, 10)


def _errors_deg(results: list[TwoViewResult]) -> list[float]:
    return [error for result in results for error in result.errors_deg]


def _read(path: Path, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Read an image of the (height, width) that its calibration is for."""
    image = read_photograph(path)
    if size is not None and image.shape[:2] != size:
        raise ValueError(
            f"{path}: expected the calibrated {size[1]} x {size[0]} px, "
            f"got {image.shape[1]} x {image.shape[0]}"
        )
    return image
