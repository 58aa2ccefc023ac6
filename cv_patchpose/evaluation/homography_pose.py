"""Relative pose on planar scenes: are scale and orientation those the homography implies?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.detection import detect, harris_corners
from cv_patchpose.evaluation.interface import Image, Method, MethodSettings
from cv_patchpose.evaluation.methods import require_one_pose
from cv_patchpose.evaluation.metrics import RIGHT_DEG, PoseErrors, pose_errors
from cv_patchpose.evaluation.pair_errors import (
    PairErrors,
    compare_readings,
    summarize_pair_errors,
)
from cv_patchpose.evaluation.patch_readings import read_points
from cv_patchpose.evaluation.runner import (
    Outcome,
    load_methods,
    measure_units,
    require_choice,
    require_positive,
)
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
from cv_patchpose.gradients import SIFT_SIGMA, gradient_moments, rotation_of_gradients
from cv_patchpose.homography import global_change, local_jacobian, nearest_similarity, project
from cv_patchpose.keypoints import KeypointArrays
from cv_patchpose.matching import Matches

POINT_SOURCES = ("fixed", "repeated", "paper")
GROUND_TRUTHS = ("local", "gradients", "global", "normalized")
_FIXED_POINTS_PER_PAIR = 400
_PAPER_POINTS_PER_PAIR = 25
_SIFT_CANDIDATES = 2000  # of which those near the border are left out
_REPEATED_WITHIN_PX = 2.0
_REPEATED_WITHIN_OCTAVES = 0.5
_SIZES_PER_WINDOW = 21.0  # of polar and polar-large


@dataclass(frozen=True, kw_only=True)
class PoseProtocol:
    """How relative pose is measured.

    Attributes:
        methods: Names of the methods compared.
        points: "fixed" reads poses of image 1's Harris corners and of their exact positions in
            image 2; "paper" of 25 points, half of them SIFT's, half corners, likewise; "repeated"
            those of SIFT detections found again in image 2.
        window_px: Support of every point of "fixed" and "paper".
        ground_truth: "local" takes the homography's change at each point; "gradients" likewise,
            but the rotation of the gradients there, under a Gaussian of SIFT's sigma; "global" one
            change for the pair, the paper's eq. 10 in pixels, and "normalized" the same where the
            centres of the images are the origin.
        max_keypoints: Strongest SIFT points per image of "repeated"; a bound on the 400 points per
            pair of "fixed" and the 25 of "paper".
        rotate: Degrees clockwise by which image 2 is rotated.
        zoom: Factor by which image 2 is zoomed.
        scale_prior: See :class:`MethodSettings`; "auto" is a flat prior for "fixed" and "paper".
        top_k: Recall is given for 1 to so many candidates at each point, if above 1: the pose
            itself and what `read_points` gives beside it.
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
    top_k: int = 1
    peer_weights: Path | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        require_positive(
            max_keypoints=self.max_keypoints,
            window_px=self.window_px,
            top_k=self.top_k,
        )
        require_view(self.rotate, self.zoom)
        require_choice("points", self.points, POINT_SOURCES)
        require_choice("ground_truth", self.ground_truth, GROUND_TRUTHS)
        require_one_pose(self.methods)
        if self.points != "repeated" and self.scale_prior not in ("auto", None, math.inf):
            raise ValueError(
                f"scale_prior: expected auto or none for {self.points} points, got "
                f"{self.scale_prior}: only repeated points have sizes for a prior to be around"
            )

    @property
    def most_points(self) -> int:
        """Strongest points: of an image of "repeated", of a pair of the others."""
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
        measure_pair, PairErrors, pairs, protocol,
        jobs=jobs, cache=cache, group=sequence_of, known=failures,
    )  # fmt: skip
    results = results_by_method(samples, protocol.methods)
    rows = [{"method": name, **summarize_pair_errors(found)} for name, found in results.items()]
    units = {(pair.sequence, pair.pair): pair for pair in pairs}
    return Outcome(rows, failures, samples, units)


def measure_pair(pair: PlanarPair, protocol: PoseProtocol) -> list[Sample[PairErrors]]:
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
    """Measure a pair with each method, to look at the points whose orientation is right."""
    found = _measure(pair, protocol)
    (image1, image2), (points1, points2) = found.images, found.points
    counts = (len(points1), len(points2))
    matches = {
        name: Matches(
            counts, points1.xy_px, points2.xy_px, errors.best_of[0].angle_deg <= RIGHT_DEG
        )
        for name, errors in found.errors.items()
    }
    return ShownPair(image1, image2, matches, f"orientation right within {RIGHT_DEG} degrees")


@dataclass(frozen=True)
class _Measured:
    images: tuple[Image, Image]
    points: tuple[KeypointArrays, KeypointArrays]
    errors: dict[str, PairErrors]


def _measure(pair: PlanarPair, protocol: PoseProtocol) -> _Measured:
    view1 = turn_image(read_photograph(pair.first))
    view2 = turn_image(read_photograph(pair.target.path), protocol.rotate, protocol.zoom)
    homography = view2.from_photo @ pair.target.homography
    if protocol.points == "repeated":
        points = repeated_points(view1, view2, homography, protocol.most_points)
    else:
        choose = fixed_points if protocol.points == "fixed" else paper_points
        points = choose(view1, view2, homography, protocol.window_px, protocol.most_points)
    images = (view1.image, view2.image)
    change = _true_change(homography, points[0], protocol, images)
    errors = {
        name: _pair_errors(method, images, points, change, protocol.top_k)
        for name, method in _methods(protocol).items()
    }
    return _Measured(images, points, errors)


