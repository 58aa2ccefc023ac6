"""Patch sets: geometry, choice of keypoints and images, splits."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from cv_patchpose.patches import SquareGrid, build_pyramid, sample_square
from cv_patchpose.patchpose.options import PatchPoseConfig
from cv_patchpose.patchpose.patch_sets import (
    Keypoint,
    cut_patch_set,
    cut_patches,
    draw_changes,
)
from cv_patchpose.patchpose.plan import SPLITS, list_images, pair_split_mask, plan_shards
from cv_patchpose.patchpose.selection import UnusableImageError, cut_image, measure_content

CENTER = (225.0, 115.0)


@pytest.fixture(scope="module")
def pyramid(photograph):
    return build_pyramid(photograph, color=True)


def numbered_images(count):
    return [f"{number:03d}.png" for number in range(count)]


def test_convention_patch_pairs_turn_clockwise_and_zoom_in(photograph, pyramid):
    patches = cut_patches(pyramid, CENTER, [0, 90], 0, 32).astype(int)
    assert np.abs(np.rot90(patches[0], -1) - patches[1]).max() <= 1
    assert np.abs(np.rot90(patches[0]) - patches[1]).max() > 50
    doubled = cv2.resize(photograph, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    # cv2.resize takes the corners of pixels for whole numbers, the sampler their centres.
    place = tuple(2 * c + 0.5 for c in CENTER)
    zoomed_image = cut_patches(build_pyramid(doubled, color=True), place, 0, 0, 32)
    zoomed_patch = cut_patches(pyramid, CENTER, 0, 1, 32)
    assert np.abs(zoomed_image.astype(int) - zoomed_patch).max() <= 1


def test_patches_are_those_of_the_sampler_in_rgb(photograph, pyramid):
    patch = cut_patches(pyramid, CENTER, 30, -1.5, 32)
    sampled = sample_square(pyramid, [CENTER], [32 * 2**1.5], [-30], SquareGrid(32))[0]
    assert patch.dtype == np.uint8
    assert_allclose(np.moveaxis(sampled, 0, -1) * 255, patch, atol=0.5 + 1e-4)
    whole = cut_patches(pyramid, (215.5, 115.5), 0, 0, 32)
    assert_array_equal(whole, photograph[100:132, 200:232, ::-1])


def test_patch_set_has_a_patch_for_each_rotation_and_scale(pyramid):
    found = cut_patch_set(pyramid, Keypoint("a.png", 0, CENTER, "sift"), "B", 32, seed=1)
    assert found.patches.shape == (36, 13, 32, 32, 3)
    for i, j in ((0, 0), (7, 3), (35, 12)):
        alone = cut_patches(pyramid, CENTER, found.rotation_deg[i], found.octaves[j], 32)
        assert_array_equal(found.patches[i, j], alone)
    assert_array_equal(found.identity, cut_patches(pyramid, CENTER, 0, 0, 32))
    assert found.target_mask("joint").sum() == 468
    assert found.target_mask("orientation")[:, found.identity_scale].all()
    assert found.target_mask("orientation").sum() == 36
    assert found.target_mask("scale")[0].all()
    assert found.target_mask("scale").sum() == 13
    with pytest.raises(ValueError, match="target: expected one of joint, orientation, scale"):
        found.target_mask("angle")


def test_changes_of_kind_a_are_the_bins_and_those_of_kind_b_are_drawn():
    degrees, octaves = draw_changes("A", np.random.default_rng(0))
    assert_array_equal(degrees, np.arange(0, 360, 10))
    assert_allclose(octaves, np.arange(-6, 7) / 3)
    first, second = (draw_changes("B", np.random.default_rng(seed)) for seed in (1, 2))
    for degrees, octaves in (first, second):
        assert len(set(degrees)) == 36
        assert (degrees == np.rint(degrees)).all()
        assert (degrees[0], degrees.max() < 360) == (0, True)
        assert (octaves == 0).sum() == 1
        assert (np.diff(octaves) > 0).all()
        assert np.abs(octaves).max() <= 2
        assert len(octaves) == 13
    assert not np.array_equal(first[1], second[1])


def test_content_tells_flat_ground_and_soft_slopes_from_structure(pyramid):
    flat = build_pyramid(np.full((400, 400, 3), 130, np.uint8), color=True)
    slope = np.repeat(np.linspace(100, 140, 400).astype(np.uint8)[None], 400, 0)
    soft = build_pyramid(slope, color=True)
    assert measure_content(flat, CENTER, 32) == 0
    assert measure_content(soft, CENTER, 32) < 5
    assert measure_content(pyramid, CENTER, 32) > 20


def test_keypoints_keep_the_margin_and_come_half_from_each_detector(photograph):
    config = PatchPoseConfig(keypoints_per_image=8, min_content=0)
    sets, dropped = cut_image(photograph, "a.png", config)
    places = np.array([s.keypoint.xy_px for s in sets])
    assert config.margin_px == 92
    assert places.min() >= 92
    assert places.max() <= 511 - 92
    assert sorted(s.keypoint.source for s in sets) == ["harris"] * 4 + ["sift"] * 4
    assert [s.keypoint.number for s in sets] == list(range(8))
    assert dropped == 0


def test_the_released_margin_holds_every_window_of_scale_one_quarter():
    for patch_size in (32, 64):
        half_diagonal = patch_size * 4 * 2**0.5 / 2
        assert half_diagonal <= PatchPoseConfig(patch_size=patch_size).margin_px


def test_keypoints_without_content_are_left_out(photograph):
    half = photograph.copy()
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(size=(512, 256, 1)), (0, 0), 2)
    half[:, :256] = 120 + 12 * noise[..., None] / noise.std()
    everything = PatchPoseConfig(keypoints_per_image=60, images_per_shard=1, min_content=0)
    strict = PatchPoseConfig(keypoints_per_image=60, images_per_shard=1, min_content=27)
    places = [
        [s.keypoint.xy_px[0] for s in cut_image(half, "a.png", config)[0]]
        for config in (everything, strict)
    ]
    assert min(places[0]) < 256 - 32  # no patch of half scale reaches the other half
    assert min(places[1]) > 256 - 32
    assert cut_image(half, "a.png", strict)[1] > 0


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((184, 400, 3), "not larger than twice the margin of 92 px"), ((300, 300, 3), "no keypoint")],
)
def test_images_that_offer_nothing_say_why(shape, reason):
    with pytest.raises(UnusableImageError, match=reason):
        cut_image(np.full(shape, 90, np.uint8), "a.png", PatchPoseConfig())


def test_large_images_are_shrunk_first(photograph):
    large = cv2.resize(photograph, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    config = PatchPoseConfig(long_side_px=512)
    for patch_set in cut_image(large, "a.png", config)[0]:
        assert max(patch_set.keypoint.xy_px) < 512


def test_splits_are_disjoint_by_image_and_complete():
    images = numbered_images(101)
    shards = plan_shards(images, PatchPoseConfig(held_out=0.1, seed=4))
    assert sorted(name for shard in shards for name in shard.images) == images
    counts = {s: sum(len(x.images) for x in shards if x.split == s) for s in SPLITS}
    assert counts == {"train": 81, "val": 10, "test": 10}
    assert len({shard.name for shard in shards}) == len(shards)
    assert max(len(shard.images) for shard in shards) == PatchPoseConfig().images_per_shard
    assert plan_shards(images, PatchPoseConfig(held_out=0.1, seed=5)) != shards


@pytest.mark.parametrize("count", [3, 4, 5])
def test_every_split_gets_an_image(count):
    for held_out in (0.01, 0.49):
        config = PatchPoseConfig(held_out=held_out)
        shards = plan_shards(numbered_images(count), config)
        assert {shard.split for shard in shards} == set(SPLITS)


def test_splits_of_shuffled_pairs_part_every_keypoint(pyramid):
    config = PatchPoseConfig(held_out=0.1)
    masks = []
    for number in range(20):
        keypoint = Keypoint("a.png", number, CENTER, "sift")
        patch_set = cut_patch_set(pyramid, keypoint, "A", 32, seed=0)
        parts = [pair_split_mask(patch_set, split, config) for split in SPLITS]
        assert_array_equal(np.sum(parts, axis=0), 1)
        assert all(part.any() for part in parts)
        masks.append(parts)
    shares = np.mean(masks, axis=(0, 2, 3))
    assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.02)


def test_spair_layout_takes_its_photographs_only(tmp_path):
    files = ["JPEGImages/cat/a.jpg", "JPEGImages/dog/b.jpg", "JPEGImages/dog/c.jpg"]
    masks = ["Segmentation/cat/a.png", "ImageAnnotation/cat/a.json"]
    for name in files + masks:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list_images(tmp_path) == list_images(tmp_path, "spair") == files
    assert list_images(tmp_path, "folder") == files + masks[:1]
    (tmp_path / "PairAnnotation/trn").mkdir(parents=True)
    assert list_images(tmp_path) == files
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    (unpacked / "SPair-71k").symlink_to(tmp_path)  # as from the archive: one level below
    below = [f"SPair-71k/{name}" for name in files]
    assert list_images(unpacked) == list_images(unpacked, "spair") == below
    with pytest.raises(ValueError, match="expected a folder JPEGImages .* as in SPair-71k"):
        list_images(tmp_path / "JPEGImages", "spair")
    with pytest.raises(ValueError, match="layout: expected one of auto, folder, spair, got 'voc'"):
        list_images(tmp_path, "voc")
    with pytest.raises(ValueError, match="images: expected at least 3, one for each split, got 1"):
        list_images(tmp_path / "JPEGImages/cat")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "C"}, "kind: expected one of A, B, got 'C'"),
        ({"patch_size": 48}, "patch_size: expected 32 or 64, got 48"),
        ({"keypoints_per_image": 0}, "keypoints_per_image: expected a whole number of at least 1"),
        ({"images_per_shard": True}, "images_per_shard: expected a whole number of at least 1"),
        ({"keypoints_per_image": 17}, "a shard holds at most 64 keypoints, 17 an image, got 4"),
        ({"patch_size": 64, "images_per_shard": 6}, "a shard holds at most 16 keypoints, 3 an"),
        ({"border_px": -1}, "border_px: expected a whole number of at least 0, got -1"),
        ({"min_content": float("nan")}, "min_content: expected a finite number of at least 0"),
        ({"held_out": 0.5}, "held_out: expected a share above 0 and below 1/2, got 0.5"),
        ({"seed": 1.5}, "seed: expected a whole number of at least 0, got 1.5"),
    ],
)
def test_options_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PatchPoseConfig(**changes)
