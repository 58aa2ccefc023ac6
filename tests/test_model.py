"""The bundled model on photographs: floors of accuracy under known turns and zooms."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from skimage import data

from cv_patchpose import PatchPoseAssigner
from cv_patchpose.detectors import detect
from cv_patchpose.evaluation.sequences import turn_image
from cv_patchpose.homography import project
from cv_patchpose.keypoints import arrays_from_keypoints, keypoints_from_arrays

PHOTOGRAPHS = {
    "motorcycle": lambda: data.stereo_motorcycle()[0],
    "astronaut": data.astronaut,
    "coffee": data.coffee,
}
POINTS = 300
ROOM = 12  # pixels of photograph around a point, in sizes


@pytest.fixture(scope="module", params=PHOTOGRAPHS)
def scene(request):
    """Return a BGR photograph and its SIFT keypoints away from the border, strongest first."""
    image = cv2.cvtColor(PHOTOGRAPHS[request.param](), cv2.COLOR_RGB2BGR)
    points = arrays_from_keypoints(detect(image, "sift", 10_000))
    points = points.take(points.distinct_index())
    points = points.take(np.argsort(-points.response, kind="stable"))
    height, width = image.shape[:2]
    room_px = np.column_stack([points.xy_px, (width, height) - points.xy_px]).min(1)
    index = np.flatnonzero(room_px > ROOM * points.size_px)[:POINTS]
    assert len(index) == POINTS
    return image, points.take(index)


@pytest.fixture(scope="module")
def assigner():
    return PatchPoseAssigner("polar")


def view_of(image, points, *, turn_deg=0.0, zoom=1.0):
    """Turn, zoom and spoil a photograph; return it and its points, exactly where they belong."""
    view = turn_image(image, turn_deg, zoom)
    noise = np.random.default_rng(0).normal(0, 3, view.image.shape)
    xy_px = project(view.from_photo, points.xy_px.astype(np.float64)).astype(np.float32)
    moved = replace(points, xy_px=xy_px, size_px=points.size_px * np.float32(zoom))
    return np.clip(view.image + noise, 0, 255).astype(np.uint8), moved


def estimate(assigner, image, points):
    return assigner.estimate(image, keypoints_from_arrays(points))


def shuffled(values):
    return np.random.default_rng(1).permutation(values)


@pytest.mark.parametrize("change", [{"turn_deg": 35.0}, {"zoom": 0.7}], ids=str)
def test_orientations_follow_the_photograph(assigner, scene, change):
    image, points = scene
    first = estimate(assigner, image, points).angle_deg
    second = estimate(assigner, *view_of(image, points, **change)).angle_deg

    def share(angle_deg):
        error = (second - angle_deg - change.get("turn_deg", 0) + 180) % 360 - 180
        return np.mean(np.abs(error) <= 10)

    assert share(first) > 3 * share(shuffled(first))
    assert share(first) >= 0.87


def test_scales_follow_a_zoom(scene):
    free = PatchPoseAssigner("polar", scale_prior_octaves=None)
    image, points = scene
    zoomed, moved = view_of(image, points, zoom=1.5)
    first = np.log2(estimate(free, image, points).scale)
    second = np.log2(estimate(free, zoomed, replace(moved, size_px=points.size_px)).scale)

    def share(octaves):
        return np.mean(np.abs(second - octaves - np.log2(1.5)) <= 1 / 3)

    assert share(first) > share(shuffled(first))
    assert share(first) >= 0.87


@pytest.mark.parametrize("prior", ["auto", None])
def test_sizes_are_near_the_detector_s(scene, prior):
    image, points = scene
    assigner = PatchPoseAssigner("polar", scale_prior_octaves=prior)
    posed = arrays_from_keypoints(assigner.assign(image, keypoints_from_arrays(points)))
    assert 0.8 <= np.median(posed.size_px / points.size_px) <= 1.25
