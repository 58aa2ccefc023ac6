"""Views with known change: the geometry is exact, the corruptions leave it alone."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from cv_patchpose.patches import PolarGrid
from cv_patchpose.training import synthesis
from cv_patchpose.training.dataset import (
    PairStream,
    PhotographFolder,
    candidate_keypoints,
    find_images,
    prefetch,
    sample_views,
)
from cv_patchpose.training.options import SynthesisConfig
from cv_patchpose.training.synthesis import (
    corrupt,
    local_jacobian,
    random_homography,
    random_view,
    similarity_of,
    warp_points,
)

CLEAN = SynthesisConfig(corruption=0.0, jitter=0.0, jitter_px=0.0, keypoints_per_view=16)
GRID = PolarGrid(rows=40, columns=72, halo=6)


def textured(seed, side=320):
    noise = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    smooth = sum(cv2.GaussianBlur(noise, (0, 0), s) * s for s in (2, 5, 12))
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    for seed in range(4):
        cv2.imwrite(str(tmp_path / f"{seed}.png"), textured(seed))
    return tmp_path


@pytest.mark.parametrize("angle_deg", [0.0, 30.0, 135.0, -100.0])
@pytest.mark.parametrize("zoom", [0.5, 1.0, 3.0])
def test_similarity_of_a_similarity(angle_deg, zoom):
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    # Clockwise on screen: +x turns towards +y, which points down.
    rotation, octaves = similarity_of(zoom * np.array([[cos, -sin], [sin, cos]]))
    assert rotation == pytest.approx(angle_deg)
    assert octaves == pytest.approx(np.log2(zoom))


def test_similarity_ignores_pure_tilt():
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    stretch = np.array([[2.0, 0.5], [0.5, 1.0]])
    expected = similarity_of(turn)[0]
    assert similarity_of(turn @ stretch)[0] == pytest.approx(expected)
    assert similarity_of(stretch @ turn)[0] == pytest.approx(expected)


def test_jacobian_equals_finite_differences():
    rng = np.random.default_rng(3)
    homography = random_homography(np.array([100.0, 80.0]), SynthesisConfig(), rng)
    points = rng.uniform(60, 140, (5, 2))
    jacobian = local_jacobian(homography, points)
    for axis in range(2):
        step = np.zeros(2)
        step[axis] = 1e-4
        slope = warp_points(homography, points + step) - warp_points(homography, points - step)
        np.testing.assert_allclose(jacobian[:, :, axis], slope / 2e-4, rtol=1e-5, atol=1e-6)


def test_a_view_shows_the_photograph_where_the_homography_says():
    image = np.zeros((240, 240), np.uint8)
    cv2.circle(image, (130, 110), 4, 255, -1)
    config = dataclasses.replace(CLEAN, canvas_px=200)
    for seed in range(5):
        view = random_view(image, np.array([120.0, 120.0]), config, np.random.default_rng(seed))
        rows, columns = np.nonzero(view.image > 100)
        expected = warp_points(view.homography, np.array([[130.0, 110.0]]))[0]
        np.testing.assert_allclose([columns.mean(), rows.mean()], expected, atol=0.6)


def test_corruption_zero_changes_nothing_and_one_does():
    image = textured(0)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(corrupt(image, CLEAN, rng), image)
    spoilt = [corrupt(image, SynthesisConfig(), rng) for _ in range(8)]
    assert sum(not np.array_equal(s, image) for s in spoilt) >= 7
    assert all(s.shape == image.shape and s.dtype == np.uint8 for s in spoilt)


@pytest.mark.parametrize("corruption", [synthesis._motion_blur, synthesis._resample])
def test_blurs_keep_everything_in_place(corruption):
    rows, columns = np.mgrid[:160, :160]
    blob = 250 * np.exp(-((columns - 90.3) ** 2 + (rows - 61.8) ** 2) / (2 * 6.0**2))
    rng = np.random.default_rng(1)
    for _ in range(20):
        moments = cv2.moments(corruption(blob.astype(np.uint8), rng).astype(np.float32))
        center = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
        np.testing.assert_allclose(center, (90.3, 61.8), atol=0.1)


def test_views_differ_by_the_change_they_report(folder):
    """Sampling each view at its true pose must give the same patch."""
    config = dataclasses.replace(CLEAN, tilt_log_sigma=0.0, perspective=0.0)
    photographs = PhotographFolder(find_images(folder))
    batch = sample_views(photographs[0], GRID, config, np.random.default_rng(0))
    rotation_deg, zoom = similarity_of(batch.jacobian)
    turn = rotation_deg / 5  # columns
    move = (zoom - batch.log2_window) * GRID.rows_per_octave  # rows
    first, second = batch.patches[:, 0, 0], batch.patches[:, 1, 0]
    correlations = []
    for one, other, column, row in zip(
        first, second, turn[:, 1] - turn[:, 0], move[:, 1] - move[:, 0], strict=True
    ):
        moved = np.roll(one[:, 6:-6], round(column), 1)
        shift = round(row)
        a = moved[max(0, -shift) : 40 - max(0, shift)]
        b = other[:, 6:-6][max(0, shift) : 40 - max(0, -shift)]
        correlations.append(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert np.median(correlations) > 0.9


def test_candidates_are_corners_without_and_blobs_with_size():
    places, sizes = candidate_keypoints(textured(0))
    assert len(places) == len(sizes) > 20
    assert np.isnan(sizes).any()
    assert (sizes[~np.isnan(sizes)] > 0).all()


def test_a_featureless_photograph_gives_no_batch(tmp_path):
    cv2.imwrite(str(tmp_path / "flat.png"), np.full((200, 200), 90, np.uint8))
    photographs = PhotographFolder(find_images(tmp_path))
    assert sample_views(photographs[0], GRID, CLEAN, np.random.default_rng(0)) is None
    stream = PairStream(photographs, GRID, CLEAN, batch_size=8, pool_size=32, seed=0)
    with pytest.raises(ValueError, match="images: expected photographs with corners or blobs"):
        next(iter(stream))


def test_unreadable_and_tiny_files_are_skipped_and_counted(folder):
    (folder / "broken.jpg").write_bytes(b"not an image")
    (folder / "empty.png").write_bytes(b"")
    cv2.imwrite(str(folder / "tiny.png"), np.zeros((20, 300), np.uint8))
    photographs = PhotographFolder(find_images(folder))
    assert len(photographs) == 4
    assert photographs.skipped == 3


def test_no_image_names_the_argument(tmp_path):
    with pytest.raises(ValueError, match="images: expected image files"):
        find_images(tmp_path)
    with pytest.raises(ValueError, match="images: expected a folder of photographs"):
        find_images(tmp_path / "missing")


def streams(folder, seed):
    photographs = PhotographFolder(find_images(folder))
    return PairStream(photographs, GRID, CLEAN, batch_size=8, pool_size=32, seed=seed)


def test_a_stream_repeats_by_seed_and_prefetching_changes_nothing(folder):
    one, other = iter(streams(folder, 5)), iter(streams(folder, 5))
    ahead = prefetch([streams(folder, 5)], depth=2)
    for _ in range(6):
        batch = next(one)
        assert batch.patches.shape == (8, 4, 1, 40, 84)
        np.testing.assert_array_equal(batch.patches, next(other).patches)
        np.testing.assert_array_equal(batch.patches, next(ahead).patches)
    assert not np.array_equal(next(iter(streams(folder, 6))).patches, batch.patches)


def test_a_failing_producer_reaches_the_consumer(folder):
    stream = streams(folder, 0)
    stream.photographs = None
    with pytest.raises(TypeError):
        next(prefetch([stream], depth=1))
