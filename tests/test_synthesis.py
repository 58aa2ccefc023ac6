"""Views with known change: the geometry is exact, the corruptions leave it alone."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import multiprocessing
import re
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("tqdm")

from cv_patchpose.files import find_images
from cv_patchpose.gradients import gradient_moments
from cv_patchpose.homography import nearest_similarity, project
from cv_patchpose.patches import PolarGrid
from cv_patchpose.training import dataset, synthesis
from cv_patchpose.training.dataset import PairStream, sample_views
from cv_patchpose.training.objective import pair_changes
from cv_patchpose.training.options import SynthesisConfig
from cv_patchpose.training.photographs import Photograph, candidate_keypoints, read_photographs
from cv_patchpose.training.placement import place_keypoints
from cv_patchpose.training.prefetch import prefetch
from cv_patchpose.training.synthesis import (
    corrupt,
    random_view,
)

pytestmark = pytest.mark.train

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


def test_a_view_shows_the_photograph_where_the_homography_says():
    image = np.zeros((240, 240), np.uint8)
    cv2.circle(image, (130, 110), 4, 255, -1)
    # Zoomed out, the reflected border would show the dot again.
    config = dataclasses.replace(CLEAN, canvas_px=200, zoom_octaves=(0.0, 0.9))
    for seed in range(5):
        view = random_view(image, np.array([120.0, 120.0]), config, np.random.default_rng(seed))
        rows, columns = np.nonzero(view.image > 100)
        expected = project(view.homography, np.array([[130.0, 110.0]]))[0]
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
    photographs = read_photographs(folder)
    batch = sample_views(photographs[0], GRID, config, np.random.default_rng(0))
    scale, rotation_deg = nearest_similarity(batch.jacobian)
    turn = rotation_deg / 5  # columns
    move = (np.log2(scale) - batch.log2_window) * GRID.rows_per_octave  # rows
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


def views_of(photograph, config, seed=0):
    center = np.array(photograph.image.shape[::-1]) / 2
    rng = np.random.default_rng(seed)
    return [random_view(photograph.image, center, config, rng) for _ in range(config.views)]


def sizes_of_detections(view):
    return {k.pt: k.size for k in cv2.SIFT.create().detect(view.image)}


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_redetected_keypoints_lie_where_sift_finds_them_in_the_views(share):
    config = SynthesisConfig(
        redetected=share, jitter_px=0.5, zoom_octaves=(-0.3, 0.3), corruption=0.3, tracked=0.0,
        keypoints_per_view=16,
    )  # fmt: skip
    image = textured(3)
    photograph = Photograph(image, *candidate_keypoints(image))
    views = views_of(photograph, config)
    placed = place_keypoints(photograph, views, config, np.random.default_rng(1))
    assert placed.xy_px.shape == (16, 4, 2)
    detected = [sizes_of_detections(view) for view in views]
    size = np.array(
        [[known.get(tuple(xy), np.nan) for xy, known in zip(row, detected, strict=True)]
         for row in placed.xy_px]
    )  # fmt: skip
    found = np.isfinite(size)
    first = found.any(1)
    assert (found[first].sum(1) >= 3).all()
    assert 4 <= first.sum() <= round(16 * share)
    np.testing.assert_array_equal(np.isfinite(placed.scale_sigma), first)
    error = np.linalg.norm(placed.xy_px - placed.exact_px, axis=-1)
    assert 0 < error[found].max() < 3
    for window, blob in zip(placed.window_px, size, strict=True):
        ratio = (window / blob)[np.isfinite(blob)]
        np.testing.assert_allclose(ratio, ratio[:1].repeat(len(ratio)), rtol=1e-6)


def test_no_more_keypoints_of_a_batch_are_redetected_than_asked_for(folder):
    config = SynthesisConfig(redetected=0.25, tracked=0.0, keypoints_per_view=32, clean=1.0)
    photographs = read_photographs(folder)
    stream = PairStream(photographs, GRID, config, batch_size=16, pool_size=64, seed=0, reuse=4)
    share = [np.isfinite(batch.scale_sigma[:, 0]).mean() for batch in itertools.islice(stream, 40)]
    assert 0.12 < np.mean(share) < 0.3


def test_every_keypoint_that_is_made_is_used(folder, monkeypatch):
    made = []

    def sample(*arguments):
        group = sample_views(*arguments)
        made.append(group.patches)
        return group

    monkeypatch.setattr(dataset, "sample_views", sample)
    photographs = read_photographs(folder)
    stream = PairStream(photographs, GRID, CLEAN, batch_size=16, pool_size=64, seed=0, reuse=4)
    batches = list(itertools.islice(stream, 200))
    begun = 64 + 199 * 4  # keypoints that the batches have replaced
    assert begun <= sum(map(len, made)) < begun + len(made[-1])
    seen = {patches.tobytes() for batch in batches for patches in batch.patches}
    unseen = [patches for patches in np.concatenate(made) if patches.tobytes() not in seen]
    assert len(unseen) <= 64 + len(made[-1])


def test_a_photograph_without_blobs_has_none_to_find_again():
    image = np.zeros((200, 200), np.uint8)
    corners = np.array([[95.0, 100.0], [105.0, 100.0]])
    photograph = Photograph(image, corners, np.full(2, np.nan))
    config = dataclasses.replace(CLEAN, redetected=1.0, tracked=0.0)
    views = views_of(photograph, config)
    placed = place_keypoints(photograph, views, config, np.random.default_rng(1))
    assert np.isinf(placed.scale_sigma).all()
    np.testing.assert_array_equal(placed.xy_px, placed.exact_px)


def test_candidates_are_corners_without_and_blobs_with_size():
    places, sizes = candidate_keypoints(textured(0))
    assert len(places) == len(sizes) > 20
    assert np.isnan(sizes).any()
    assert (sizes[~np.isnan(sizes)] > 0).all()


def test_candidates_keep_the_order_of_the_detector():
    image = textured(0)
    places, sizes = candidate_keypoints(image)
    found = [(*k.pt, k.size) for k in cv2.SIFT.create(nfeatures=500).detect(image)]
    expected = np.array(list(dict.fromkeys(found)))
    blob = ~np.isnan(sizes)
    np.testing.assert_array_equal(np.column_stack([places, sizes])[blob], expected)


def test_featureless_photographs_give_no_batch(tmp_path):
    for name in ("one.png", "other.png"):
        cv2.imwrite(str(tmp_path / name), np.full((200, 200), 90, np.uint8))
    photographs = read_photographs(tmp_path)
    assert sample_views(photographs[0], GRID, CLEAN, np.random.default_rng(0)) is None
    stream = PairStream(photographs, GRID, CLEAN, batch_size=8, pool_size=32, seed=0)
    with pytest.raises(ValueError, match="images: expected photographs with corners or blobs"):
        next(iter(stream))


def test_unusable_files_are_skipped_and_reported(folder, caplog, capsys, monkeypatch):
    (folder / "broken.jpg").write_bytes(b"not an image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "folder.png").mkdir()  # no file, so not even skipped
    cv2.imwrite(str(folder / "tiny.png"), np.zeros((20, 300), np.uint8))
    cv2.imwrite(str(folder / "line.png"), np.zeros((1, 3000), np.uint8))
    (folder / "locked.png").write_bytes(b"")
    read_bytes = Path.read_bytes

    def refuse(path):
        if path.name == "locked.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with caplog.at_level(logging.INFO, logger="cv_patchpose"):
        photographs = read_photographs(folder)
    assert [path.name for path in photographs.paths] == ["0.png", "1.png", "2.png", "3.png"]
    for text in (caplog.text, capsys.readouterr().err):
        assert "5 of 9 image files skipped" in text


def test_a_single_usable_photograph_is_too_few(folder):
    for name in ("1.png", "2.png", "3.png"):
        (folder / name).write_bytes(b"broken")
    expected = (
        f"images: expected at least 2 readable photographs of at least 96 px below {folder}, "
        "got 1 (3 skipped)"
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        read_photographs(folder)


@pytest.mark.parametrize(("share", "held"), [(0.01, 1), (0.5, 2), (0.99, 3)])
def test_split_is_disjoint_and_by_name(folder, share, held):
    photographs = read_photographs(folder)
    training, validation = photographs.split(share)
    assert sorted(training.paths + validation.paths) == photographs.paths
    assert len(validation) == held
    (folder / "sub").mkdir()
    training.paths[0].rename(folder / "sub" / training.paths[0].name)
    again = read_photographs(folder).split(share)[1]
    assert [path.name for path in again.paths] == [path.name for path in validation.paths]
    (folder / "sub" / training.paths[0].name).rename(folder / "sub" / "another.png")
    chosen = {read_photographs(folder).split(0.01)[1].paths[0].name}
    for number in range(9):
        next(folder.glob("sub/*")).rename(folder / "sub" / f"{number}.png")
        chosen.add(read_photographs(folder).split(0.01)[1].paths[0].name)
    assert len(chosen) > 1


def test_photographs_are_described_by_their_names(folder):
    before = read_photographs(folder).describe(folder)
    assert (before["folder"], before["photographs"]) == (folder.name, 4)
    (folder / "0.png").rename(folder / "9.png")
    after = read_photographs(folder).describe(folder)
    assert after["sha256_of_names"] != before["sha256_of_names"]


def test_no_image_names_the_argument(tmp_path):
    with pytest.raises(ValueError, match="images: expected image files"):
        find_images(tmp_path)
    with pytest.raises(ValueError, match="images: expected a folder of photographs"):
        find_images(tmp_path / "missing")


def test_linked_folders_are_searched_but_not_in_circles(folder, tmp_path):
    (tmp_path / "linked").symlink_to(folder)
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "circle").symlink_to(tmp_path)
    names = [path.name for path in find_images(folder)]
    assert [path.name for path in find_images(tmp_path)] == names


def streams(folder, seed):
    photographs = read_photographs(folder)
    return PairStream(photographs, GRID, CLEAN, batch_size=8, pool_size=32, seed=seed)


forking = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="the system cannot fork"
)
# PyTorch warns where there are fewer processors than workers, Python where threads are forked.
quiet = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore:This process .* is multi-threaded"
)
by_threads_and_processes = pytest.mark.parametrize(
    "processes", [False, pytest.param(True, marks=(forking, quiet))]
)


@by_threads_and_processes
def test_a_stream_repeats_by_seed_and_prefetching_changes_nothing(folder, processes):
    one, other = iter(streams(folder, 5)), iter(streams(folder, 5))
    ahead = prefetch([streams(folder, 5)], depth=2, processes=processes)
    for _ in range(6):
        batch = next(one)
        assert batch.patches.shape == (8, 4, 1, 40, 84)
        np.testing.assert_array_equal(batch.patches, next(other).patches)
        np.testing.assert_array_equal(batch.patches, next(ahead).patches)
    assert not np.array_equal(next(iter(streams(folder, 6))).patches, batch.patches)


@by_threads_and_processes
def test_a_failing_producer_reaches_the_consumer(folder, processes):
    stream = streams(folder, 0)
    stream.photographs = None
    with pytest.raises(TypeError):
        next(prefetch([stream], depth=1, processes=processes))


@quiet
@forking
def test_producing_processes_take_turns_and_end_with_their_consumer(folder):
    ahead = prefetch([streams(folder, 0), streams(folder, 1)], depth=1, processes=True)
    for seed in (0, 1):
        batch = next(iter(streams(folder, seed)))
        np.testing.assert_array_equal(next(ahead).patches, batch.patches)
    assert len(multiprocessing.active_children()) == 2
    ahead.close()
    assert not multiprocessing.active_children()


def test_a_system_that_cannot_fork_is_told_to_use_threads(folder, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(ValueError, match="workers: expected 0 on a system that cannot fork"):
        prefetch([streams(folder, 0)], depth=1, processes=True)


def test_exact_patches_show_the_true_places_unspoilt(folder):
    """Of tracked keypoints in windows that follow the zoom, so that all views show the same."""
    spoiling = SynthesisConfig(jitter_px=3.0, clean=0.0, tilt_log_sigma=0.0, perspective=0.0)
    photograph = read_photographs(folder)[0]

    def views(**options):
        config = dataclasses.replace(spoiling, **options)
        return sample_views(photograph, GRID, config, np.random.default_rng(0), exact=True)

    tracked, fixed = views(tracked=1.0), views(tracked=0.0, free=0.0)
    zoom, _ = nearest_similarity(tracked.jacobian)
    np.testing.assert_allclose(np.ptp(tracked.log2_exact_window - np.log2(zoom), 1), 0, atol=1e-9)
    np.testing.assert_array_equal(fixed.log2_exact_window, fixed.log2_window)
    batch = sample_views(photograph, GRID, CLEAN, np.random.default_rng(0), exact=True)
    known = np.isfinite(batch.scale_sigma)
    assert known.any()
    np.testing.assert_array_equal(batch.exact_patches[~known], batch.patches[~known])
    rings = [
        p[..., GRID.halo : -GRID.halo].mean(-1) for p in (tracked.patches, tracked.exact_patches)
    ]
    spread, exact_spread = (np.abs(np.diff(ring, axis=1)).mean() for ring in rings)
    assert exact_spread < 0.6 * spread


def test_closing_does_not_wait_for_a_batch_that_never_comes(folder):
    stop = threading.Event()

    def stuck():
        yield from itertools.islice(streams(folder, 0), 1)
        stop.wait()

    ahead = prefetch([stuck()], depth=1)
    next(ahead)
    began = time.monotonic()
    ahead.close()
    assert time.monotonic() - began < 20
    stop.set()


def test_prefetching_needs_a_stream():
    with pytest.raises(ValueError, match="streams: expected at least one, got none"):
        prefetch([], depth=1)


def test_producers_end_with_their_consumer(folder):
    before = threading.active_count()
    ahead = prefetch([streams(folder, 0), streams(folder, 1)], depth=1)
    next(ahead)
    assert threading.active_count() == before + 2
    ahead.close()
    assert threading.active_count() == before


def test_rotations_of_gradients_are_those_that_slanted_stripes_show():
    """What the views of stripes show says how far they turned; the points say something else."""
    y, x = np.mgrid[:320, :320]
    stripes = np.uint8(127.5 + 120 * np.sin((0.8 * x + 0.6 * y) / 7))
    xy = np.argwhere(np.ones((5, 5)))[:, ::-1] * 8.0 + 144
    photograph = Photograph(stripes, xy, np.full(len(xy), np.nan))
    config = dataclasses.replace(
        CLEAN, rotation="gradients", tilt_log_sigma=0.7, zoom_octaves=(-0.2, 0.5), perspective=0.0
    )
    rng = np.random.default_rng(3)
    views = [random_view(stripes, xy[12], config, rng) for _ in range(4)]
    placed = place_keypoints(photograph, views, config, rng)
    sigma_px = np.full(len(placed.exact_px), 15.0)
    shown = []
    for v, view in enumerate(views):
        moments = gradient_moments(view.image, placed.exact_px[:, v], sigma_px)
        values, vectors = np.linalg.eigh(moments)
        assert (values[:, 0] < 0.02 * values[:, 1]).all()
        shown.append(np.degrees(np.arctan2(vectors[:, 1, 1], vectors[:, 0, 1])))
    start = np.degrees(np.arctan2(0.6, 0.8))
    turned = np.stack(shown, 1) - start
    by_gradients, by_points = (
        np.abs((turned - told + 90) % 180 - 90)
        for told in (placed.rotation_deg(), nearest_similarity(placed.jacobian)[1])
    )
    assert by_gradients.max() < 3
    assert by_points.max() > 9


def test_gradients_count_as_by_the_descriptor_of_a_blob_of_the_window(folder):
    photograph = read_photographs(folder)[0]
    config = dataclasses.replace(CLEAN, rotation="gradients", magnification=21.0)
    rng = np.random.default_rng(0)
    center = photograph.xy_px[0]
    view, other = (random_view(photograph.image, center, config, rng) for _ in range(2))
    placed = place_keypoints(photograph, [view, other], config, rng)
    xy_px = project(np.linalg.inv(view.homography), placed.exact_px[:, 0])
    window_px = placed.exact_window_px[:, 0] / nearest_similarity(placed.jacobian[:, 0])[0]
    expected = gradient_moments(photograph.image, xy_px, 3 / 21 * window_px)
    np.testing.assert_allclose(placed.gradients, expected, rtol=1e-3, atol=1e-4 * expected.max())
    wider = gradient_moments(photograph.image, xy_px, 4 / 21 * window_px)
    assert np.abs(wider - expected).max() > 0.1 * expected.max()


def test_batches_hold_the_rotation_of_their_gradients(folder):
    photograph = read_photographs(folder)[0]

    def changes(rotation):
        config = dataclasses.replace(CLEAN, rotation=rotation)
        batch = sample_views(photograph, GRID, config, np.random.default_rng(0))
        return batch.gradients, *pair_changes(batch)

    none, pairs, by_points, octaves = changes("points")
    moments, _, by_gradients, same = changes("gradients")
    assert none is None
    assert moments.shape == (16, 2, 2)
    assert len(pairs) == 6
    np.testing.assert_array_equal(same, octaves)
    off = np.abs((by_gradients - by_points + 180) % 360 - 180)
    assert 0.5 < np.median(off) < 10
