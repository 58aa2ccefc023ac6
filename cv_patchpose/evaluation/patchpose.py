"""The clean protocol: photographs against themselves, rotated or zoomed by known amounts."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cv_patchpose.evaluation.detection import harris_corners
from cv_patchpose.evaluation.interface import Method, MethodSettings
from cv_patchpose.evaluation.methods import require_one_pose
from cv_patchpose.evaluation.metrics import PoseErrors, pose_errors, summarize_pose_errors
from cv_patchpose.evaluation.runner import Outcome, load_methods, measure_units, require_positive
from cv_patchpose.evaluation.samples import Sample, results_by_method
from cv_patchpose.evaluation.sequences import View, turn_image
from cv_patchpose.files import find_images, read_image
from cv_patchpose.homography import project
from cv_patchpose.keypoints import KeypointArrays

_MAX_OCTAVES = 2.0


@dataclass(frozen=True, kw_only=True)
class PatchPoseProtocol:
    """How the clean protocol is measured.

    Attributes:
        methods: Names of the methods compared.
        images: Number of photographs, drawn from the folder.
        points_per_image: Harris corners of each.
        views: Rotated views of each, and as many zoomed ones.
        window_px: Support of every point.
        seed: Of the photographs, angles and zooms drawn.
        peer_weights: Folder with the weights of published estimators.
        quick: A third of the photographs.
    """

    methods: tuple[str, ...]
    images: int = 20
    points_per_image: int = 10
    views: int = 4
    window_px: float = 64.0
    seed: int = 0
    peer_weights: Path | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        require_positive(
            images=self.images,
            points_per_image=self.points_per_image,
            views=self.views,
            window_px=self.window_px,
        )
        require_one_pose(self.methods)


@dataclass(frozen=True)
class Photograph:
    """An image file of the benchmark.

    Attributes:
        name: Path relative to the root.
        path: The file.
    """

    name: str
    path: Path


def run_benchmark(
    root: Path, protocol: PatchPoseProtocol, jobs: int = 1, cache: Path | None = None
) -> Outcome:
    """Compare poses of photographs with those of their rotated and zoomed views.

    Args:
        root: Folder of photographs, searched recursively.
        protocol: What is measured and how.
        jobs: Number of processes.
        cache: Folder where results are kept and found again, or None.

    Raises:
        ValueError: Nothing to measure, or a setting that makes no sense.
    """
    if protocol.quick:
        protocol = replace(protocol, images=max(1, protocol.images // 3))
    _methods(protocol)
    photographs = draw_photographs(root, protocol.images, protocol.seed)
    samples, failures = measure_units(
        measure, PoseErrors, photographs, protocol, jobs=jobs, cache=cache
    )
    results = results_by_method(samples, protocol.methods)
    rows = [{"method": name, **summarize_pose_errors(found)} for name, found in results.items()]
    return Outcome(rows, failures, samples)


def draw_photographs(root: Path, count: int, seed: int) -> list[Photograph]:
    """Draw image files from a folder.

    Args:
        root: Folder, searched recursively.
        count: How many at most.
        seed: Of the draw.

    Raises:
        ValueError: No folder, or no image in it.
    """
    if not root.is_dir():
        raise ValueError(
            f"root: expected a folder of photographs or a PatchPose dataset, got {str(root)!r}"
        )
    paths = find_images(root, "root")
    drawn = np.random.default_rng(seed).permutation(len(paths))[:count]
    return [Photograph(paths[i].relative_to(root).as_posix(), paths[i]) for i in sorted(drawn)]


def measure(photograph: Photograph, protocol: PatchPoseProtocol) -> list[Sample[PoseErrors]]:
    """Compare one photograph's poses with those of its views.

    Rotated views keep the scale and score orientation; views zoomed by up to two octaves either
    way keep the angle and score scale.

    Args:
        photograph: The image file.
        protocol: What is measured and how.

    Returns:
        One sample per view and method.

    Raises:
        ValueError: The photograph cannot be read or is too small for the windows.
    """
    image = read_image(photograph.path)
    points = _roomy_corners(photograph, turn_image(image), protocol)
    methods = _methods(protocol)
    base = {name: method.estimate(image, points) for name, method in methods.items()}
    rng = np.random.default_rng([protocol.seed, zlib.crc32(photograph.name.encode())])
    turns = [(angle, 1.0) for angle in rng.uniform(0, 360, protocol.views)]
    zooms = [(0.0, 2**o) for o in rng.uniform(-_MAX_OCTAVES, _MAX_OCTAVES, protocol.views)]
    samples = []
    for angle_deg, zoom in turns + zooms:
        view = turn_image(image, angle_deg, zoom)
        moved = project(view.from_photo, points.xy_px.astype(np.float64)).astype(np.float32)
        moved_points = replace(points, xy_px=moved)
        truth = (zoom, np.nan) if angle_deg == 0 else (np.nan, angle_deg)
        name = f"rotated {angle_deg:.0f} degrees, zoomed {zoom:.2f}"
        for method, estimator in methods.items():
            errors = pose_errors(base[method], estimator.estimate(view.image, moved_points), *truth)
            samples.append(Sample(photograph.name, name, method, errors))
    return samples


def _roomy_corners(
    photograph: Photograph, view: View, protocol: PatchPoseProtocol
) -> KeypointArrays:
    """Strongest corners whose windows fit in every view."""
    room_px = protocol.window_px / 2 * 2**_MAX_OCTAVES
    corners = harris_corners(view.image)
    inside = np.flatnonzero(view.shows(corners.xy_px.astype(np.float64), room_px))
    if not len(inside):
        raise ValueError(f"{photograph.path}: expected corners {room_px:g} px from its border")
    return corners.take(inside[: protocol.points_per_image])


def _methods(protocol: PatchPoseProtocol) -> dict[str, Method]:
    settings = MethodSettings(
        window_px=protocol.window_px, scale_prior_octaves=None, peer_weights=protocol.peer_weights
    )
    return load_methods(protocol.methods, settings)
