"""The polar network's symmetry, which holds before any training."""

from __future__ import annotations

import re

import pytest

torch = pytest.importorskip("torch")

from cv_patchpose.histograms import PoseBins  # noqa: E402
from cv_patchpose.patches import PolarGrid  # noqa: E402
from cv_patchpose.training.polar import PolarNet, PolarNetConfig, ScaleAlignment  # noqa: E402

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return PolarNet().eval()


def with_halo(patch, halo):
    return torch.cat([patch[..., -halo:], patch, patch[..., :halo]], -1)


@pytest.mark.parametrize("bins", [1, 7, 18, 35])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"stride": 1, "separable": True, "aligned": False},
        {"stride": 1, "channels": (16,), "hidden": 32},
    ],
)
def test_turning_by_whole_bins_rolls_the_orientation_histogram_exactly(shape, bins):
    torch.manual_seed(0)
    network = PolarNet(PolarNetConfig.for_bins(PoseBins(), **shape)).eval()
    grid = network.config.grid
    patch = torch.randn(3, 1, grid.rows, grid.columns)
    turned = torch.roll(patch, network.config.stride * bins, -1)
    with torch.no_grad():
        scale, orientation = network(with_halo(patch, grid.halo), torch.zeros(3, 13))
        turned_scale, turned_orientation = network(with_halo(turned, grid.halo), torch.zeros(3, 13))
    assert orientation.std() > 1e-3
    torch.testing.assert_close(
        turned_orientation, torch.roll(orientation, bins, -1), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(turned_scale, scale, atol=1e-4, rtol=1e-4)


def test_a_feature_at_column_2i_speaks_for_bin_i():
    """An even response around one column must be even around that column's bin."""
    torch.manual_seed(1)
    network = PolarNet().eval()
    for module in network.modules():  # symmetric kernels along the angle
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
    grid = network.config.grid
    patch = torch.zeros(1, 1, grid.rows, grid.columns)
    patch[..., 20] = 1.0
    with torch.no_grad():
        logits = network(with_halo(patch, grid.halo), torch.zeros(1, 13))[1][0]
    around_bin_10 = logits.roll(18 - 10)
    torch.testing.assert_close(around_bin_10[1:], around_bin_10[1:].flip(0), atol=1e-5, rtol=1e-4)
    assert logits.std() > 1e-3


def test_zooming_by_whole_bins_moves_the_scale_response(network):
    """A ring pattern well inside the window: its scale logits move with it."""
    grid = network.config.grid
    rings = torch.zeros(1, 1, grid.rows, grid.columns)
    rings[:, :, 17:20] = 1.0
    with torch.no_grad():
        features = network.trunk(with_halo(rings, grid.halo))
        moved = network.trunk(with_halo(torch.roll(rings, 4, 2), grid.halo))
    torch.testing.assert_close(moved[:, :, 2:], features[:, :, :-2], atol=1e-5, rtol=1e-4)


def test_features_are_aligned_by_the_scale():
    alignment = ScaleAlignment(14, 13)
    features = torch.randn(2, 3, 14, 5)
    scale = torch.zeros(2, 13)
    scale[0, 6], scale[1, 8] = 1.0, 1.0  # the middle, and two rows further out
    kept, moved = alignment(features, scale).reshape(2, 14, 3, 5).transpose(1, 2)
    torch.testing.assert_close(kept, features[0])
    torch.testing.assert_close(moved[:, :-2], features[1, :, 2:])
    assert (moved[:, -2:] == 0).all()


def test_an_uncertain_scale_mixes_the_rows():
    alignment = ScaleAlignment(14, 13)
    features = torch.randn(1, 3, 14, 5)
    half = torch.zeros(1, 13)
    half[0, 5:7] = 0.5
    mixed = alignment(features, half).reshape(14, 3, 5).transpose(0, 1)
    torch.testing.assert_close(mixed[:, 1:], (features[0, :, 1:] + features[0, :, :-1]) / 2)


def test_a_known_scale_decides_where_the_orientation_is_read(network):
    grid = network.config.grid
    patches = torch.randn(1, 1, grid.rows, grid.columns + 2 * grid.halo).repeat(2, 1, 1, 1)
    log_prior = torch.full((2, 13), -1e4)
    log_prior[0, 6], log_prior[1, 9] = 0.0, 0.0
    with torch.no_grad():
        scale, orientation = network(patches, log_prior)
    torch.testing.assert_close(scale[0], scale[1])
    assert (orientation[0] - orientation[1]).abs().max() > 1e-3


def test_nine_directions_are_enough():
    config = PolarNetConfig.for_bins(PoseBins(orientation=9))
    patches = torch.zeros(2, 1, config.grid.rows, config.grid.columns + 2 * config.grid.halo)
    _, orientation = PolarNet(config).eval()(patches, torch.zeros(2, 13))
    assert orientation.shape == (2, 9)


def test_output_shapes(network):
    grid = network.config.grid
    patches = torch.zeros(5, 1, grid.rows, grid.columns + 2 * grid.halo)
    scale, orientation = network(patches, torch.zeros(5, 13))
    assert scale.shape == (5, 13)
    assert orientation.shape == (5, 36)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": PolarGrid(rows=40, columns=36, halo=6)}, "grid: expected 2 columns per orien"),
        ({"bins": PoseBins(scale_per_octave=2)}, "grid: expected 4 rows per octave"),
        ({"channels": (16,)}, "grid: expected halo 4 columns"),
        ({"grid": PolarGrid(rows=30, columns=72, halo=6)}, "grid: 30 rows leave 9"),
        ({"bins": PoseBins(orientation=8)}, "orientation_bins: expected at least 9, got 8"),
    ],
)
def test_a_grid_that_does_not_fit_the_bins_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PolarNetConfig(**change)
