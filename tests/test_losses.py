"""Losses on hand-made histograms whose answer is known."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from cv_patchpose.training.losses import (  # noqa: E402
    FineOverlapLoss,
    histogram_alignment_loss,
    overlap_loss,
    shared_bins,
    shift_histogram,
    tolerance_kernel,
    upsampling_matrix,
)

pytestmark = pytest.mark.train


def one_hot(bins, *index):
    histogram = torch.zeros(len(index), bins)
    histogram[torch.arange(len(index)), torch.tensor(index)] = 1.0
    return histogram


@pytest.mark.parametrize("shift", [-40, -5, -1, 0, 1, 7, 36, 50])
def test_whole_shift_reads_i_plus_d_circularly(shift):
    histogram = torch.rand(1, 36)
    expected = torch.roll(histogram, -shift, 1)
    actual = shift_histogram(histogram, torch.tensor([float(shift)]), circular=True)
    torch.testing.assert_close(actual, expected)


def test_whole_shift_reads_zero_outside_the_scale_histogram():
    histogram = torch.arange(1.0, 6.0)[None]
    actual = shift_histogram(histogram, torch.tensor([2.0]), circular=False)
    torch.testing.assert_close(actual, torch.tensor([[3.0, 4.0, 5.0, 0.0, 0.0]]))
    actual = shift_histogram(histogram, torch.tensor([-2.0]), circular=False)
    torch.testing.assert_close(actual, torch.tensor([[0.0, 0.0, 1.0, 2.0, 3.0]]))


def test_fractional_shift_interpolates_linearly():
    actual = shift_histogram(one_hot(8, 3), torch.tensor([0.25]), circular=True)
    expected = torch.zeros(1, 8)
    # Bin 3 reads h(3.25), bin 2 reads h(2.25).
    expected[0, 3], expected[0, 2] = 0.75, 0.25
    torch.testing.assert_close(actual, expected)


def test_fractional_shift_wraps_around():
    actual = shift_histogram(one_hot(8, 0), torch.tensor([0.25]), circular=True)
    assert actual[0, 7] == pytest.approx(0.25)
    assert actual[0, 0] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("shift", "first", "last"),
    [(0.0, 0, 12), (3.0, 0, 9), (-3.0, 3, 12), (2.4, 0, 10), (2.6, 0, 9), (-2.6, 3, 12)],
)
def test_shared_bins_follow_the_rounded_shift(shift, first, last):
    shared = shared_bins(torch.tensor([shift]), 13)[0]
    assert shared.nonzero().flatten().tolist() == list(range(first, last + 1))


@pytest.mark.parametrize("circular", [True, False])
def test_alignment_is_zero_for_one_mode_moved_by_the_change(circular):
    loss = histogram_alignment_loss(
        one_hot(13, 4), one_hot(13, 7), torch.tensor([3.0]), circular=circular
    )
    assert loss.item() == pytest.approx(0.0, abs=1e-5)


def test_alignment_is_large_for_a_mode_that_did_not_move():
    loss = histogram_alignment_loss(
        one_hot(36, 4), one_hot(36, 4), torch.tensor([3.0]), circular=True
    )
    assert loss.item() > 10


def test_alignment_wraps_around():
    loss = histogram_alignment_loss(
        one_hot(36, 35), one_hot(36, 2), torch.tensor([3.0]), circular=True
    )
    assert loss.item() == pytest.approx(0.0, abs=1e-5)


def test_alignment_of_uniform_histograms_is_twice_the_entropy():
    uniform = torch.full((1, 36), 1 / 36)
    loss = histogram_alignment_loss(uniform, uniform, torch.tensor([4.3]), circular=True)
    assert loss.item() == pytest.approx(2 * math.log(36), abs=1e-4)


def test_alignment_does_not_count_bins_that_are_not_shared():
    # Both modes lie where the other histogram has no bin: the cross-entropy sees nothing.
    first, second = one_hot(13, 12), one_hot(13, 0)
    loss = histogram_alignment_loss(first, second, torch.tensor([6.0]), circular=False)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)


def test_overlap_pays_for_mass_outside_the_shared_bins():
    first, second = one_hot(13, 12), one_hot(13, 0)
    loss = overlap_loss(first, second, torch.tensor([6.0]), circular=False)
    assert loss.item() > 10


@pytest.mark.parametrize("circular", [True, False])
def test_overlap_is_the_probability_to_agree(circular):
    first = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    second = torch.tensor([[0.0, 0.25, 0.25, 0.5]])
    loss = overlap_loss(first, second, torch.tensor([1.0]), circular=circular)
    assert loss.item() == pytest.approx(-math.log(0.5 * 0.25 + 0.5 * 0.25), abs=1e-5)


def test_floor_bounds_the_loss_of_hopeless_pairs():
    apart = overlap_loss(one_hot(36, 0), one_hot(36, 18), torch.zeros(1), circular=True, floor=0.05)
    assert apart.item() == pytest.approx(-math.log(0.05), abs=1e-5)


def test_alignment_is_symmetric():
    first, second = torch.rand(5, 13).softmax(1), torch.rand(5, 13).softmax(1)
    change = torch.tensor([0.0, 1.5, -1.5, 4.0, -4.7])
    forward = histogram_alignment_loss(first, second, change, circular=False)
    backward = histogram_alignment_loss(second, first, -change, circular=False)
    torch.testing.assert_close(forward, backward)


@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize("loss", [histogram_alignment_loss, overlap_loss])
def test_gradients(loss, circular):
    first = torch.rand(3, 7, dtype=torch.float64).softmax(1).requires_grad_()
    second = torch.rand(3, 7, dtype=torch.float64).softmax(1).requires_grad_()
    change = torch.tensor([0.0, 1.0, -2.3], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: loss(a, b, change, circular=circular), (first, second)
    )


def test_tolerance_kernel_measures_around_the_circle():
    kernel = tolerance_kernel(36, 1.0, circular=True)
    assert kernel[0, 35] == pytest.approx(math.exp(-0.5))
    assert tolerance_kernel(36, 1.0, circular=False)[0, 35] < 1e-6
    torch.testing.assert_close(kernel, kernel.T)


@pytest.mark.parametrize("circular", [True, False])
def test_upsampling_keeps_centres_and_constants(circular):
    matrix = upsampling_matrix(13, 4, circular=circular)
    torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix)))
    torch.testing.assert_close(matrix[::4], torch.eye(13))


def smooth_logits(position, bins):
    distance = (torch.arange(bins) - position + bins / 2) % bins - bins / 2
    return (-0.5 * (distance / 1.5) ** 2)[None]


def test_fine_overlap_is_smallest_at_the_true_fractional_change():
    loss = FineOverlapLoss(36, factor=4, sigma_bins=0.3, circular=True)
    first, second = smooth_logits(10.2, 36), smooth_logits(14.6, 36)
    tried = torch.arange(3.0, 6.0, 0.1)
    values = [loss(first, second, change[None]).item() for change in tried]
    assert tried[values.index(min(values))].item() == pytest.approx(4.4, abs=0.11)


def test_fine_overlap_lies_between_certain_and_uninformed():
    loss = FineOverlapLoss(13, factor=4, sigma_bins=0.3, circular=False)
    certain = -1000.0 * (torch.arange(13.0) - 6).abs()[None]
    assert loss(certain, certain, torch.zeros(1)).item() == pytest.approx(0.0, abs=1e-4)
    uninformed = torch.zeros(1, 13)
    assert loss(uninformed, uninformed, torch.zeros(1)).item() > 1.0
