"""Modes, sub-bin peaks, priors and top-k on histograms whose answer is known."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_patchpose.histograms import PatchPoses, PoseBins, PoseHistograms, find_modes

BINS = PoseBins()
DEGREES_PER_BIN = 10.0


def orientation_bump(angle_deg, sigma_deg=12.0):
    turn = (BINS.orientation_centers_deg - np.reshape(angle_deg, (-1, 1)) + 180) % 360 - 180
    bump = np.exp(-0.5 * (turn / sigma_deg) ** 2)
    return (bump / bump.sum(1, keepdims=True)).astype(np.float32)


def scale_bump(octaves, sigma_octaves=0.4):
    distance = BINS.scale_centers_octaves - np.reshape(octaves, (-1, 1))
    bump = np.exp(-0.5 * (distance / sigma_octaves) ** 2)
    return (bump / bump.sum(1, keepdims=True)).astype(np.float32)


def histograms(octaves, angle_deg):
    return PoseHistograms(scale=scale_bump(octaves), orientation=orientation_bump(angle_deg))


def random_histograms(count, seed=0):
    rng = np.random.default_rng(seed)
    return PoseHistograms(
        scale=rng.dirichlet(np.full(13, 0.5), count).astype(np.float32),
        orientation=rng.dirichlet(np.full(36, 0.5), count).astype(np.float32),
    )


def turn_between(a_deg, b_deg):
    return np.abs((np.asarray(a_deg) - b_deg + 180) % 360 - 180)


def test_convention_bin_centres():
    assert BINS.orientation_centers_deg[[0, 9]].tolist() == [0.0, 90.0]
    assert BINS.scale_centers_octaves[[0, 6, 12]].tolist() == [-2.0, 0.0, 2.0]


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True])
def test_bins_are_positive_integers(wrong):
    with pytest.raises(ValueError, match="scale: expected a positive integer"):
        PoseBins(scale=wrong)


@given(st.floats(0, 360, exclude_max=True), st.floats(-1.6, 1.6))
def test_gaussian_bumps_are_recovered_between_bins(angle_deg, octaves):
    poses = find_modes(histograms(octaves, angle_deg), BINS)
    assert turn_between(poses.angle_deg, angle_deg) < 0.05
    assert np.abs(np.log2(poses.scale) - octaves) < 0.005
    assert 0 <= poses.angle_deg[0] < 360
    assert 0 < poses.score[0] <= 1


@given(st.integers(0, 35), st.integers(0, 1000))
def test_rolling_by_whole_bins_turns_by_whole_bins(shift, seed):
    given_ = random_histograms(3, seed)
    rolled = PoseHistograms(given_.scale, np.roll(given_.orientation, shift, axis=1))
    before, after = find_modes(given_, BINS), find_modes(rolled, BINS)
    expected = before.angle_deg + shift * DEGREES_PER_BIN
    np.testing.assert_allclose(turn_between(after.angle_deg, expected), 0, atol=1e-9)
    np.testing.assert_array_equal(before.score, after.score)
    np.testing.assert_array_equal(before.scale, after.scale)


def test_a_peak_wraps_around():
    poses = find_modes(histograms(np.zeros(3), [359.0, 357.0, 2.0]), BINS)
    assert np.all(turn_between(poses.angle_deg, [359.0, 357.0, 2.0]) < 0.05)
    assert np.all((poses.angle_deg >= 0) & (poses.angle_deg < 360))


def test_scale_peaks_at_the_edge_stay_on_the_bin():
    poses = find_modes(histograms([-3.0, -2.1, 2.1, 3.0], np.zeros(4)), BINS)
    np.testing.assert_allclose(np.log2(poses.scale), [-2, -2, 2, 2])


def test_peaks_move_at_most_half_a_bin():
    orientation = np.full((1, 36), 1e-6, np.float32)
    orientation[0, [5, 6]] = 0.5, 0.4999
    poses = find_modes(PoseHistograms(scale_bump(0.0), orientation), BINS)
    assert 50 < poses.angle_deg[0] <= 55


def test_probability_of_a_mode_is_that_of_three_bins():
    scale, orientation = scale_bump(0.0), orientation_bump(50.0)
    poses = find_modes(PoseHistograms(scale, orientation), BINS)
    expected = orientation[0, 4:7].sum() * scale[0, 5:8].sum()
    np.testing.assert_allclose(poses.score, expected, rtol=1e-5)


def test_offset_is_added_in_octaves():
    given_ = histograms([0.3], [0.0])
    plain, moved = (find_modes(given_, BINS, scale_offset_octaves=o).scale for o in (0.0, 0.5))
    np.testing.assert_allclose(np.log2(moved / plain), 0.5)


def test_flat_histograms_have_no_angle_and_scale_one():
    flat = PoseHistograms(
        np.full((2, 13), 1 / 13, np.float32), np.full((2, 36), 1 / 36, np.float32)
    )
    for sigma in (np.inf, 0.2):
        poses = find_modes(flat, BINS, top_k=3, scale_prior_sigma=sigma, scale_offset_octaves=0.7)
        assert poses.keypoint_index.tolist() == [0, 1]
        assert poses.angle_deg.tolist() == [-1, -1]
        assert poses.scale.tolist() == [1, 1]
        np.testing.assert_allclose(poses.score, 1 / (13 * 36))


class TestTopK:
    two_peaks = PoseHistograms(
        scale_bump(0.0), 0.6 * orientation_bump(40.0) + 0.4 * orientation_bump(200.0)
    )

    def test_best_mode_comes_first(self):
        poses = find_modes(self.two_peaks, BINS, top_k=2)
        assert np.all(turn_between(poses.angle_deg, [40.0, 200.0]) < 0.1)
        np.testing.assert_allclose(poses.score[1] / poses.score[0], 0.4 / 0.6, rtol=1e-3)

    def test_one_pose_each_by_default(self):
        assert len(find_modes(self.two_peaks, BINS)) == 1

    @pytest.mark.parametrize(("min_ratio", "count"), [(0.6, 2), (0.7, 1)])
    def test_weak_modes_are_left_out(self, min_ratio, count):
        assert len(find_modes(self.two_peaks, BINS, top_k=4, min_ratio=min_ratio)) == count

    def test_pairs_of_modes_are_ordered_by_their_product(self):
        scale = 0.7 * scale_bump(-1.0, 0.15) + 0.3 * scale_bump(1.0, 0.15)
        given_ = PoseHistograms(scale, self.two_peaks.orientation)
        poses = find_modes(given_, BINS, top_k=4)
        np.testing.assert_allclose(np.round(poses.angle_deg), [40, 200, 40, 200])
        np.testing.assert_allclose(np.round(np.log2(poses.scale)), [-1, -1, 1, 1])

    @given(
        st.integers(1, 5), st.floats(0, 1), st.sampled_from([0.01, 0.2, np.inf]),
        st.integers(0, 1000),
    )  # fmt: skip
    def test_order_and_bounds(self, top_k, min_ratio, sigma, seed):
        poses = find_modes(
            random_histograms(20, seed),
            BINS,
            top_k=top_k,
            min_ratio=min_ratio,
            scale_prior_sigma=sigma,
        )
        assert np.all(np.diff(poses.keypoint_index) >= 0)
        assert np.unique(poses.keypoint_index).tolist() == list(range(20))
        assert np.all((poses.score > 0) & (poses.score <= 1))
        for index in range(20):
            score = poses.score[poses.keypoint_index == index]
            assert 1 <= len(score) <= top_k
            assert np.all(np.diff(score) <= 0)
            assert score[-1] >= min_ratio * score[0]


class TestScalePrior:
    def test_a_narrow_prior_gives_factor_one(self):
        given_ = random_histograms(50)
        for sigma in (0.0, 1e-3):
            poses = find_modes(given_, BINS, scale_prior_sigma=sigma, scale_offset_octaves=0.123)
            np.testing.assert_allclose(poses.scale, 1.0, atol=1e-6)

    def test_a_wide_prior_gives_the_mean_of_the_histogram(self):
        given_ = histograms([-0.7, 0.0, 0.4], np.zeros(3))
        poses = find_modes(given_, BINS, scale_prior_sigma=1e6)
        np.testing.assert_allclose(np.log2(poses.scale), [-0.7, 0.0, 0.4], atol=0.01)

    def test_two_gaussians_meet_at_the_weighted_mean(self):
        given_ = histograms([0.6], [0.0])
        for sigma in (0.1, 0.2, 0.4):
            expected = 0.6 * sigma**2 / (sigma**2 + 0.4**2)
            poses = find_modes(given_, BINS, scale_prior_sigma=sigma)
            np.testing.assert_allclose(np.log2(poses.scale), expected, atol=0.01)

    def test_the_prior_is_centred_after_the_offset(self):
        given_ = histograms([-0.5], [0.0])
        poses = find_modes(given_, BINS, scale_prior_sigma=0.3, scale_offset_octaves=0.5)
        np.testing.assert_allclose(np.log2(poses.scale), 0.0, atol=0.01)

    def test_there_is_one_scale_per_keypoint(self):
        given_ = PoseHistograms(
            0.5 * scale_bump(-1.0) + 0.5 * scale_bump(1.0), orientation_bump(10.0)
        )
        assert len(find_modes(given_, BINS, top_k=3, scale_prior_sigma=0.5)) == 1

    def test_each_keypoint_has_its_own(self):
        given_ = histograms([0.8, 0.8], [0.0, 0.0])
        poses = find_modes(given_, BINS, scale_prior_sigma=np.array([np.inf, 0.1]))
        np.testing.assert_allclose(np.log2(poses.scale), [0.8, 0.8 / 17], atol=0.01)

    @pytest.mark.parametrize("wrong", [-0.1, float("nan"), [0.1, 0.2, 0.3]])
    def test_bad_deviations_are_refused(self, wrong):
        with pytest.raises(ValueError, match=r"scale_prior_sigma: expected \(2,\) non-negative"):
            find_modes(random_histograms(2), BINS, scale_prior_sigma=wrong)


@given(st.integers(0, 100), st.integers(1, 3))
def test_a_batch_is_the_same_as_one_by_one(seed, top_k):
    given_ = random_histograms(8, seed)
    sigma = np.where(np.arange(8) % 2, np.inf, 0.2)
    together = find_modes(given_, BINS, top_k=top_k, min_ratio=0.3, scale_prior_sigma=sigma)
    for index in range(8):
        one = PoseHistograms(given_.scale[[index]], given_.orientation[[index]])
        alone = find_modes(one, BINS, top_k=top_k, min_ratio=0.3, scale_prior_sigma=sigma[index])
        own = together.keypoint_index == index
        for name in ("scale", "angle_deg", "score"):
            np.testing.assert_allclose(
                getattr(together, name)[own], getattr(alone, name), rtol=1e-6
            )


@pytest.mark.parametrize("top_k", [1, 3])
def test_no_histograms_give_no_poses(top_k):
    poses = find_modes(random_histograms(0), BINS, top_k=top_k)
    assert isinstance(poses, PatchPoses)
    assert len(poses) == 0


def test_wrong_shapes_are_named():
    given_ = random_histograms(4)
    with pytest.raises(ValueError, match=r"histograms.scale: expected \(4, 5\), got \(4, 13\)"):
        find_modes(given_, PoseBins(scale=5))
    with pytest.raises(ValueError, match=r"histograms.orientation: expected \(4, 8\)"):
        find_modes(given_, PoseBins(orientation=8))
    with pytest.raises(ValueError, match="top_k: expected an integer of at least 1, got 0"):
        find_modes(given_, BINS, top_k=0)


def test_2048_keypoints_take_milliseconds():
    given_ = random_histograms(2048)
    sigma = np.where(np.arange(2048) % 2, np.inf, 0.2)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        find_modes(given_, BINS, top_k=2, min_ratio=0.3, scale_prior_sigma=sigma)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05


def test_modes_are_read_on_one_thread():
    """Threads of BLAS would go on spinning beside those of the sampler and of the network."""
    script = """
