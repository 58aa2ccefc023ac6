"""Windows and priors from what a detector measured."""

from __future__ import annotations

import numpy as np
import pytest

from cv_patchpose.histograms import PoseBins, log_scale_prior
from cv_patchpose.keypoints import KeypointArrays
from cv_patchpose.metadata import ModelMetadata
from cv_patchpose.options import AssignerOptions
from cv_patchpose.patches import PolarGrid
from cv_patchpose.support import choose_support

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


def chosen(points, **changes):
    support = choose_support(points, METADATA, options(**changes))
    return support.window_px.tolist(), support.size_px.tolist(), support.prior_sigma.tolist()


@pytest.mark.parametrize("measured", [{"octave": 3}, {"angle_deg": 90.0}])
def test_a_measured_scale_gives_the_window_and_a_narrow_prior(measured):
    found = chosen(keypoints([2.0, 4.0], **measured))
    assert found == ([36.0, 72.0], [2.0, 4.0], [0.2, 0.2])


@pytest.mark.parametrize("angle_deg", [-1.0, 0.0])
def test_points_of_one_size_share_a_window_and_have_no_prior(angle_deg):
    found = chosen(keypoints([7.0, 7.0], angle_deg))
    assert found == ([64.0, 64.0], [7.0, 7.0], [np.inf, np.inf])


@pytest.mark.parametrize("size", [1.0, 3.0])
def test_points_without_extent_get_a_size_that_can_be_described(size):
    assert chosen(keypoints([size]))[1] == [6.0]


def test_regions_have_windows_of_their_own_and_a_wide_prior():
    found = chosen(keypoints([10.0, 30.0]))
    assert found == ([180.0, 540.0], [10.0, 30.0], [0.5, 0.5])


def test_points_and_measured_keypoints_may_come_together():
    mixed = keypoints([7.0, 4.0, 7.0])
    mixed.octave[1] = 1
    found = chosen(mixed)
    assert found == ([64.0, 72.0, 64.0], [7.0, 4.0, 7.0], [np.inf, 0.2, np.inf])


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
