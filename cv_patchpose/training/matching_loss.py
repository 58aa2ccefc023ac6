"""How likely the orientations read from two histograms are to make descriptors match.

Views that are slanted or spoilt have no rotation that is the true one, and not every error counts:
what a keypoint is oriented for is that its descriptor lies nearer to that of the same keypoint
in the other image than to all others. The descriptors at all angles are computed beforehand, so
that nothing need be learned through them: the loss says of every pair of angles whether it would
match, and the histograms how likely that pair is.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from cv_patchpose.training.losses import upsampling_matrix
from cv_patchpose.training.supports import GRID, REACH_BINS

ANGLES = 72  # at least
CELLS = 4  # along a side of the descriptor
DIRECTIONS = 8  # of the gradient, in each cell
LARGEST = 0.2  # value of a descriptor of unit length, as in SIFT
MARGIN = 0.02  # by which the other keypoints of an image come nearer than those of a batch
SOFTNESS = 0.05  # of a match, in squared distances of descriptors
FLOOR = 0.02  # see losses.overlap_loss
_TINY = 1e-6


class TurnedDescriptors(nn.Module):
    """RootSIFT descriptors of patches at every angle.

    The order of the 128 values is not OpenCV's.

    Args:
        angles: number A of angles, a multiple of 8: angle i is i * 360 / A degrees clockwise.

    Source: Lowe, IJCV 2004, section 6; Arandjelovic and Zisserman, CVPR 2012.
    """

    weights: Tensor
    inside: Tensor
    source: Tensor

    def __init__(self, angles: int = ANGLES) -> None:
        super().__init__()
        self.angles = angles
        offset = (torch.arange(GRID.size) - (GRID.size - 1) / 2) * (2 * REACH_BINS / GRID.size)
        down, right = torch.meshgrid(offset, offset, indexing="ij")
        inside = torch.hypot(right, down) <= REACH_BINS
        for border in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):  # without gradients
            border.fill_(False)
        right, down = right[inside], down[inside]
        places = torch.stack(
            [self._cells(right, down, 2 * math.pi * i / angles) for i in range(angles)]
        )
        # Gradients of direction r are the k-th of a descriptor at angle r - k * A / 8.
        eighth = angles // DIRECTIONS
        turned = torch.arange(angles)[:, None] - eighth * torch.arange(DIRECTIONS)
        weights = places[turned % angles].permute(0, 2, 1, 3).flatten(2)
        # ... and so the k-th of a descriptor at angle i are those of direction i + k * A / 8.
        read = (torch.arange(angles)[:, None] + eighth * torch.arange(DIRECTIONS)) % angles
        self.register_buffer("inside", inside.flatten().nonzero().flatten())
        self.register_buffer("weights", weights)  # (A, K, 8 * 16)
        self.register_buffer("source", read * DIRECTIONS + torch.arange(DIRECTIONS))

    @staticmethod
    def _cells(right: Tensor, down: Tensor, angle: float) -> Tensor:
        """Share (K,) samples out among the 16 cells of a descriptor at an angle."""
        along = math.cos(angle) * right + math.sin(angle) * down
        across = math.cos(angle) * down - math.sin(angle) * right
        centres = torch.arange(CELLS) - (CELLS - 1) / 2
        columns, rows = (
            (1 - (values[:, None] - centres).abs()).clamp(min=0) for values in (along, across)
        )
        weight = torch.exp(-(along**2 + across**2) / (CELLS**2 / 2))
        return (rows[:, :, None] * columns[:, None, :]).flatten(1) * weight[:, None]

    @torch.no_grad()
    def forward(self, patches: Tensor) -> Tensor:
        """Describe (N, P, P) patches; returns (N, A, 128) of unit length."""
        right, down = torch.zeros_like(patches), torch.zeros_like(patches)
        right[:, :, 1:-1] = patches[:, :, 2:] - patches[:, :, :-2]
        down[:, 1:-1] = patches[:, 2:] - patches[:, :-2]
        right, down = (values.flatten(1)[:, self.inside] for values in (right, down))
        length = torch.hypot(right, down)
        direction = torch.atan2(down, right) * (self.angles / (2 * math.pi))
        direction = direction + self.angles * (direction < 0)
        width = self.angles / DIRECTIONS
        parts = []
        for number in range(self.angles):
            apart = (direction - number).abs()
            apart = torch.minimum(apart, self.angles - apart)
            parts.append((length * (1 - apart / width).clamp_(min=0)) @ self.weights[number])
        found = torch.stack(parts, 1).view(len(patches), self.angles * DIRECTIONS, CELLS**2)
        found = found[:, self.source.flatten()].view(len(patches), self.angles, -1)
        found = found / (found.norm(dim=-1, keepdim=True) + _TINY)
        found = found.clamp_(max=LARGEST)
        return torch.sqrt(found / (found.sum(-1, keepdim=True) + _TINY))


class MatchingLoss(nn.Module):
    """Negative log probability that the angles read from two views make a match.

    -log(sum_ij first(i) second(j) match(i, j) + floor), where match(i, j) says, with soft edges,
    whether the first view's descriptor at angle i is nearer to the second's at angle j than each
    of them is to those of other keypoints, which have the angles that are most likely now.

    Args:
        bins: of the orientation histograms.

    Source: ours; that a loss of descriptors trains orientations is from Yi, Verdie, Fua, Lepetit,
        CVPR 2016.
    """

    upsampling: Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        step = DIRECTIONS // math.gcd(DIRECTIONS, bins)
        factor = step * math.ceil(ANGLES / (step * bins))
        self.describe = TurnedDescriptors(factor * bins)
        self.register_buffer("upsampling", upsampling_matrix(bins, factor, circular=True))

    def forward(self, logits: Tensor, supports: Tensor) -> Tensor:
        """Compare all pairs of views.

        Args:
            logits: (B, V, R) of the orientation.
            supports: (B, V, P, P) what the descriptors see, upright.

        Returns:
            Mean loss, nats.
        """
        likely = torch.softmax(logits.float() @ self.upsampling.T, -1)
        descriptors = self.describe(supports.flatten(0, 1)).unflatten(0, supports.shape[:2])
        best = likely.argmax(-1)[:, :, None, None].expand(-1, -1, 1, descriptors.shape[-1])
        described = descriptors.gather(2, best)[:, :, 0]
        losses = []
        for one, other in itertools.combinations(range(supports.shape[1]), 2):
            matches = _matches(
                descriptors[:, one], descriptors[:, other], described[:, one], described[:, other]
            )
            matched = torch.bmm(likely[:, one, None], matches)[:, 0]
            probability = (matched * likely[:, other]).sum(-1)
            losses.append(-torch.log(probability + FLOOR).mean())
        return torch.stack(losses).mean()


@torch.no_grad()
def _matches(first: Tensor, second: Tensor, described1: Tensor, described2: Tensor) -> Tensor:
    """Say of all pairs of angles whether they would match.

    Args:
        first: (B, A, D) descriptors of the first view.
        second: (B, A, D) of the second.
        described1: (B, D) descriptors of the first view at its most likely angles.
        described2: (B, D) of the second.

    Returns:
        (B, A, A) between 0 and 1.
    """
    distance = 2 - 2 * torch.bmm(first, second.transpose(1, 2))
    nearest = torch.minimum(
        _nearest_other(first, described2)[:, :, None], _nearest_other(second, described1)[:, None]
    )
    return torch.sigmoid((nearest - MARGIN - distance) / SOFTNESS)


def _nearest_other(descriptors: Tensor, others: Tensor) -> Tensor:
    """Squared distances of (B, A, D) descriptors to the nearest of (B, D) of other keypoints."""
    likeness = (descriptors.flatten(0, 1) @ others.T).view(*descriptors.shape[:2], -1)
    same = torch.eye(len(others), dtype=torch.bool, device=others.device)
    nearest: Tensor = likeness.masked_fill_(same[:, None], -1.0).amax(-1)
    return 2 - 2 * nearest