import time
import numpy as np
from cv_patchpose.histograms import PoseBins, PoseHistograms, find_modes
random = np.random.default_rng(0)
scale, orientation = (random.dirichlet(np.ones(n), 8192).astype(np.float32) for n in (13, 36))
histograms = PoseHistograms(scale=scale, orientation=orientation)
shares = []
time.sleep(0.5)  # until the threads that BLAS has started rest
for _ in range(7):
    work, clock = time.process_time(), time.perf_counter()
    find_modes(histograms, PoseBins(), scale_prior_sigma=0.2)
    shares.append((time.process_time() - work) / (time.perf_counter() - clock))
print(np.median(shares))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.1


def orientation_only(orientation):
    return PoseHistograms(scale=scale_bump(np.zeros(len(orientation))), orientation=orientation)


def test_smoothing_reads_one_direction_where_a_network_doubts_between_neighbours():
    """Two narrow peaks 30 degrees apart stand for one direction, beside a sharper one elsewhere."""
    doubtful = 0.42 * orientation_bump(90.0, 5.0) + 0.38 * orientation_bump(120.0, 5.0)
    doubtful += 0.2 * orientation_bump(300.0, 3.0)
    as_it_is, smooth = (
        find_modes(orientation_only(doubtful), BINS, smoothing_deg=deg).angle_deg[0]
        for deg in (0.0, 15.0)
    )
    assert turn_between(as_it_is, 90.0) < 5
    assert turn_between(smooth, 105.0) < 6
    one = find_modes(orientation_only(doubtful), BINS, top_k=2, smoothing_deg=15.0)
    assert turn_between(one.angle_deg[1], 300.0) < 10


