"""Windows and priors from what a detector measured."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from cv_patchpose.descriptors import rule_for
from cv_patchpose.detectors import create_detector, detector_traits
from cv_patchpose.histograms import PoseBins, log_scale_prior
from cv_patchpose.keypoints import KeypointArrays, arrays_from_keypoints
from cv_patchpose.metadata import ModelMetadata
from cv_patchpose.options import AssignerOptions
from cv_patchpose.patches import PolarGrid
from cv_patchpose.support import choose_support

AKAZE, BRISK, KAZE = (
    getattr(cv2, name, None) or getattr(cv2.xfeatures2d, name)
    for name in ("AKAZE", "BRISK", "KAZE")
)
METADATA = ModelMetadata(
    "m", PolarGrid(), PoseBins(), magnification=18.0, point_window_px=64.0, scale_prior_octaves=0.2
)


def options(**changes):
    entries = {
        "top_k": 1,
        "assign_scale": True,
        "assign_orientation": True,
        "keep_duplicates": False,
        "magnification": None,
        "window_px": None,
        "scale_prior_octaves": "auto",
        "passes": "auto",
        "num_threads": None,
    }
    return AssignerOptions(**(entries | changes))


def keypoints(size_px, angle_deg=-1.0, octave=0):
    count = len(size_px)
    return KeypointArrays(
        xy_px=np.zeros((count, 2), np.float32),
        size_px=np.asarray(size_px, np.float32),
        angle_deg=np.full(count, angle_deg, np.float32),
        response=np.zeros(count, np.float32),
        octave=np.full(count, octave, np.int32),
        class_id=np.full(count, -1, np.int32),
    )


def chosen(points, *, detector=None, descriptor="sift", **changes):
    rule = rule_for(descriptor)
    support = choose_support(points, METADATA, options(**changes), detector, rule)
    return support.window_px.tolist(), support.size_px.tolist(), support.prior_sigma.tolist()


def passes(points, *, detector=None, **changes):
    return choose_support(points, METADATA, options(**changes), detector).passes.tolist()


@pytest.mark.parametrize("measured", [{"octave": 3}, {"angle_deg": 90.0}])
def test_a_measured_scale_gives_the_window_and_a_narrow_prior(measured):
    found = chosen(keypoints([2.0, 4.0], **measured))
    assert found == ([36.0, 72.0], [2.0, 4.0], [0.2, 0.2])


@pytest.mark.parametrize("angle_deg", [-1.0, 0.0])
def test_points_of_one_size_share_a_window_and_have_no_prior(angle_deg):
    found = chosen(keypoints([7.0, 7.0], angle_deg))
    assert found == ([32.0, 32.0], [32 / 6] * 2, [np.inf, np.inf])  # an octave below scale 1


def test_points_that_keep_their_size_are_read_in_the_model_s_window():
    found = chosen(keypoints([7.0, 7.0]), assign_scale=False)
    assert found == ([64.0, 64.0], [7.0, 7.0], [np.inf, np.inf])


@pytest.mark.parametrize("size", [1.0, 3.0])
def test_points_without_extent_get_a_size_that_can_be_described(size):
    assert chosen(keypoints([size]), assign_scale=False)[1] == [6.0]


@pytest.mark.parametrize("size", [1.0, 7.0, 31.0])
def test_what_points_are_found_to_be_does_not_depend_on_the_size_given(size):
    assert chosen(keypoints([size]))[:2] == ([32.0], [32 / 6])


def test_regions_have_windows_of_their_own_and_a_wide_prior():
    window_px, size_px, sigma = chosen(keypoints([10.0, 30.0]))
    assert size_px == pytest.approx([10 / 2**0.5, 30 / 2**0.5])
    assert window_px == pytest.approx([180 / 2**0.5, 540 / 2**0.5])
    assert sigma == [0.5, 0.5]


def test_points_and_measured_keypoints_may_come_together():
    mixed = keypoints([7.0, 4.0, 7.0])
    mixed.octave[1], mixed.angle_deg[1] = 1, 40.0
    found = chosen(mixed)
    assert found == ([32.0, 72.0, 32.0], [32 / 6, 4.0, 32 / 6], [np.inf, 0.2, np.inf])
    assert passes(mixed) == [2, 1, 2]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [2]),
        ({"assign_scale": False}, [1]),
        ({"window_px": 64.0}, [1]),
        ({"magnification": 8.0}, [1]),
        ({"scale_prior_octaves": 0.5}, [1]),
        ({"passes": 1}, [1]),
        ({"passes": 3, "window_px": 64.0}, [3]),
    ],
)
def test_points_are_read_twice_where_their_size_is_looked_for(options, expected):
    assert passes(keypoints([7.0]), **options) == expected


@pytest.mark.parametrize("name", ["sift", "orb", "mser"])
def test_measured_scales_are_read_once_unless_asked_for(name):
    alone = keypoints([7.0], angle_deg=10.0)
    traits = detector_traits(name)
    assert passes(alone, detector=traits) == [1]
    assert passes(alone, detector=traits, passes=2) == [2]


def test_an_explicit_magnification_holds_for_points_too():
    assert chosen(keypoints([7.0, 7.0]), magnification=10.0)[:2] == ([70.0, 70.0], [7.0, 7.0])


def test_an_explicit_window_decides_what_scale_one_means():
    found = chosen(keypoints([7.0, 2.0], octave=1), window_px=90.0)
    assert found == ([90.0, 90.0], [5.0, 5.0], [np.inf, np.inf])


@pytest.mark.parametrize(("prior", "sigma"), [(None, np.inf), (0.7, 0.7), (0, 0.0)])
def test_an_explicit_prior_holds_for_all(prior, sigma):
    mixed = keypoints([7.0, 4.0, 9.0])
    mixed.octave[1] = 1
    assert chosen(mixed, scale_prior_octaves=prior)[2] == [sigma] * 3


@pytest.mark.parametrize(
    ("name", "size", "expected"), [("orb", 31.0, 31 / 6), ("brisk", 12.0, 5.1), ("kaze", 3.0, 6.0)]
)
def test_sizes_of_a_known_detector_are_brought_to_those_of_sift(name, size, expected):
    window_px, size_px, sigma = chosen(keypoints([size]), detector=detector_traits(name))
    assert size_px == pytest.approx([expected])
    assert window_px == pytest.approx([18 * expected])
    assert sigma == [0.03]  # levels are kept


def test_a_measured_scale_has_the_model_s_prior():
    for name in ("sift", "harrislaplace"):
        assert chosen(keypoints([7.0]), detector=detector_traits(name))[2] == [0.2]


@pytest.mark.parametrize(
    ("name", "sigma"), [("mser", 0.5), ("msd", 0.2), ("harrislaplace", 0.2), ("tbmr", 0.5)]
)
def test_a_known_detector_says_how_well_the_scale_is_known(name, sigma):
    alone = keypoints([10.0], angle_deg=1.5)  # one size and an angle that is none
    traits = detector_traits(name)
    window_px, size_px, found = chosen(alone, detector=traits)
    assert size_px == pytest.approx([10 / traits.size_unit])
    assert window_px == pytest.approx([180 / traits.size_unit])
    assert found == [sigma]


@pytest.mark.parametrize("name", ["fast", "agast", "gftt", "harris"])
def test_known_points_are_points(name):
    found = chosen(keypoints([7.0, 8.0]), detector=detector_traits(name))
    assert found == ([32.0, 32.0], [32 / 6] * 2, [np.inf, np.inf])


@pytest.mark.parametrize("name", ["orb", "akaze"])
def test_keypoints_of_orb_and_akaze_are_recognised(name, photograph):
    found = arrays_from_keypoints(create_detector(name, 300).detect(photograph))
    assert len(found) > 100
    assert chosen(found) == chosen(found, detector=detector_traits(name))


@pytest.mark.parametrize(
    "make",
    [
        lambda: cv2.ORB.create(500, scaleFactor=1.1, nlevels=12),
        lambda: cv2.ORB.create(500, scaleFactor=1.5, nlevels=5, firstLevel=1),
        lambda: cv2.ORB.create(500, patchSize=48, edgeThreshold=48),
        lambda: AKAZE.create(nOctaveLayers=8),
        lambda: AKAZE.create(nOctaves=2, nOctaveLayers=3),
        lambda: BRISK.create(),
        lambda: BRISK.create(60, octaves=2),
        lambda: KAZE.create(),
        lambda: KAZE.create(nOctaveLayers=3),
    ],
)
def test_keypoints_of_the_descriptor_itself_are_recognised(make, photograph):
    feature = make()
    found = arrays_from_keypoints(feature.detect(photograph))
    assert len(found) > 50
    known = chosen(found, detector=detector_traits(feature), descriptor=feature)
    unknown = chosen(found, descriptor=feature)
    same = np.all([np.isclose(*pair) for pair in zip(known, unknown, strict=True)], axis=0)
    assert same.mean() > 0.99  # BRISK's angles are 0 by chance, and then none


def test_octaves_without_angles_are_measured_from_the_first_on(photograph):
    gray = cv2.cvtColor(photograph, cv2.COLOR_BGR2GRAY)
    found = arrays_from_keypoints(create_detector("harrislaplace", 300).detect(gray))
    assert {0, 1} <= set(found.octave)
    assert chosen(found) == chosen(found, detector=detector_traits("harrislaplace"))


@pytest.mark.parametrize("name", ["sift", "fast", "gftt", "star"])
@pytest.mark.parametrize("descriptor", ["sift", "orb", "akaze", "brisk", "kaze"])
def test_keypoints_of_others_are_not_taken_for_those(name, descriptor, photograph):
    found = arrays_from_keypoints(create_detector(name, 300).detect(photograph))
    known = chosen(found, detector=detector_traits(name), descriptor=descriptor)
    assert chosen(found, descriptor=descriptor) == known


@pytest.mark.parametrize("name", ["sift", "orb", "akaze"])
def test_scale_one_gives_a_detector_s_keypoints_back_to_its_descriptor(name, photograph):
    found = arrays_from_keypoints(create_detector(name, 300).detect(photograph))
    size_px = np.asarray(chosen(found)[1], np.float32)
    written = rule_for(name).write(replace(found, size_px=size_px), photograph.shape[:2])
    np.testing.assert_allclose(written.size_px, found.size_px, rtol=1e-5)
    # SIFT keeps a fraction in the third byte, which nothing reads.
    assert (written.octave & 0xFFFF == found.octave & 0xFFFF).mean() > 0.99


def test_nothing_in_nothing_out():
    assert chosen(keypoints([])) == ([], [], [])


def test_the_log_prior_is_a_gaussian_around_scale_one():
    bins = PoseBins()
    found = log_scale_prior(np.array([0.5, np.inf, 0.0]), bins)
    assert found.shape == (3, 13)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, [6, 9]], [0.0, -2.0], atol=1e-6)  # an octave: two sigma
    assert not found[1].any()
    assert np.isfinite(found[2]).all()
    assert found[2].argmax() == 6
    moved = log_scale_prior(np.array([0.5]), bins, offset_octaves=-1.0)
    assert moved[0].argmax() == 9  # scale 1 is where the histogram says an octave
