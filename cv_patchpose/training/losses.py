"""Histogram shifts and the losses that compare two histograms of the same keypoint.

A *change* is what turns the first view into the second: `shift_bins` > 0 means that the
histogram of the second view is the first one moved up by so many bins (the keypoint was
turned clockwise, or zoomed in).
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-8


def shift_histogram(histogram: Tensor, shift_bins: Tensor, *, circular: bool) -> Tensor:
    """Translate histograms to the left by a real number of bins, with linear interpolation.

    Args:
        histogram: (..., B) values.
        shift_bins: (...) real shift d; the result at bin i is the input at i + d.
        circular: wrap around (orientation) or read zero outside (scale).

    Returns:
        (..., B) shifted values.
    Source: Lee, Jeong, Cho, BMVC 2021, eq. 2 (scale) and eq. 5 (orientation).
    """
    bins = histogram.shape[-1]
    whole = torch.floor(shift_bins)
    fraction = (shift_bins - whole).unsqueeze(-1).to(histogram.dtype)
    low = torch.arange(bins, device=histogram.device) + whole.long().unsqueeze(-1)
    return (1 - fraction) * _read(histogram, low, circular) + fraction * _read(
        histogram, low + 1, circular
    )


def _read(histogram: Tensor, index: Tensor, circular: bool) -> Tensor:
    bins = histogram.shape[-1]
    if circular:
        return histogram.gather(-1, index % bins)
    inside = (index >= 0) & (index < bins)
    return histogram.gather(-1, index.clamp(0, bins - 1)) * inside.to(histogram.dtype)


def shared_bins(shift_bins: Tensor, bins: int) -> Tensor:
    """Mark the bins that both scale histograms share after a shift.

    Args:
        shift_bins: (...) shift of the second histogram in bins.
        bins: number of scale bins B_s.

    Returns:
        (..., B) bool.
    Source: Lee, Jeong, Cho, BMVC 2021, eq. 3. The rounding there admits, for shifts just below
        a whole-and-a-half bin, an end bin that interpolates with a bin outside the histogram;
        that neighbour counts as zero.
    """
    index = torch.arange(bins, device=shift_bins.device)
    rounded = torch.floor(shift_bins + 0.5).unsqueeze(-1)
    return (index >= -rounded) & (index <= bins - 1 - rounded)


def histogram_alignment_loss(
    first: Tensor, second: Tensor, shift_bins: Tensor, *, circular: bool
) -> Tensor:
    """Symmetric cross-entropy between two histograms after aligning them by the known change.

    Args:
        first: (N, B) histograms of the first view; rows sum to 1.
        second: (N, B) histograms of the second view.
        shift_bins: (N,) change from first to second, in bins.
        circular: orientation (True) or scale (False: only shared bins count).

    Returns:
        (N,) losses in nats.
    Source: Lee, Jeong, Cho, BMVC 2021, eq. 4 (scale), 6 (orientation) and 7 (symmetric sum).
    """
    forward = _aligned_cross_entropy(first, second, shift_bins, circular)
    return forward + _aligned_cross_entropy(second, first, -shift_bins, circular)


def _aligned_cross_entropy(
    target: Tensor, other: Tensor, shift_bins: Tensor, circular: bool
) -> Tensor:
    aligned = shift_histogram(other, shift_bins, circular=circular)
    terms = -target * torch.log(aligned + EPSILON)
    if not circular:
        terms = terms * shared_bins(shift_bins, target.shape[-1]).to(terms.dtype)
    return terms.sum(-1)


def overlap_loss(
    first: Tensor,
    second: Tensor,
    shift_bins: Tensor,
    *,
    circular: bool,
    kernel: Tensor | None = None,
    floor: float = EPSILON,
) -> Tensor:
    """Negative log probability that independent readings of the two histograms agree.

    -log sum_ij first(i) K(i, j) T second(j), where T aligns the second histogram with the
    first. Unlike the cross-entropy over shared bins, mass moved out of the shared bins is
    always paid for.

    Args:
        first: (N, B) histograms of the first view.
        second: (N, B) histograms of the second view.
        shift_bins: (N,) change from first to second, in bins.
        circular: wrap around (orientation) or not (scale).
        kernel: (B, B) agreement of two readings, 1 on the diagonal; identity when None.
        floor: probability added before the logarithm. A pair far below it hardly counts: training
            then sharpens what can be told instead of hedging for pairs that nothing can align.

    Returns:
        (N,) losses in nats.
    Source: ours.
    """
    aligned = shift_histogram(second, shift_bins, circular=circular)
    if kernel is not None:
        aligned = aligned @ kernel
    return -torch.log((first * aligned).sum(-1) + floor)


def tolerance_kernel(bins: int, sigma_bins: float, *, circular: bool) -> Tensor:
    """Gaussian agreement of two readings that lie some bins apart.

    Args:
        bins: number of bins B.
        sigma_bins: standard deviation in bins.
        circular: measure the distance around the circle.

    Returns:
        (B, B) float32, symmetric, 1 on the diagonal.
    Source: ours.
    """
    index = torch.arange(bins)
    distance = (index[:, None] - index[None, :]).abs().float()
    if circular:
        distance = torch.minimum(distance, bins - distance)
    return torch.exp(-0.5 * (distance / sigma_bins) ** 2)


def upsampling_matrix(bins: int, factor: int, *, circular: bool) -> Tensor:
    """Cubic interpolation of logits from bin centres to a grid `factor` times finer.

    Args:
        bins: number of bins B.
        factor: fine samples per bin.
        circular: B * factor samples around the circle; else (B - 1) * factor + 1 samples from
            the first centre to the last, with end values repeated beyond them.

    Returns:
        (F, B) float32 matrix; rows sum to 1 and fine sample i * factor is bin i exactly.
    Source: Keys, IEEE TASSP 1981, cubic convolution with a = -1/2.
    """
    fine = bins * factor if circular else (bins - 1) * factor + 1
    matrix = torch.zeros(fine, bins)
    for row in range(fine):
        base, fraction = divmod(row, factor)
        for tap in range(-1, 3):
            column = (base + tap) % bins if circular else min(max(base + tap, 0), bins - 1)
            matrix[row, column] += _cubic_weight(abs(tap - fraction / factor))
    return matrix


def _cubic_weight(distance: float) -> float:
    if distance >= 2:
        return 0.0
    if distance >= 1:
        return -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return 1.5 * distance**3 - 2.5 * distance**2 + 1


class AlignmentLoss(torch.nn.Module):
    """`histogram_alignment_loss` on logits, at the histograms' own bins.

    Args:
        circular: orientation (True) or scale (False).
    Source: Lee, Jeong, Cho, BMVC 2021, eq. 4 to 7.
    """

    def __init__(self, *, circular: bool) -> None:
        super().__init__()
        self.circular = circular

    def forward(self, first: Tensor, second: Tensor, shift_bins: Tensor) -> Tensor:
        """Compare two batches of logits; arguments and result as of `FineOverlapLoss`."""
        return histogram_alignment_loss(
            first.float().softmax(-1),
            second.float().softmax(-1),
            shift_bins,
            circular=self.circular,
        )


class FineOverlapLoss(torch.nn.Module):
    """Overlap loss on logits interpolated to fine bins, within a tolerance.

    Reading the peak between bins needs logits that are right between bins: the histograms are
    therefore compared on a grid several times finer than the bins, where two readings agree
    to the degree of a Gaussian of the tolerance's width.

    Args:
        bins: number of bins B of the network's output.
        factor: fine samples per bin.
        sigma_bins: tolerance in (coarse) bins.
        circular: orientation (True) or scale (False).
    Source: ours.
    """

    upsampling: Tensor
    kernel: Tensor

    def __init__(
        self,
        bins: int,
        *,
        factor: int,
        sigma_bins: float,
        circular: bool,
        floor: float = EPSILON,
    ) -> None:
        super().__init__()
        self.floor = floor
        self.factor = factor
        self.circular = circular
        upsampling = upsampling_matrix(bins, factor, circular=circular)
        self.register_buffer("upsampling", upsampling)
        kernel = tolerance_kernel(len(upsampling), sigma_bins * factor, circular=circular)
        self.register_buffer("kernel", kernel)

    def forward(self, first: Tensor, second: Tensor, shift_bins: Tensor) -> Tensor:
        """Compare two batches of logits.

        Args:
            first: (N, B) logits of the first view.
            second: (N, B) logits of the second view.
            shift_bins: (N,) change from first to second, in (coarse) bins.

        Returns:
            (N,) losses in nats.
        """
        fine_first, fine_second = (
            torch.softmax(logits.float() @ self.upsampling.T, -1) for logits in (first, second)
        )
        return overlap_loss(
            fine_first,
            fine_second,
            shift_bins * self.factor,
            circular=self.circular,
            kernel=self.kernel,
            floor=self.floor,
        )
