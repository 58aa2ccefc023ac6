"""From an image to described keypoints, with every method at once."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cv_patchpose.evaluation.description import DESCRIPTORS, Features, describe_keypoints
from cv_patchpose.evaluation.detection import DETECTORS, PEER_DETECTORS, Detections, detect
from cv_patchpose.evaluation.interface import Method, MethodSettings
from cv_patchpose.evaluation.kept import Kept
from cv_patchpose.evaluation.keynet import load_keynet
from cv_patchpose.evaluation.matchers import MATCHERS
from cv_patchpose.evaluation.patch_descriptors import PATCH_DESCRIPTORS, load_patch_descriptor
from cv_patchpose.evaluation.runner import load_methods, require_choice, require_positive
from cv_patchpose.evaluation.sequences import View
from cv_patchpose.evaluation.weights import import_torch
from cv_patchpose.keypoints import KeypointArrays

BUDGETS = ("places", "keypoints")
_QUICK_KEYPOINTS = 500


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """How images are matched.

    Attributes:
        methods: Names of the methods compared.
        detector: One of :data:`cv_patchpose.evaluation.detection.DETECTORS` or
            :data:`cv_patchpose.evaluation.detection.PEER_DETECTORS`.
        descriptor: One of :data:`cv_patchpose.evaluation.description.DESCRIPTORS`. Methods that
            keep the detector's size are described as a careful user of OpenCV would have it, see
            :meth:`cv_patchpose.evaluation.detection.Detections.write_fields`.
        matcher: One of :data:`cv_patchpose.evaluation.matchers.MATCHERS`.
        max_keypoints: Most points kept per image, strongest first.
        budget: What is counted: "places", each of which may have several poses and so several
            keypoints, or "keypoints", of which all methods then get the same number.
        corner_size: Size in pixels given to points of a detector without scale.
        scale_prior: See :class:`MethodSettings`.
        peer_weights: Folder with the weights of published networks.
        quick: A third of the pairs, at most 500 points.
        kept: Where detections and poses are kept for other runs, or None.
    """

    methods: tuple[str, ...]
    detector: str = "sift"
    descriptor: str = "sift"
    matcher: str = "mutual"
    max_keypoints: int = 1000
    budget: str = "places"
    corner_size: float = 12.0
    scale_prior: float | Literal["auto"] | None = "auto"
    peer_weights: Path | None = None
    quick: bool = False
    kept: Kept | None = None

    def __post_init__(self) -> None:
        require_positive(max_keypoints=self.max_keypoints, corner_size=self.corner_size)
        require_choice("detector", self.detector, (*DETECTORS, *PEER_DETECTORS))
        require_choice("descriptor", self.descriptor, DESCRIPTORS)
        require_choice("matcher", self.matcher, MATCHERS)
        require_choice("budget", self.budget, BUDGETS)

    @property
    def reads_weights(self) -> bool:
        """Whether all methods depend on the weights of published networks."""
        return self.detects_with_weights or self.descriptor in PATCH_DESCRIPTORS

    @property
    def detects_with_weights(self) -> bool:
        """Whether the points depend on the weights of published networks."""
        return self.detector in PEER_DETECTORS

    @property
    def points(self) -> int:
        """Most points kept per image."""
        return min(_QUICK_KEYPOINTS, self.max_keypoints) if self.quick else self.max_keypoints


@dataclass(frozen=True)
class Pipeline:
    """Detects once, then poses and describes the points with each method.

    Attributes:
        options: How.
        methods: By name.
    """

    options: PipelineOptions
    methods: dict[str, Method]

    def compute(self, view: View) -> dict[str, Features]:
        """Return the features of an image by method."""
        options = self.options
        image = ""
        if options.kept:
            parts = (
                view.image.tobytes(),
                view.from_photo.tobytes(),
                repr(view.photo_size).encode(),
            )
            image = hashlib.sha256(b"".join(parts)).hexdigest()
        points, detect_seconds = self._detect(view, image)
        features = {}
        for name in self.methods:
            posed, pose_seconds = self._pose(name, view, points, image)
            if options.budget == "keypoints":
                posed = posed.take(np.arange(min(len(posed), options.points)))
            start = time.perf_counter()
            described = describe_keypoints(
                view.image,
                posed,
                options.descriptor,
                self.methods[name].route,
                options.peer_weights,
            )
            seconds = {
                "detect": detect_seconds,
                "pose": pose_seconds,
                "describe": time.perf_counter() - start,
            }
            features[name] = replace(described, area_px=_photo_area(view), seconds=seconds)
        return features

    def _detect(self, view: View, image: str) -> tuple[Detections, float]:
        options = self.options

        def find() -> tuple[KeypointArrays, float]:
            start = time.perf_counter()
            found = detect(
                view, options.detector, options.points, options.corner_size, options.peer_weights
            )
            return found.oriented, time.perf_counter() - start

        oriented, seconds = options.kept.get(image, None, find) if options.kept else find()
        return Detections.of_oriented(oriented, options.detector), seconds

    def _pose(
        self, name: str, view: View, points: Detections, image: str
    ) -> tuple[KeypointArrays, float]:
        kept, target, method = self.options.kept, self.options.descriptor, self.methods[name]
        if method.route != "fields" or target in PATCH_DESCRIPTORS:
            target = "sift"  # whose sizes patches take

        def find() -> tuple[KeypointArrays, float]:
            start = time.perf_counter()
            posed = method.pose(view.image, points, target)
            return posed, time.perf_counter() - start

        return kept.get(image, (name, target), find) if kept else find()


def load_pipeline(options: PipelineOptions) -> Pipeline:
    """Load everything the options name that is not loaded yet.

    Raises:
        ValueError: An unknown method, or weights that are missing.
        ImportError: A package that is missing.
    """
    if options.detector in PEER_DETECTORS:
        load_keynet(options.peer_weights)
    if options.descriptor in PATCH_DESCRIPTORS:
        load_patch_descriptor(options.descriptor, options.peer_weights)
    if options.matcher == "adalam":
        import_torch("adalam")
    settings = MethodSettings(
        scale_prior_octaves=options.scale_prior, peer_weights=options.peer_weights
    )
    return Pipeline(options, load_methods(options.methods, settings))


def mean_seconds(features1: Features, features2: Features) -> dict[str, float]:
    """Average the stages' times over two images."""
    return {
        stage: (value + features2.seconds[stage]) / 2 for stage, value in features1.seconds.items()
    }


def _photo_area(view: View) -> float:
    width, height = view.photo_size
    return width * height * float(abs(np.linalg.det(view.from_photo)))
