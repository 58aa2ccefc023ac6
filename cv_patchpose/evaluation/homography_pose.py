"""Relative pose on planar scenes: are scale and orientation those the homography implies?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.detection import detect, harris_corners
from cv_patchpose.evaluation.interface import Image, Method, MethodSettings
from cv_patchpose.evaluation.methods import require_one_pose
from cv_patchpose.evaluation.metrics import (
    RIGHT_DEG,
    PoseErrors,
    pose_errors,
    summarize_pose_errors,
)
from cv_patchpose.evaluation.runner import (
    Outcome,
    load_methods,
    measure_units,
    require_choice,
    require_positive,
)
from cv_patchpose.evaluation.samples import Sample, ShownPair, results_of
from cv_patchpose.evaluation.sequences import (
    PlanarPair,
    View,
    find_sequences,
    list_pairs,
    sequence_of,
    turn_image,
)
from cv_patchpose.files import read_image
from cv_patchpose.homography import global_change, local_jacobian, nearest_similarity, project
from cv_patchpose.keypoints import KeypointArrays
from cv_patchpose.matching import Matches

POINT_SOURCES = ("fixed", "repeated")
GROUND_TRUTHS = ("local", "global")
_FIXED_POINTS_PER_PAIR = 400
_REPEATED_WITHIN_PX = 2.0
_REPEATED_WITHIN_OCTAVES = 0.5


@dataclass(frozen=True, kw_only=True)
class PoseProtocol:
    """How relative pose is measured.

    Attributes:
        methods: Names of the methods compared.
        points: "fixed" reads poses of image 1's Harris corners and of their exact positions in
            image 2; "repeated" those of SIFT detections found again in image 2.
        window_px: Support of every point of "fixed".
        ground_truth: "local" takes the homography's change at each point, "global" one change
            for the pair.
        max_keypoints: Strongest SIFT points per image of "repeated".
        rotate: Degrees clockwise by which image 2 is turned.
        zoom: Factor by which image 2 is zoomed.
        scale_prior: See :class:`MethodSettings`; "auto" is a flat prior for "fixed".
        peer_weights: Folder with the weights of published estimators.
        quick: Every third pair, at most 500 points.
    """

    methods: tuple[str, ...]
    points: str = "fixed"
    window_px: float = 96.0
    ground_truth: str = "local"
    max_keypoints: int = 1000
    rotate: float = 0.0
    zoom: float = 1.0
    scale_prior: float | Literal["auto"] | None = "auto"
    peer_weights: Path | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        require_positive(max_keypoints=self.max_keypoints, window_px=self.window_px, zoom=self.zoom)
        require_choice("points", self.points, POINT_SOURCES)
        require_choice("ground_truth", self.ground_truth, GROUND_TRUTHS)
        require_one_pose(self.methods)

    @property
    def most_points(self) -> int:
        """Strongest SIFT points of "repeated"."""
        return min(500, self.max_keypoints) if self.quick else self.max_keypoints


def run_benchmark(
    root: Path, protocol: PoseProtocol, jobs: int = 1, cache: Path | None = None
) -> Outcome:
    """Measure relative poses on every pair under a root with every method.

    Args:
        root: Folder with sequences in HPatches layout.
        protocol: What is measured and how.
        jobs: Number of processes.
        cache: Folder where results are kept and found again, or None.

    Raises:
        ValueError: Nothing to measure, or a setting that makes no sense.
    """
    _methods(protocol)
    sequences, failures = find_sequences(root)
    pairs = list_pairs(sequences, protocol.quick)
    samples, failures = measure_units(
        measure_pair, PoseErrors, pairs, protocol,
        jobs=jobs, cache=cache, group=sequence_of, known=failures,
    )  # fmt: skip
    rows = [
        {"method": name, **summarize_pose_errors(results_of(samples, name))}
        for name in protocol.methods
    ]
    units = {(pair.sequence, pair.pair): pair for pair in pairs}
    return Outcome(rows, failures, samples, units)


def measure_pair(pair: PlanarPair, protocol: PoseProtocol) -> list[Sample[PoseErrors]]:
    """Measure relative poses between image 1 of a sequence and another of it.

    Args:
        pair: The two images.
        protocol: What is measured and how.

    Returns:
        One sample per method.
    """
    found = _measure(pair, protocol)
    return [Sample(pair.sequence, pair.pair, name, each) for name, each in found.errors.items()]


def show_pair(pair: PlanarPair, protocol: PoseProtocol) -> ShownPair:
    """Measure a pair with each method, to look at the points where the turn is right."""
    found = _measure(pair, protocol)
    (image1, image2), (points1, points2) = found.images, found.points
    counts = (len(points1), len(points2))
    matches = {
        name: Matches(counts, points1.xy_px, points2.xy_px, errors.angle_deg <= RIGHT_DEG)
        for name, errors in found.errors.items()
    }
    return ShownPair(image1, image2, matches, f"turned right within {RIGHT_DEG} degrees")


@dataclass(frozen=True)
class _Measured:
    images: tuple[Image, Image]
    points: tuple[KeypointArrays, KeypointArrays]
    errors: dict[str, PoseErrors]


def _measure(pair: PlanarPair, protocol: PoseProtocol) -> _Measured:
    view1 = turn_image(read_image(pair.first))
    view2 = turn_image(read_image(pair.target.path), protocol.rotate, protocol.zoom)
    homography = view2.from_photo @ pair.target.homography
    if protocol.points == "fixed":
        points = fixed_points(view1, view2, homography, protocol.window_px)
    else:
        points = repeated_points(view1, view2, homography, protocol.most_points)
    change = _true_change(homography, points[0], protocol.ground_truth)
    images = (view1.image, view2.image)
    errors = {}
    for name, method in _methods(protocol).items():
        estimates1, estimates2 = map(method.estimate, images, points)
        errors[name] = pose_errors(estimates1, estimates2, *change)
    return _Measured(images, points, errors)


def fixed_points(
    view1: View, view2: View, homography: NDArray[np.float64], window_px: float
) -> tuple[KeypointArrays, KeypointArrays]:
    """Take image 1's strongest Harris corners, and their exact positions in image 2.

    Args:
        view1: Image 1.
        view2: Image 2.
        homography: (3, 3), from image 1 to image 2.
        window_px: Support that must lie inside both images.

    Returns:
        The same number of points in both images, at most 400, all of one size.
    """
    corners = harris_corners(view1.image)
    xy1 = corners.xy_px.astype(np.float64)
    xy2 = project(homography, xy1)
    inside = view1.shows(xy1, window_px / 2) & view2.shows(xy2, window_px / 2)
    index = np.flatnonzero(inside)[:_FIXED_POINTS_PER_PAIR]
    points1 = corners.take(index)
    return points1, replace(points1, xy_px=xy2[index].astype(np.float32))


def repeated_points(
    view1: View, view2: View, homography: NDArray[np.float64], max_points: int
) -> tuple[KeypointArrays, KeypointArrays]:
    """Find SIFT detections of image 1 that were made again in image 2.

    A detection repeats if the two are each other's nearest, within 2 px in image 2, among those
    whose sizes agree with the homography within half an octave.

    Args:
        view1: Image 1.
        view2: Image 2.
        homography: (3, 3), from image 1 to image 2.
        max_points: Strongest detections considered per image, one orientation each.

    Returns:
        The same number of points in both images, as detected.
    """
    points1, points2 = (detect(view, "sift", max_points, 1.0).points for view in (view1, view2))
    if not len(points1) or not len(points2):
        return points1.take(np.arange(0)), points2.take(np.arange(0))
    xy1 = points1.xy_px.astype(np.float64)
    scale, _ = nearest_similarity(local_jacobian(homography, xy1))
    offset = project(homography, xy1)[:, None] - points2.xy_px
    distance_px = np.linalg.norm(offset, axis=2)
    octaves = np.log2(points2.size_px / (points1.size_px * scale)[:, None])
    distance_px[np.abs(octaves) > _REPEATED_WITHIN_OCTAVES] = np.inf
    nearest2 = distance_px.argmin(1)
    index1 = np.arange(len(points1))
    mutual = distance_px.argmin(0)[nearest2] == index1
    repeated = mutual & (distance_px[index1, nearest2] <= _REPEATED_WITHIN_PX)
    return points1.take(index1[repeated]), points2.take(nearest2[repeated])


def _true_change(
    homography: NDArray[np.float64], points1: KeypointArrays, ground_truth: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if ground_truth == "local":
        return nearest_similarity(local_jacobian(homography, points1.xy_px.astype(np.float64)))
    scale, angle_deg = global_change(homography)
    return np.full(len(points1), scale), np.full(len(points1), angle_deg)


def _methods(protocol: PoseProtocol) -> dict[str, Method]:
    fixed = protocol.points == "fixed"
    prior = None if fixed and protocol.scale_prior == "auto" else protocol.scale_prior
    settings = MethodSettings(
        window_px=protocol.window_px if fixed else None,
        scale_prior_octaves=prior,
        peer_weights=protocol.peer_weights,
    )
    return load_methods(protocol.methods, settings)
