"""Views made by PyTorch are those that NumPy and OpenCV make."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tqdm")

from cv_patchpose.gradients import gradient_moments, rotation_of_gradients  # noqa: E402
from cv_patchpose.grids import PolarGrid  # noqa: E402
from cv_patchpose.homography import local_jacobian, nearest_similarity, project  # noqa: E402
from cv_patchpose.patches import build_pyramid, sample_polar  # noqa: E402
from cv_patchpose.training.dataset import Batch  # noqa: E402
from cv_patchpose.training.device_patches import DevicePyramids, sample_device_polar  # noqa: E402
from cv_patchpose.training.device_synthesis import (  # noqa: E402
    Corruption,
    DevicePhotographs,
    draw_homographies,
    map_points,
    render_views,
)
from cv_patchpose.training.device_views import (  # noqa: E402
    DevicePool,
    DeviceViews,
    compare_views,
    jacobians,
    moments_around,
    rotation_from_photograph,
    zoom_and_rotation,
)
from cv_patchpose.training.objective import pair_changes  # noqa: E402
from cv_patchpose.training.options import SynthesisConfig  # noqa: E402
from cv_patchpose.training.photographs import Photograph, Photographs  # noqa: E402
from cv_patchpose.training.placement import (  # noqa: E402
    _reference_windows,
    _visible_everywhere,
)
from cv_patchpose.training.synthesis import render  # noqa: E402

pytestmark = pytest.mark.train

CPU = torch.device("cpu")
GRID = PolarGrid(rows=24, columns=36, rows_per_octave=3, halo=6)
CONFIG = SynthesisConfig(canvas_px=192, keypoints_per_view=12)
CLEAN = dataclasses.replace(CONFIG, corruption=0.0, jitter=0.0, jitter_px=0.0)


def textured(seed, height=240, width=320):
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    smooth = sum(cv2.GaussianBlur(noise, (0, 0), s) * s for s in (2, 5, 12))
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.fixture(scope="module")
def photographs():
    images = [textured(0), textured(1, 320, 240)]
    found = Photographs(["0.png", "1.png"], images)
    return found, DevicePhotographs(found, CPU)


@pytest.mark.parametrize("side", [192, 97])
def test_patches_are_those_of_the_sampler(side):
    rng = np.random.default_rng(0)
    images = [textured(seed)[:side, :side] for seed in (2, 3)]
    view = rng.integers(2, size=300)
    xy = rng.uniform(-6, side + 6, (300, 2)).astype(np.float32)
    window = (2.0 ** rng.uniform(2.5, 9, 300)).astype(np.float32)
    pyramids = DevicePyramids(torch.from_numpy(np.stack(images)))
    found = sample_device_polar(pyramids, *map(torch.from_numpy, (view, xy, window)), GRID).numpy()
    expected = np.empty_like(found)
    for number, image in enumerate(images):
        mine = view == number
        upright = np.zeros(mine.sum())
        pyramid = build_pyramid(image)
        expected[mine] = sample_polar(
            pyramid, xy[mine], window[mine], upright, GRID, standardize=True
        )[:, 0]
    difference = np.abs(found - expected)
    # A ring between two levels may be read from the other one in single precision.
    assert np.quantile(difference, 0.99) < 0.05
    assert difference.mean() < 2e-3


def test_views_show_what_those_of_opencv_show(photographs):
    found, on_device = photographs
    centre = torch.tensor([[100.0, 120.0], [150.0, 80.0]])
    homography, inverse = draw_homographies(centre, 4, CONFIG, np.random.default_rng(1))
    both = homography @ inverse
    identity = np.broadcast_to(np.eye(3), both.shape)
    np.testing.assert_allclose(both / both[..., 2:, 2:], identity, atol=1e-3)
    zoom, _ = zoom_and_rotation(jacobians(homography, centre[:, None])[:, 0])
    assert zoom.min() < 0.7 < 1.1 < zoom.max()
    index = torch.arange(2).repeat_interleave(4)
    views = render_views(on_device, index, inverse.flatten(0, 1), zoom.flatten(), CONFIG.canvas_px)
    for view, h, which in zip(views, homography.flatten(0, 1), index, strict=True):
        centre_px = centre[which].double().numpy()
        expected = render(found[int(which)].image, h.double().numpy(), CONFIG.canvas_px, centre_px)
        assert np.abs(view.numpy() - expected).mean() < 1.5


def test_geometry_is_that_of_homographies():
    rng = np.random.default_rng(2)
    xy = rng.uniform(20, 200, (1, 5, 2))
    points = torch.from_numpy(xy).float()
    homography, _ = draw_homographies(points[:, 0], 2, CONFIG, rng)
    jacobian = jacobians(homography, points)
    for view in range(2):
        h = homography[0, view].double().numpy()
        expected = local_jacobian(h, xy[0])
        mapped, depth = map_points(homography, points[:, None])
        np.testing.assert_allclose(mapped[0, view], project(h, xy[0]), rtol=1e-4)
        np.testing.assert_allclose(depth[0, view], xy[0] @ h[2, :2] + h[2, 2], rtol=1e-4)
        np.testing.assert_allclose(jacobian[0, :, view], expected, atol=1e-3)
        zoom, rotation_deg = nearest_similarity(expected)
        found = zoom_and_rotation(jacobian[0, :, view])
        np.testing.assert_allclose(found[0], zoom, rtol=1e-3)
        np.testing.assert_allclose(found[1], rotation_deg, atol=0.05)


def test_views_are_drawn_as_widely_as_asked():
    rng = np.random.default_rng(3)
    centre = torch.zeros(400, 2)
    homography, _ = draw_homographies(centre, 4, CONFIG, rng)
    mapped, _ = map_points(homography, centre[:, None, None])
    np.testing.assert_allclose(mapped, (CONFIG.canvas_px - 1) / 2, atol=1e-3)
    jacobian = jacobians(homography, centre[:, None])[:, 0]
    zoom, rotation_deg = zoom_and_rotation(jacobian)
    octaves = zoom.log2()
    low, high = CONFIG.zoom_octaves
    assert low - 1e-3 <= octaves.min() < low + 0.1
    assert high - 0.1 < octaves.max() <= high + 1e-3
    assert rotation_deg.min() < -170 < 170 < rotation_deg.max()
    values = torch.linalg.svdvals(jacobian)
    log_tilt = (values[..., 0] / values[..., 1]).log()
    assert float(log_tilt.median()) == pytest.approx(0.6745 * CONFIG.tilt_log_sigma, rel=0.1)
    assert log_tilt.max() <= CONFIG.tilt_log_max + 1e-3


@pytest.mark.parametrize("quality", [10, 35, 50, 90])
def test_compression_rounds_as_jpeg_does(quality):
    config = SynthesisConfig(jpeg_quality=(quality, quality))
    view = textured(4)[:200, :200]
    corruption = Corruption(config, CPU, np.random.default_rng(0))
    found = corruption._compress(torch.from_numpy(view)[None].float())[0].round().clamp(0, 255)
    code = cv2.imencode(".jpg", view, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    expected = cv2.imdecode(code, cv2.IMREAD_GRAYSCALE).astype(float)
    changed = np.abs(expected - view).mean()
    assert np.abs(found.numpy() - expected).mean() < 0.3 * changed


def test_corruption_spares_clean_views():
    views = torch.from_numpy(textured(5)[:64, :64]).float().repeat(200, 1, 1)
    clean = np.arange(200) % 4 == 0
    config = SynthesisConfig(corruption=1.0)
    spoilt = Corruption(config, CPU, np.random.default_rng(0))(views, clean)
    same = (spoilt == views).flatten(1).all(1).numpy()
    assert same[clean].all()
    assert same[~clean].mean() < 0.1
    assert (spoilt == spoilt.round()).all()
    assert 0 <= spoilt.min() <= spoilt.max() <= 255


@pytest.mark.parametrize("change", ["_move", "_blur", "_resample", "_add_noise", "_compress"])
def test_no_corruption_moves_a_view(change):
    view = np.zeros((65, 65), np.float32)
    view[28:37, 28:37] = 200
    views = torch.from_numpy(view).repeat(300, 1, 1)
    corruption = Corruption(SynthesisConfig(noise=2.0), CPU, np.random.default_rng(0))
    found = getattr(corruption, change)(views).clamp(0, 255)
    assert (found - views).abs().amax((1, 2)).min() > 1
    tick = torch.arange(65.0)
    found = torch.where(found < 10, 0.0, found)
    weight = found.sum((1, 2))
    for axis in (1, 2):
        middle = found.sum(axis) @ tick / weight
        assert float(middle.mean()) == pytest.approx(32, abs=0.05)


def test_light_changes_views_pixel_by_pixel_but_for_shading():
    view = torch.from_numpy(textured(6)[:64, :64]).float().repeat(50, 1, 1)
    corruption = Corruption(SynthesisConfig(), CPU, np.random.default_rng(0))
    found = corruption._relight(view)
    order = view[0].flatten().argsort()
    ranked = found.flatten(1)[:, order]
    rising = (ranked.diff(dim=1) >= -1e-3).float().mean(1)
    assert float((rising > 0.999).float().mean()) == pytest.approx(0.6, abs=0.2)  # not shaded
    assert found.std(0).mean() > 10


def test_keypoints_are_those_that_all_views_show(photographs):
    found, on_device = photographs
    config = dataclasses.replace(CONFIG, margin_px=40, keypoints_per_view=30)
    views = DeviceViews(on_device, GRID, config, 0)
    centre = on_device.xy_px[:, 5]
    homography, _ = draw_homographies(centre, 3, config, np.random.default_rng(4))
    chosen = views._choose(on_device.xy_px, on_device.device_counts, homography)
    for which in range(2):
        xy = on_device.xy_px[which, : int(on_device.counts[which])].double().numpy()
        seen = Photograph(found[which].image, xy, np.full(len(xy), np.nan))
        expected = _visible_everywhere(seen, [*homography[which].double().numpy()], config)
        kept = set(chosen[which].tolist())
        assert kept <= set(expected.tolist())
        assert len(kept) == min(30, len(expected)) > 3


def test_windows_are_those_of_the_processor(photographs):
    config = dataclasses.replace(CONFIG, magnification=10.0)
    size = np.where(np.arange(4000) % 2, 6.0, np.nan)
    expected = _reference_windows(size, config, np.random.default_rng(0))
    views = DeviceViews(photographs[1], GRID, config, 0)
    windows = views._windows(torch.from_numpy(size).float()).numpy()
    for blob in (0, 1):
        share = np.linspace(0.05, 0.95, 7)
        one, other = (np.log2(np.quantile(w[blob::2], share)) for w in (windows, expected))
        np.testing.assert_allclose(one, other, atol=0.12)


def test_places_jitter_and_some_views_stay_clean(photographs):
    config = dataclasses.replace(CONFIG, tracked=0.0, free=0.0, clean=0.4, jitter=0.0)
    still = dataclasses.replace(config, jitter_px=0.0)
    batch = DeviceViews(photographs[1], GRID, still, 3).make(40)
    same = (batch["patches"] - batch["exact_patches"]).abs().amax((1, 2, 3, 4)) < 1e-4
    same = same.view(40, -1)
    assert (same.all(1) == same.any(1)).all()
    assert float(same[:, 0].float().mean()) == pytest.approx(0.4, abs=0.2)
    jittered = dataclasses.replace(config, jitter_px=1.0, clean=1.0)
    batch = DeviceViews(photographs[1], GRID, jittered, 3).make(4)
    moved = (batch["patches"] - batch["exact_patches"]).abs().amax((1, 2, 3, 4))
    assert (moved > 1e-3).all()


def test_a_made_batch_tells_the_truth(photographs):
    """Tracked keypoints of clean views without jitter look alike once turned back."""
    config = dataclasses.replace(
        CLEAN, tracked=1.0, scale_sigma_octaves=0.0, tilt_log_sigma=0.0, perspective=0.0,
        zoom_octaves=(-0.3, 0.3), window_px=(30.0, 40.0), magnification=6.0,
    )  # fmt: skip
    views = DeviceViews(photographs[1], GRID, config, 0)
    batch = views.make(3)
    assert set(batch) == {f.name for f in dataclasses.fields(Batch)} - {
        "taught_scale",
        "taught_orientation",
        "gradients",  # not by default
    }
    assert batch["patches"].shape == (36, 4, 1, 24, 48)
    np.testing.assert_allclose(batch["patches"], batch["exact_patches"], atol=1e-5)
    _, rotation_deg, octaves = compare_views(batch)
    np.testing.assert_allclose(octaves, 0, atol=1e-4)
    whole = batch["patches"][..., 0, 4:, GRID.halo : -GRID.halo]
    first, second = whole[:, 0].numpy(), whole[:, 1].numpy()
    turns = np.rint(rotation_deg[:, 0].numpy() / 10).astype(int)
    back = np.stack([np.roll(p, -turn, -1) for p, turn in zip(second, turns, strict=True)])
    away = np.stack([np.roll(p, turn, -1) for p, turn in zip(second, turns, strict=True)])
    assert np.abs(back - first).mean() < 0.35 * np.abs(away - first).mean()


def test_kinds_of_keypoints_come_in_their_shares(photographs):
    config = dataclasses.replace(CONFIG, tracked=0.3, free=0.5)
    views = DeviceViews(photographs[1], GRID, config, 1)
    batch = views.make(24)
    known = batch["scale_sigma"].isfinite()
    assert (known == known[:, :1]).all()
    assert float(known[:, 0].float().mean()) == pytest.approx(0.3, abs=0.1)
    zoom, _ = zoom_and_rotation(batch["jacobian"])
    residue = (batch["log2_exact_window"] - zoom.log2())[known[:, 0]]
    assert residue.std(1).max() < 1e-3  # these windows show the same in all views
    same = batch["log2_exact_window"] == batch["log2_window"]
    assert same[~known].all()
    fixed = batch["log2_window"][~known[:, 0]].std(1) < 0.1
    assert float(fixed.float().mean()) == pytest.approx(0.5, abs=0.12)
    arrays = {name: values.double().numpy() for name, values in batch.items()}
    pairs, rotation_deg, octaves = pair_changes(Batch(**arrays))
    found = compare_views(batch)
    np.testing.assert_array_equal(found[0], pairs)
    turn_error = (found[1].numpy() - rotation_deg + 180) % 360 - 180
    np.testing.assert_allclose(turn_error, 0, atol=0.01)
    np.testing.assert_allclose(found[2], octaves, atol=1e-3)


def test_a_pool_forgets_the_oldest():
    pool = DevicePool(5)
    for start in (0, 2, 4, 6):
        values = torch.arange(start, start + 2).float()
        pool.put({"patches": values[:, None], "log2_window": values})
    drawn = pool.draw(200)
    assert pool.filled == 5
    assert set(drawn["log2_window"].tolist()) == {3, 4, 5, 6, 7}
    assert drawn["patches"].dtype == torch.float16
    np.testing.assert_array_equal(drawn["patches"][:, 0].float(), drawn["log2_window"])


def test_rotations_of_gradients_are_those_of_the_processor(photographs):
    config = dataclasses.replace(CONFIG, rotation="gradients", tilt_log_sigma=0.7)
    made = DeviceViews(photographs[1], GRID, config, 2).make(12)
    batch = Batch(**{name: values.double().numpy() for name, values in made.items()})
    _, by_gradients, octaves = pair_changes(batch)
    _, by_points, _ = pair_changes(dataclasses.replace(batch, gradients=None))
    _, found, found_octaves = compare_views(made)
    assert np.abs((by_gradients - by_points + 180) % 360 - 180).mean() > 2
    np.testing.assert_allclose((found.numpy() - by_gradients + 180) % 360 - 180, 0, atol=0.02)
    np.testing.assert_allclose(found_octaves, octaves, atol=1e-3)
    turned = np.moveaxis(batch.jacobian, 1, 0)
    expected = [rotation_of_gradients(np.eye(2), view, batch.gradients) for view in turned]
    error = rotation_from_photograph(made).numpy() - np.stack(expected, 1)
    np.testing.assert_allclose((error + 180) % 360 - 180, 0, atol=0.02)


def test_gradients_are_measured_around_the_keypoints(photographs, monkeypatch):
    """In the photograph that a keypoint comes from, as wide as its descriptor sees it."""
    calls = []

    def recorded(*arguments):
        calls.append(arguments)
        return moments_around(*arguments)

    # By its own globals: other tests load the module anew.
    monkeypatch.setitem(DeviceViews._cut.__globals__, "moments_around", recorded)
    held = photographs[1]
    config = dataclasses.replace(CONFIG, rotation="gradients", tracked=0.0, free=0.0)
    made = DeviceViews(held, GRID, config, 2).make(6)
    ((pyramids, photograph, xy, sigma_px),) = calls
    first = held.images[0].flatten(1)
    own = (pyramids.values[:, None, : first.shape[1]] == first).all(2).int().argmax(1)[photograph]
    assert set(own.tolist()) == {0, 1}
    near = [
        (held.xy_px[k, : held.counts[k]] - at).abs().sum(1).min()
        for k, at in zip(own, xy, strict=True)
    ]
    assert max(near) < 1e-3
    window_px = sigma_px / 3 * config.magnification
    assert (made["log2_window"].mean(1) - window_px.log2()).abs().max() < 0.1


def test_moments_are_those_of_the_processor():
    """Nearly: further out polar patches are coarser, and near the centre they are finer."""
    image = cv2.resize(textured(7, 320, 120), (320, 320), interpolation=cv2.INTER_CUBIC)
    x, y = np.meshgrid(np.arange(70, 250, 20.0), np.arange(70, 250, 20.0))
    xy = np.stack((x.ravel(), y.ravel()), 1)
    sigma = np.geomspace(4, 20, len(xy))
    expected = gradient_moments(image, xy, sigma)
    pyramids = DevicePyramids(torch.from_numpy(image)[None])
    places = torch.from_numpy(xy).float(), torch.from_numpy(sigma).float()
    found = moments_around(pyramids, torch.zeros(len(xy), dtype=torch.int64), *places).numpy()

    def direction(m):
        """Doubled, as long as it is decided: 0 for what has none, 1 for a straight edge."""
        doubled = np.stack((m[:, 0, 0] - m[:, 1, 1], 2 * m[:, 0, 1]), 1)
        return doubled / np.trace(m, axis1=1, axis2=2)[:, None]

    assert np.linalg.norm(direction(expected), axis=1).mean() > 0.5
    error = np.linalg.norm(direction(found) - direction(expected), axis=1)
    assert np.quantile(error, 0.9) < 0.12
