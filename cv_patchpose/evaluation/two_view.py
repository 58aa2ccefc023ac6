"""Relative pose of two calibrated photographs: how often matches lead to the right one.

The pipeline is that of the paper's last table: keypoints and their poses, descriptors, mutual
nearest neighbours, rejection of outliers by AdaLAM, a robust essential matrix, and the share of
pairs whose pose is right within 1 to 10 degrees.
"""

from __future__ import annotations

import math
import time
import zlib
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.cameras import pose_error_deg, relative_pose
from cv_patchpose.evaluation.description import Features
from cv_patchpose.evaluation.geometry import estimate_relative_pose
from cv_patchpose.evaluation.matchers import distinct_places, match_features
from cv_patchpose.evaluation.metrics import (
    MAA_LIMITS_DEG,
    mean_average_accuracy,
    median_seconds,
)
from cv_patchpose.evaluation.pipeline import PipelineOptions, load_pipeline, mean_seconds
from cv_patchpose.evaluation.runner import Outcome, require_positive, run_units
from cv_patchpose.evaluation.scenes import DIFFICULTIES, ViewPair, find_pairs
from cv_patchpose.evaluation.sequences import turn_image
from cv_patchpose.files import read_image

_IMAGES_KEPT = 32  # whose features are kept: image 1 of one pair is image 2 of others


@dataclass(frozen=True, kw_only=True)
class TwoViewProtocol(PipelineOptions):
    """How relative pose of two views is measured; see also :class:`PipelineOptions`.

    Attributes:
        rotate: Degrees clockwise by which image 2 is turned, its camera with it.
        zoom: Factor by which image 2 is zoomed.
        random_turn: Turn image 2 by a further angle, drawn for each pair.
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
        require_positive(zoom=self.zoom)

    def turn_deg(self, pair: ViewPair) -> float:
        """Angle by which image 2 of a pair is turned, the same in every run."""
        if not self.random_turn:
            return self.rotate
        generator = np.random.default_rng([self.seed, zlib.crc32(pair.name.encode())])
        return self.rotate + float(generator.uniform(0.0, 360.0))


@dataclass(frozen=True)
class TwoViewResult:
    """What one method got on one pair.

    Attributes:
        method: Name.
        difficulty: Of the pair.
        error_deg: Of the pose; inf where none was found.
        matches: Number of pairs of places matched.
        inliers: Number of those that agree with the pose.
        keypoints: Mean number of described keypoints of the two images.
        seconds: Time of each stage.
        refused: Whether the descriptor raised an error over the fields it found.
    """

    method: str
    difficulty: str
    error_deg: float
    matches: int
    inliers: int
    keypoints: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    refused: bool = False


def run_benchmark(root: Path, protocol: TwoViewProtocol, jobs: int = 1) -> Outcome:
    """Find the pose of every pair under a root with every method.

    Args:
        root: Folder with scenes; see :mod:`cv_patchpose.evaluation.scenes`.
        protocol: What is measured and how.
        jobs: Number of processes.

    Raises:
        ValueError: Nothing to measure, or a setting that makes no sense.
        ImportError: A package that is missing.
    """
    load_pipeline(protocol)
    pairs, failures = find_pairs(root)
    if not pairs:
        raise ValueError("; ".join(f"{name}: {what}" for name, what in failures.items()))
    if protocol.quick:
        pairs = pairs[::3]
    results, failed = run_units(partial(measure_pair, protocol=protocol), pairs, jobs)
    rows = [summarize(results, method) for method in protocol.methods]
    return Outcome(rows, failures | failed)


def measure_pair(pair: ViewPair, protocol: TwoViewProtocol) -> list[TwoViewResult]:
    """Find the relative pose of a pair with each method.

    Args:
        pair: Two photographs.
        protocol: What is measured and how.

    Returns:
        One result per method.
    """
    features1 = _plain_features(pair.first.path, pair.first.size, protocol)
    turn_deg = protocol.turn_deg(pair)
    if turn_deg % 360.0 == 0.0 and protocol.zoom == 1.0:
        features2 = _plain_features(pair.second.path, pair.second.size, protocol)
    else:
        second = pair.second
        view = turn_image(_read(second.path, second.size), turn_deg, protocol.zoom)
        features2 = load_pipeline(protocol).compute(view)
        turned = replace(second, camera=second.camera.turn(view.from_photo))
        pair = replace(pair, second=turned)
    return [
        score_pair(name, features1[name], features2[name], pair, protocol.matcher)
        for name in protocol.methods
    ]


def score_pair(
    method: str, features1: Features, features2: Features, pair: ViewPair, matcher: str
) -> TwoViewResult:
    """Match two images' features and compare the pose that fits with the cameras'."""
    seconds = mean_seconds(features1, features2)
    start = time.perf_counter()
    matches = match_features(features1, features2, matcher)
    xy1, xy2 = distinct_places(features1, features2, matches)
    seconds["match"] = time.perf_counter() - start
    camera1, camera2 = pair.first.camera, pair.second.camera
    fit = estimate_relative_pose(xy1, xy2, camera1, camera2)
    seconds["verify"] = time.perf_counter() - start - seconds["match"]
    true = relative_pose(camera1, camera2)
    return TwoViewResult(
        method=method,
        difficulty=pair.difficulty,
        error_deg=math.inf if fit is None else pose_error_deg(fit.pose, true),
        matches=len(xy1),
        inliers=0 if fit is None else int(fit.inlier.sum()),
        keypoints=(len(features1.keypoints) + len(features2.keypoints)) / 2,
        seconds=seconds,
        refused=features1.refused or features2.refused,
    )


def summarize(results: list[TwoViewResult], method: str) -> dict[str, float | str | None]:
    """Average a method's results over pairs; difficulties without a pair give None."""
    own = [result for result in results if result.method == method]
    row: dict[str, float | str | None] = {"method": method}
    for limit in MAA_LIMITS_DEG:
        row[f"maa_{limit}"] = mean_average_accuracy([each.error_deg for each in own], limit)
    for difficulty in DIFFICULTIES:
        errors = [each.error_deg for each in own if each.difficulty == difficulty]
        row[f"maa_10_{difficulty}"] = mean_average_accuracy(errors, 10) if errors else None
        row[f"pairs_{difficulty}"] = len(errors)
    return {
        **row,
        "inliers": float(np.mean([each.inliers for each in own])),
        "matches": float(np.mean([each.matches for each in own])),
        "keypoints": float(np.mean([each.keypoints for each in own])),
        "pairs": len(own),
        "refused_pairs": sum(each.refused for each in own),
        **median_seconds([each.seconds for each in own]),
    }


@lru_cache(maxsize=_IMAGES_KEPT)
def _plain_features(
    path: Path, size: tuple[int, int] | None, protocol: TwoViewProtocol
) -> dict[str, Features]:
    return load_pipeline(protocol).compute(turn_image(_read(path, size)))


def _read(path: Path, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Read an image of the (height, width) that its calibration is for."""
    image = read_image(path)
    if size is not None and image.shape[:2] != size:
        raise ValueError(
            f"{path}: expected the calibrated {size[1]} x {size[0]} px, "
            f"got {image.shape[1]} x {image.shape[0]}"
        )
    return image