def _pair_errors(
    method: Method,
    images: tuple[Image, Image],
    points: tuple[KeypointArrays, KeypointArrays],
    change: tuple[NDArray[np.float64], NDArray[np.float64]],
    top_k: int,
) -> PairErrors:
    estimates1, estimates2 = map(method.estimate, images, points)
    readings1 = read_points(method, images[0], points[0], estimates1, top_k)
    readings2 = read_points(method, images[1], points[1], estimates2, top_k)
    scale, angle_deg = change
    errors = compare_readings(readings1, readings2, np.log2(scale), angle_deg, top_k)
    # The first candidate is the pose that the method gives, with its prior if it has one.
    own = pose_errors(estimates1, estimates2, scale, angle_deg)
    return replace(errors, best_of=(own, *(_better(own, more) for more in errors.best_of[1:])))


def _better(one: PoseErrors, other: PoseErrors) -> PoseErrors:
    """Take the smaller errors; NaN where the second says nothing."""
    return PoseErrors(
        np.minimum(one.scale_octaves, other.scale_octaves),
        np.minimum(one.angle_deg, other.angle_deg),
    )


def fixed_points(
    view1: View,
    view2: View,
    homography: NDArray[np.float64],
    window_px: float,
    max_points: int = _FIXED_POINTS_PER_PAIR,
) -> tuple[KeypointArrays, KeypointArrays]:
    """Take image 1's strongest Harris corners, and their exact positions in image 2.

    Args:
        view1: Image 1.
        view2: Image 2.
        homography: (3, 3), from image 1 to image 2.
        window_px: Support that must lie inside both images.
        max_points: Strongest corners taken, 400 at most.

    Returns:
        The same number of points in both images, all of one size.
    """
    most = min(max_points, _FIXED_POINTS_PER_PAIR)
    return _follow(harris_corners(view1.image), view1, view2, homography, window_px, most)


def paper_points(
    view1: View,
    view2: View,
    homography: NDArray[np.float64],
    window_px: float,
    max_points: int = _PAPER_POINTS_PER_PAIR,
) -> tuple[KeypointArrays, KeypointArrays]:
    """Take the strongest points of image 1, half SIFT's, half Harris corners, as `fixed_points`.

    Args:
        view1: Image 1.
        view2: Image 2.
        homography: (3, 3), from image 1 to image 2.
        window_px: Support that must lie inside both images.
        max_points: Points taken, 25 at most; of an odd number SIFT has one more.

    Returns:
        The same number of points in both images, all of one size.

    Source:
        Lee, Jeong and Cho, "Self-Supervised Learning of Image Scale and Orientation",
        BMVC 2021, section 4.1.
    """
    most = min(max_points, _PAPER_POINTS_PER_PAIR)
    blobs = detect(view1, "sift", _SIFT_CANDIDATES, 1.0).points
    blobs = replace(
        blobs,
        size_px=np.ones(len(blobs), np.float32),
        angle_deg=np.full(len(blobs), -1, np.float32),
    )
    sift = blobs.take(blobs.distinct_index())  # a place counts once, whatever sizes it had
    halves = [
        _follow(found, view1, view2, homography, window_px, count)
        for found, count in ((sift, (most + 1) // 2), (harris_corners(view1.image), most // 2))
    ]
    points1, points2 = (_join(parts) for parts in zip(*halves, strict=True))
    return points1, points2


def _join(parts: Sequence[KeypointArrays]) -> KeypointArrays:
    names = vars(parts[0])
    return KeypointArrays(**{n: np.concatenate([vars(part)[n] for part in parts]) for n in names})


def _follow(
    found: KeypointArrays,
    view1: View,
    view2: View,
    homography: NDArray[np.float64],
    window_px: float,
    count: int,
) -> tuple[KeypointArrays, KeypointArrays]:
    """The first points of image 1 whose windows lie inside both images, and where they are in 2."""
    xy1 = found.xy_px.astype(np.float64)
    xy2 = project(homography, xy1)
    inside = view1.shows(xy1, window_px / 2) & view2.shows(xy2, window_px / 2)
    index = np.flatnonzero(inside)[:count]
    points1 = found.take(index)
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
    homography: NDArray[np.float64],
    points1: KeypointArrays,
    protocol: PoseProtocol,
    images: tuple[Image, Image],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if protocol.ground_truth in ("local", "gradients"):
        xy_px = points1.xy_px.astype(np.float64)
        jacobian = local_jacobian(homography, xy_px)
        scale, angle_deg = nearest_similarity(jacobian)
        if protocol.ground_truth == "gradients":
            size_px = points1.size_px.astype(np.float64)
            if protocol.points != "repeated":
                size_px = np.full(len(points1), protocol.window_px / _SIZES_PER_WINDOW)
            moments = gradient_moments(images[0], xy_px, SIFT_SIGMA * size_px)
            angle_deg = rotation_of_gradients(np.eye(2), jacobian, moments)
        return scale, angle_deg
    if protocol.ground_truth == "normalized":
        from_middle1, from_middle2 = map(_from_middle, images)
        centred = np.linalg.inv(from_middle2) @ homography @ from_middle1
        homography = np.asarray(centred, np.float64)
    count = len(points1)
    zoom, turn_deg = global_change(homography)
    return np.full(count, zoom), np.full(count, turn_deg)


def _from_middle(image: Image) -> NDArray[np.float64]:
    """Map coordinates that count from an image's centre to its pixels."""
    height, width = image.shape[:2]
    return np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1.0]])


def _methods(protocol: PoseProtocol) -> dict[str, Method]:
    fixed = protocol.points != "repeated"
    prior = None if fixed and protocol.scale_prior == "auto" else protocol.scale_prior
    settings = MethodSettings(
        window_px=protocol.window_px if fixed else None,
        scale_prior_octaves=prior,
        peer_weights=protocol.peer_weights,
    )
    return load_methods(protocol.methods, settings)
