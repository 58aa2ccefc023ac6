"""The fields written for SIFT are those its own detector writes."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from cv_patchpose.descriptors import SiftRule, rule_for
from cv_patchpose.keypoints import arrays_from_keypoints, keypoints_from_arrays

LAYER_AND_OCTAVE = 0xFFFF  # the third byte is a sub-layer offset that nobody reads


@pytest.mark.parametrize(("layers", "sigma"), [(3, 1.6), (5, 1.6), (3, 1.2)])
def test_octaves_are_those_of_the_detector(gray_photographs, layers, sigma):
    sift = cv2.SIFT.create(nOctaveLayers=layers, sigma=sigma)
    rule = rule_for(sift)
    agree = []
    for image in gray_photographs:
        found = arrays_from_keypoints(sift.detect(image, None))
        stripped = replace(found, octave=np.zeros_like(found.octave))
        written = rule.write(stripped, image.shape)
        agree.append((written.octave & LAYER_AND_OCTAVE) == (found.octave & LAYER_AND_OCTAVE))
    agree = np.concatenate(agree)
    assert len(agree) > 1000
    assert agree.mean() >= 0.999


def test_only_the_octave_is_written():
    given = arrays_from_keypoints([cv2.KeyPoint(30, 40, 9, 12, 0.5, 3, 7)])
    written = SiftRule().write(given, (480, 640))
    for name in ("xy_px", "size_px", "angle_deg", "response", "class_id"):
        np.testing.assert_array_equal(getattr(written, name), getattr(given, name))


@pytest.mark.parametrize("size", [0.01, 0.5, 1.7, 3.2, 30, 300, 3000, 1e6])
@pytest.mark.parametrize("shape", [(480, 640), (64, 64), (9, 300)])
def test_any_size_can_be_described(size, shape):
    given = arrays_from_keypoints([cv2.KeyPoint(shape[1] / 2, shape[0] / 2, size)])
    written = SiftRule().write(given, shape)
    octave, layer = int(written.octave[0]) & 255, int(written.octave[0]) >> 8
    assert octave in (255, *range(8))
    assert written.size_px[0] == max(np.float32(size), np.float32(0.5))
    assert 0 <= layer <= 5
    image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    written = keypoints_from_arrays(written)
    keypoints, descriptors = cv2.SIFT.create().compute(image, written)
    assert len(keypoints) == len(descriptors) == 1


def test_names_and_objects_have_rules():
    assert rule_for("sift") == rule_for(cv2.SIFT.create()) == SiftRule()
    assert rule_for(cv2.SIFT.create(nOctaveLayers=4, sigma=2.0)) == SiftRule(layers=4, sigma=2.0)


@pytest.mark.parametrize(("wrong", "named"), [("surf", "'surf'"), (3, "int"), (cv2.ORB, "type")])
def test_others_are_refused_with_the_accepted_ones(wrong, named):
    with pytest.raises(ValueError, match=f"descriptor: .*'sift', a cv2.SIFT, got {named}"):
        rule_for(wrong)
