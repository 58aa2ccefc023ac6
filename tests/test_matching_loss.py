"""The loss of descriptors: what SIFT sees at every angle, and which angles match."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("tqdm")

import torch

from cv_patchpose.assigner import PatchPoseAssigner
from cv_patchpose.grids import PolarGrid
from cv_patchpose.histograms import PoseBins
from cv_patchpose.patches import build_pyramid, sample_patches
from cv_patchpose.training.dataset import Batch, PairStream, sample_views
from cv_patchpose.training.matching_loss import MatchingLoss, TurnedDescriptors, _matches
from cv_patchpose.training.objective import Logits, PoseLoss
from cv_patchpose.training.options import SynthesisConfig, TrainConfig
from cv_patchpose.training.photographs import Photograph
from cv_patchpose.training.placement import Placement
from cv_patchpose.training.supports import BIN_SIZES, GRID, REACH_BINS, Supports

pytestmark = pytest.mark.train

WINDOW_SIZES = 2 * REACH_BINS * BIN_SIZES


def textured(seed, side=400):
    noise = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    smooth = sum(cv2.GaussianBlur(noise, (0, 0), s) * s for s in (3, 7, 14))
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def supports_at(image, xy_px, size_px, angle_deg=0.0):
    count = len(xy_px)
    patches = sample_patches(
        build_pyramid(image), np.float32(xy_px), np.full(count, WINDOW_SIZES * size_px),
        np.full(count, angle_deg), GRID,
    )  # fmt: skip
    return torch.from_numpy(patches[:, 0].astype(np.float32))


def some_places(count, seed=0):
    return np.random.default_rng(seed).uniform(110, 290, (count, 2))


def root_sift(image, xy_px, size_px, angle_deg):
    """Describe by OpenCV, the values in the order of TurnedDescriptors."""
    keypoints = [cv2.KeyPoint(*map(float, xy), size_px, angle_deg) for xy in xy_px]
    _, found = cv2.SIFT.create().compute(image, keypoints)
    found = found.reshape(-1, 16, 8)[:, :, [0, *range(7, 0, -1)]]  # OpenCV counts the other way
    found = found.transpose(0, 2, 1).reshape(-1, 128)
    return torch.from_numpy(np.sqrt(found / found.sum(1, keepdims=True)))


@pytest.mark.parametrize("angle_deg", [0, 40, 215])
def test_descriptors_are_those_of_sift_at_that_angle(angle_deg):
    image, xy = textured(0), some_places(20)
    found = TurnedDescriptors()(supports_at(image, xy, 12.0))
    expected = root_sift(image, xy, 12.0, angle_deg)
    likeness = torch.einsum("nad,nd->na", found, expected)
    assert likeness[:, angle_deg // 5].min() > 0.94
    best = likeness.argmax(1)
    assert ((best - angle_deg // 5 + 36) % 72 - 36).abs().max() <= 1


def test_turning_the_support_moves_the_descriptors_on():
    image, xy = textured(1), some_places(12)
    describe = TurnedDescriptors(72)
    upright, turned = (describe(supports_at(image, xy, 10.0, angle)) for angle in (0.0, 30.0))
    torch.testing.assert_close(upright.norm(dim=-1), torch.ones(12, 72), atol=1e-3, rtol=0)
    # What is at 0 in the turned support is at 30 degrees, the sixth angle, in the upright one.
    likeness = (turned * upright.roll(-6, 1)).sum(-1)
    assert likeness.min() > 0.97
    assert (turned * upright).sum(-1).mean() < 0.9


def two_views(rotation_deg, count=12):
    """Supports (N, 2, P, P) of places, in the second view turned so far clockwise."""
    image, xy = textured(2), some_places(count, 3)
    # Sampling at an angle turns what is seen the other way.
    views = [supports_at(image, xy, 10.0, angle) for angle in (0.0, -rotation_deg)]
    return torch.stack(views, 1)


def peaks(first_deg, second_deg, count=12, bins=36):
    """Logits (N, 2, R) with a sharp peak each."""
    turn = 2 * math.pi * torch.arange(bins) / bins
    at = torch.tensor([first_deg, second_deg]) * (math.pi / 180)
    return (40 * torch.cos(turn - at[:, None])).expand(count, 2, bins)


@pytest.mark.parametrize("bins", [36, 30, 7])
def test_the_loss_is_least_at_angles_that_match(bins):
    """The second view is turned by 70 degrees."""
    loss = MatchingLoss(bins)
    supports = two_views(70.0)

    def at(*angles_deg):
        return float(loss(peaks(*angles_deg, bins=bins), supports))

    right = at(100.0, 170.0)
    assert right < 0.35
    assert right < at(100.0, 195.0) < at(100.0, 240.0)
    assert at(100.0, 350.0) > 1.7
    assert at(100.0, 30.0) > 1.7  # as if turned the other way


def test_a_keypoint_that_looks_like_another_does_not_match():
    """However well its own views agree: in a batch of one thing seen from everywhere, none do."""
    supports, logits = two_views(0.0), peaks(40.0, 40.0)
    distinct = MatchingLoss(36)(logits, supports)
    alike = MatchingLoss(36)(logits, supports[:1].expand_as(supports))
    assert distinct < 0.35
    assert alike > distinct + 0.4


def at_degrees(*angles_deg):
    """(N, 1, 2) unit vectors, as descriptors of N keypoints at one angle."""
    turn = torch.deg2rad(torch.tensor(angles_deg))
    return torch.stack((turn.cos(), turn.sin()), -1)[:, None]


@pytest.mark.parametrize(
    ("first_deg", "second_deg", "matches"),
    [
        ((0.0, 90.0), (20.0, -90.0), True),
        ((0.0, 90.0), (20.0, -10.0), False),  # the other in image 2 is nearer to it
        ((0.0, 30.0), (20.0, -90.0), False),  # it is nearer to the other in image 1
        ((0.0, -10.0), (20.0, 180.0), True),  # neighbours of one image do not count
        ((0.0, 180.0), (20.0, 30.0), True),
    ],
)
def test_a_match_is_nearest_both_ways(first_deg, second_deg, matches):
    """Of the first of two keypoints, whose descriptors lie 20 degrees apart."""
    first, second = at_degrees(*first_deg), at_degrees(*second_deg)
    found = float(_matches(first, second, first[:, 0], second[:, 0])[0, 0, 0])
    assert (found > 0.6) == matches
    assert not 0.4 < found < 0.6


def test_histograms_learn_the_rotation_between_views():
    """From noise, with nothing told but what is seen: most reach the angle between the views."""
    torch.manual_seed(0)
    supports = two_views(50.0, count=16)
    logits = (0.1 * torch.randn(16, 2, 36)).requires_grad_()
    loss, optimizer = MatchingLoss(36), torch.optim.Adam([logits], 0.2)
    for _ in range(40):
        optimizer.zero_grad()
        loss(logits, supports).backward()
        optimizer.step()
    first, second = logits.detach().argmax(-1).T
    off_deg = (10 * (second - first) - 50 + 180) % 360 - 180
    assert (off_deg.abs() <= 10).float().mean() > 0.8


def test_the_loss_of_poses_takes_it_for_the_orientation_alone():
    supports = two_views(70.0, 2)
    batch = Batch(
        patches=np.empty((2, 2, 1, 1, 1), np.float32),
        jacobian=np.broadcast_to(np.eye(2), (2, 2, 2, 2)),
        log2_window=np.full((2, 2), 5.0),
        scale_sigma=np.full((2, 2), np.inf),
        supports=supports.numpy(),
    )
    logits = Logits(torch.randn(2, 2, 13), peaks(100.0, 170.0, 2))
    scale, orientation = PoseLoss(PoseBins(), TrainConfig(loss="matching"))(logits, batch)
    overlap, by_rotation = PoseLoss(PoseBins(), TrainConfig())(logits, batch)
    torch.testing.assert_close(scale, overlap)
    torch.testing.assert_close(orientation, MatchingLoss(36)(logits.orientation, supports))
    assert by_rotation > orientation + 1  # the batch says that nothing was turned
    nothing, _ = PoseLoss(PoseBins(), TrainConfig(loss="matching"))(
        Logits(logits.scale, None), batch
    )
    torch.testing.assert_close(nothing, overlap)


def disc(radius_px, side=400):
    rows, columns = np.mgrid[:side, :side] - side / 2
    edge = 1 / (1 + np.exp((np.hypot(rows, columns) - radius_px) / (0.04 * radius_px)))
    return (40 + 180 * edge).astype(np.uint8)


def placed_at_centre(window_px, sigma=math.inf):
    views = len(window_px)
    xy = np.full((1, views, 2), 200.0)
    windows = np.array([window_px], float)
    jacobian = np.broadcast_to(np.eye(2), (1, views, 2, 2))
    return Placement(jacobian, xy, windows, xy, windows, np.array([sigma]))


def radius_of(support):
    """Half height of a disc's edge, in samples from the middle along its row."""
    row = support[GRID.size // 2, GRID.size // 2 :].astype(float)
    height = (row - row.min()) / np.ptp(row)
    return float(np.interp(-0.5, -height, np.arange(len(row))))


def test_supports_have_the_sizes_that_the_model_finds(toy_model):
    """One disc in windows of three sizes, and one twice as large: the same in all supports."""
    supports = Supports(str(toy_model), magnification=21.0)
    pyramids = [build_pyramid(disc(radius)) for radius in (20, 20, 20, 40)]
    found = supports.cut(pyramids, placed_at_centre([100.0, 160.0, 250.0, 200.0]))
    assert found.shape == (1, 4, GRID.size, GRID.size)
    assert found.dtype == np.float32
    radii = [radius_of(support) for support in found[0]]
    np.testing.assert_allclose(radii, radii[0], rtol=0.06)
    # And the size is that of the assigner.
    assigner = PatchPoseAssigner(toy_model, scale_prior_octaves=None, magnification=12.0)
    size_px = 160.0 / 21
    pose = assigner.estimate(disc(20), [cv2.KeyPoint(200, 200, size_px)])
    sample_px = WINDOW_SIZES * size_px * pose.scale[0] / GRID.size
    np.testing.assert_allclose(radii[1], 20 / sample_px, rtol=0.06)


def test_supports_follow_what_is_known_of_the_scale(toy_model):
    """Of a keypoint whose size is certain the model's scale changes nothing."""
    supports = Supports(str(toy_model), magnification=21.0)
    pyramids = [build_pyramid(disc(20))] * 2
    found = supports.cut(pyramids, placed_at_centre([100.0, 160.0], sigma=1e-3))
    radii = [radius_of(support) for support in found[0]]
    sample_px = WINDOW_SIZES * np.array([100.0, 160.0]) / 21 / GRID.size
    np.testing.assert_allclose(radii, 20 / sample_px, rtol=0.06)


def test_views_bring_supports_where_asked_for(toy_model):
    config = SynthesisConfig(keypoints_per_view=8, canvas_px=256)
    xy = np.random.default_rng(0).uniform(150, 250, (40, 2))
    photograph = Photograph(textured(4), xy, np.full(40, 6.0))
    grid = PolarGrid(rows=40, columns=72, halo=6)
    supports = Supports(str(toy_model), config.magnification)
    batch = sample_views(photograph, grid, config, np.random.default_rng(0), supports=supports)
    assert batch.supports.shape == (*batch.patches.shape[:2], GRID.size, GRID.size)
    without = sample_views(photograph, grid, config, np.random.default_rng(0))
    assert without.supports is None
    np.testing.assert_array_equal(batch.patches, without.patches)
    stream = PairStream(
        [photograph], grid, config, batch_size=4, pool_size=8, seed=0, supports=supports
    )
    drawn = next(iter(stream))
    assert drawn.supports.shape == (4, config.views, GRID.size, GRID.size)


def test_what_cannot_be_learned_so_is_refused(toy_model):
    with pytest.raises(ValueError, match="loss: expected overlap or alignment for resnet18"):
        TrainConfig(network="resnet18", loss="matching")
    with pytest.raises(ValueError, match="sizes: expected a model of grey patches, got 'resnet18'"):
        Supports("resnet18", 21.0)
    assert dataclasses.replace(TrainConfig(), loss="matching").sizes == "polar"
