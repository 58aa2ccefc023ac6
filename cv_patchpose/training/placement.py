"""Where keypoints of a photograph lie in views of it, and in which windows they are seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.gradients import SIFT_SIGMA, gradient_moments, rotation_of_gradients
from cv_patchpose.homography import local_jacobian, nearest_similarity, project
from cv_patchpose.training.options import SynthesisConfig
from cv_patchpose.training.photographs import Photograph
from cv_patchpose.training.synthesis import View

# How far a detection may be from the truth to be that blob.
NEAR_SIZES = 0.5  # between the places, in diameters of the blob,
NEAR_PX = (1.5, 3.0)  # no less and no more than these
NEAR_OCTAVES = 0.6  # between the sizes


@dataclasses.dataclass(frozen=True)
class Placement:
    """B keypoints of a photograph in V views.

    Attributes:
        jacobian: (B, V, 2, 2) from photograph to view at the keypoint.
        exact_px: (B, V, 2) the keypoint's true places.
        exact_window_px: (B, V) windows that show the same in all views, but for slant.
        xy_px: (B, V, 2) places as a detector may find them.
        window_px: (B, V) windows, likewise.
        scale_sigma: (B,) octaves, standard deviation of what is known of the scale beforehand;
            inf: nothing.
        gradients: (B, 2, 2) second moments of the photograph's gradients around the keypoint;
            None where the rotation is that of the points.
    """

    jacobian: NDArray[np.float64]
    exact_px: NDArray[np.float64]
    exact_window_px: NDArray[np.float64]
    xy_px: NDArray[np.float64]
    window_px: NDArray[np.float64]
    scale_sigma: NDArray[np.float64]
    gradients: NDArray[np.float64] | None = None

    def rotation_deg(self) -> NDArray[np.float64]:
        """Compute the (B, V) true rotations from the photograph to its views, clockwise."""
        if self.gradients is None:
            return nearest_similarity(self.jacobian)[1]
        return rotation_of_gradients(np.eye(2), self.jacobian, self.gradients[:, None])


def place_keypoints(
    photograph: Photograph,
    views: Sequence[View],
    config: SynthesisConfig,
    rng: np.random.Generator,
) -> Placement | None:
    """Choose keypoints that all views show, and draw the places and windows they are seen in.

    Args:
        photograph: image and candidate keypoints.
        views: of the photograph.
        config: ranges of everything drawn.
        rng: random generator.

    Returns:
        At most `config.keypoints_per_view` keypoints, or None when no candidate is visible in all
        views.
    """
    homographies = [view.homography for view in views]
    chosen = rng.permutation(_visible_everywhere(photograph, homographies, config))
    redetected = None
    if config.redetected:
        index, redetected = _choose(find_again(photograph, chosen, views), config)
        index = rng.permutation(index)
        chosen, redetected = chosen[index], redetected.take(index)
    else:
        chosen = chosen[: config.keypoints_per_view]
    if len(chosen) == 0:
        return None
    xy, size = photograph.xy_px[chosen], photograph.size_px[chosen]
    jacobian = np.stack([local_jacobian(h, xy) for h in homographies], 1)
    zoom, _ = nearest_similarity(jacobian)
    window = _reference_windows(size, config, rng)[:, None]
    tracked, free = rng.random((2, len(xy))) < ((config.tracked,), (config.free,))
    if redetected:
        tracked |= redetected.found.any(1)
    window_px = window * 2.0 ** _window_changes(zoom, tracked, free, config, rng)
    exact = np.stack([project(h, xy) for h in homographies], 1)
    jitter_px = config.jitter * window_px + config.jitter_px
    places = exact + rng.normal(size=exact.shape) * jitter_px[..., None]
    if redetected:
        found = redetected.found
        places[found] = redetected.xy_px[found]
        window_px[found] = (window * redetected.size_px / size[:, None])[found]
    sigma = np.where(tracked, config.scale_sigma_octaves, np.inf)
    moments = None
    if config.rotation == "gradients":
        sigma_px = SIFT_SIGMA / config.magnification * window[:, 0]
        moments = gradient_moments(photograph.image, xy, sigma_px)
    return Placement(jacobian, exact, window * zoom, places, window_px, sigma, moments)


def _visible_everywhere(
    photograph: Photograph,
    homographies: Sequence[NDArray[np.float64]],
    config: SynthesisConfig,
) -> NDArray[np.intp]:
    visible = np.ones(len(photograph.xy_px), bool)
    low, high = config.margin_px, config.canvas_px - 1 - config.margin_px
    for homography in homographies:
        depth = photograph.xy_px @ homography[2, :2] + homography[2, 2]
        mapped = project(homography, photograph.xy_px)
        visible &= (depth > 0.2) & ((mapped >= low) & (mapped <= high)).all(1)
    return np.flatnonzero(visible)


@dataclasses.dataclass(frozen=True)
class Redetections:
    """K keypoints of a photograph as a detector finds them in V views.

    A keypoint that is matched in earnest was detected in each image by itself: its place and size
    are off by what blur, noise and slant make of them, and not as random numbers would have it.

    Attributes:
        found: (K, V) whether there is a detection at about the true place and size.
        xy_px: (K, V, 2) its place in the view; elsewhere without meaning.
        size_px: (K, V) its size in the view; elsewhere without meaning.
    """

    found: NDArray[np.bool_]
    xy_px: NDArray[np.float64]
    size_px: NDArray[np.float64]

    def take(self, index: NDArray[np.intp]) -> Redetections:
        """Choose some of the keypoints."""
        return Redetections(self.found[index], self.xy_px[index], self.size_px[index])


def find_again(
    photograph: Photograph, index: NDArray[np.intp], views: Sequence[View]
) -> Redetections:
    """Detect SIFT's blobs in views, and look for those of a photograph among them.

    Args:
        photograph: image and candidate keypoints.
        index: (K,) candidates to look for; corners, which have no size, are never found.
        views: of the photograph, as they are seen: spoilt.
    """
    found = [_find_in(view, photograph.xy_px[index], photograph.size_px[index]) for view in views]
    return Redetections(*(np.stack(values, 1) for values in zip(*found, strict=True)))


def _find_in(
    view: View, xy_px: NDArray[np.float64], size_px: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    blobs = np.array([(*k.pt, k.size) for k in cv2.SIFT.create().detect(view.image)])
    if len(blobs) == 0 or len(xy_px) == 0:
        return np.zeros(len(xy_px), bool), xy_px, size_px
    zoom, _ = nearest_similarity(local_jacobian(view.homography, xy_px))
    size = size_px * zoom
    distance = np.linalg.norm(blobs[:, :2] - project(view.homography, xy_px)[:, None], axis=-1)
    # A comparison with NaN, the size of a corner, does not hold.
    distance[~(np.abs(np.log2(blobs[:, 2] / size[:, None])) < NEAR_OCTAVES)] = np.inf
    nearest = distance.argmin(1)
    found = distance.min(1) < np.clip(NEAR_SIZES * size, *NEAR_PX)
    return found, blobs[nearest, :2], blobs[nearest, 2]


def _choose(
    redetected: Redetections, config: SynthesisConfig
) -> tuple[NDArray[np.intp], Redetections]:
    """Take what is found again up to its share, and fill up with others, whose detections go."""
    found = redetected.found
    again = np.flatnonzero(found.sum(1) >= config.views - 1)
    again = again[: round(config.redetected * config.keypoints_per_view)]
    others = np.delete(np.arange(len(found)), again)[: config.keypoints_per_view - len(again)]
    counts = np.zeros((len(found), 1), bool)
    counts[again] = True
    kept = dataclasses.replace(redetected, found=found & counts)
    return np.concatenate((again, others)), kept


def _reference_windows(
    size_px: NDArray[np.float64], config: SynthesisConfig, rng: np.random.Generator
) -> NDArray[np.float64]:
    low, high = np.log2(config.window_px)
    window = 2.0 ** rng.uniform(low, high, len(size_px))
    blob = ~np.isnan(size_px)
    window[blob] = config.magnification * size_px[blob] * 2.0 ** rng.normal(0, 0.3, blob.sum())
    return np.clip(window, config.window_px[0] / 2, 2 * config.window_px[1])


def _window_changes(
    zoom: NDArray[np.float64],
    tracked: NDArray[np.bool_],
    free: NDArray[np.bool_],
    config: SynthesisConfig,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Draw log2 changes of the windows of (B,) keypoints from the photograph to (B, V) views.

    Tracked ones follow the zoom as a detector does that measures scale, free ones up to an error
    of any size; the others have one window in pixels whatever the zoom.
    """
    tracked, free = tracked[:, None], free[:, None]
    error = rng.normal(0, config.scale_sigma_octaves, zoom.shape)
    reach = config.scale_range_octaves
    anything = rng.uniform(-reach, reach, zoom.shape)
    followed = np.log2(zoom) + np.where(tracked, error, anything)
    return np.where(tracked | free, followed, 0.1 * error)
