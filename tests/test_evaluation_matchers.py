"""What matchers go by: Hamming distances of bits, and AdaLAM's angles and sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cv_patchpose.evaluation.description import Features
from cv_patchpose.evaluation.matchers import match_features, squared_distances
from cv_patchpose.evaluation.sequences import turn_image
from cv_patchpose.homography import project
from cv_patchpose.keypoints import KeypointArrays

COUNT, ROTATE_DEG, ZOOM = 400, 30.0, 1.5
WRONG = np.arange(0, COUNT, 4)


def test_bytes_are_compared_bit_by_bit():
    first = np.array([[0b00000000, 0b11111111], [0b10000001, 0b11111111]], np.uint8)
    second = np.array([[0b00001110, 0b11111111], [0b10000000, 0b11110000]], np.uint8)
    assert squared_distances(first, second).tolist() == [[3, 5], [5, 5]]


def describe(xy_px, size_px, angle_deg):
    """Features at these places, all unlike each other and the same in every image."""
    keypoints = KeypointArrays(
        xy_px.astype(np.float32),
        size_px.astype(np.float32),
        angle_deg.astype(np.float32),
        np.ones(COUNT, np.float32),
        np.zeros(COUNT, np.int32),
        np.zeros(COUNT, np.int32),
    )
    descriptors = np.random.default_rng(1).normal(size=(COUNT, 16)).astype(np.float32)
    return Features(keypoints, descriptors, area_px=400.0**2)


@pytest.mark.parametrize("wrong", ["nothing", "angle", "size"])
def test_adalam_drops_what_agrees_in_place_only(wrong):
    generator = np.random.default_rng(0)
    xy_px = generator.uniform(0, 400, (COUNT, 2))
    first = describe(xy_px, np.full(COUNT, 4), np.zeros(COUNT))
    from_photo = turn_image(np.zeros((400, 400, 3), np.uint8), ROTATE_DEG, ZOOM).from_photo
    angle_deg, size_px = np.full(COUNT, ROTATE_DEG), np.full(COUNT, 4 * ZOOM)
    if wrong == "angle":
        angle_deg[WRONG] += generator.uniform(45, 315, len(WRONG))
    if wrong == "size":
        octaves = generator.uniform(1, 4, len(WRONG)) * generator.choice([-1, 1], len(WRONG))
        size_px[WRONG] *= 2**octaves
    second = describe(project(from_photo, xy_px), size_px, angle_deg)
    second = replace(second, area_px=first.area_px * ZOOM**2)
    assert len(match_features(first, second)) == COUNT  # by descriptors all are right
    kept = match_features(first, second, "adalam")[:, 0]
    expected = np.arange(COUNT) if wrong == "nothing" else np.setdiff1d(np.arange(COUNT), WRONG)
    assert not np.setdiff1d(kept, expected).size
    assert len(kept) > 0.95 * len(expected)