@given(st.floats(0, 360, exclude_max=True), st.floats(2, 30))
def test_smoothing_moves_no_peak_that_is_alone(angle_deg, smoothing_deg):
    orientation = orientation_bump(angle_deg)
    angles = find_modes(orientation_only(orientation), BINS, smoothing_deg=smoothing_deg).angle_deg
    assert turn_between(angles[0], angle_deg) < 0.6


def test_smoothing_turns_with_the_histogram_and_needs_no_batch():
    given_rows = random_histograms(300).orientation
    found = find_modes(orientation_only(given_rows), BINS, smoothing_deg=15.0)
    turned = find_modes(orientation_only(np.roll(given_rows, 9, 1)), BINS, smoothing_deg=15.0)
    assert turn_between(turned.angle_deg, found.angle_deg + 90).max() < 1e-2
    alone = [
        find_modes(orientation_only(row[None]), BINS, smoothing_deg=15.0).angle_deg[0]
        for row in given_rows[:20]
    ]
    np.testing.assert_allclose(alone, found.angle_deg[:20], atol=1e-3)


def test_smoothing_leaves_the_scale_and_what_says_nothing():
    rows = random_histograms(50)
    plain, smooth = (find_modes(rows, BINS, smoothing_deg=deg) for deg in (0.0, 15.0))
    np.testing.assert_array_equal(plain.scale, smooth.scale)
    assert turn_between(plain.angle_deg, smooth.angle_deg).max() > 10
    flat = orientation_only(np.full((2, 36), 1 / 36, np.float32))
    assert find_modes(flat, BINS, smoothing_deg=15.0).angle_deg.tolist() == [-1.0, -1.0]
    certain = np.eye(36, dtype=np.float32)[[7]]
    sure = find_modes(orientation_only(certain), BINS, smoothing_deg=15.0)
    assert turn_between(sure.angle_deg[0], 70.0) < 1e-3
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="smoothing_deg: expected degrees of at least 0"):
            find_modes(rows, BINS, smoothing_deg=wrong)
