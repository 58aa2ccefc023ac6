"""The ring network's symmetry, which holds before any training."""

from __future__ import annotations

import re

import pytest

torch = pytest.importorskip("torch")

from cv_patchpose.estimator import PoseEstimator  # noqa: E402
from cv_patchpose.grids import PolarGrid  # noqa: E402
from cv_patchpose.histograms import PoseBins  # noqa: E402
from cv_patchpose.training.networks import network_config, shape_to_entry  # noqa: E402
from cv_patchpose.training.polar import PolarNetConfig  # noqa: E402
from cv_patchpose.training.recipes import recipe  # noqa: E402
from cv_patchpose.training.rings import RingNet, RingNetConfig  # noqa: E402
from cv_patchpose.training.widening import can_widen, widen  # noqa: E402

pytestmark = pytest.mark.train


def with_halo(patch, halo):
    return torch.cat([patch[..., -halo:], patch, patch[..., :halo]], -1)


@pytest.mark.parametrize("bins", [1, 7, 18, 35])
@pytest.mark.parametrize("shape", [{}, {"stem_channels": 32}, {"channels": (16, 32), "hidden": 8}])
def test_turning_by_whole_bins_rolls_the_orientation_histogram_exactly(shape, bins):
    torch.manual_seed(0)
    network = RingNet(RingNetConfig.for_bins(PoseBins(), **shape)).eval()
    grid = network.config.grid
    patch = torch.randn(3, 1, grid.rows, grid.columns)
    turned = torch.roll(patch, bins, -1)
    with torch.no_grad():
        scale, orientation = network(with_halo(patch, grid.halo))
        turned_scale, turned_orientation = network(with_halo(turned, grid.halo))
    assert orientation.std() > 1e-3
    assert (scale[0] - scale[1]).abs().max() > 1e-3
    torch.testing.assert_close(
        turned_orientation, torch.roll(orientation, bins, -1), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(turned_scale, scale, atol=1e-4, rtol=1e-4)


def test_a_feature_in_the_direction_of_a_bin_speaks_for_that_bin():
    """An even response around one direction must be even around that direction's bin."""
    torch.manual_seed(1)
    network = RingNet(RingNetConfig.for_bins(PoseBins())).eval()
    for module in network.modules():  # symmetric kernels along the angle
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
    grid = network.config.grid
    patch = torch.zeros(1, 1, grid.rows, grid.columns)
    patch[..., 10] = 1.0
    with torch.no_grad():
        logits = network(with_halo(patch, grid.halo))[1][0]
    around_bin_10 = logits.roll(18 - 10)
    torch.testing.assert_close(around_bin_10[1:], around_bin_10[1:].flip(0), atol=1e-5, rtol=1e-4)
    assert logits.std() > 1e-3


@pytest.mark.parametrize(
    ("bins", "channels"),
    [
        (36, (16, 32, 32)),
        (36, (16, 16, 8)),
        (18, (8, 8, 8)),
        (9, (8, 8)),
        (20, (8, 8, 8)),  # 9 columns do not divide 20
        (36, (8, 8, 8, 8)),
    ],
)
def test_the_folded_network_computes_the_same(bins, channels):
    torch.manual_seed(2)
    config = RingNetConfig.for_bins(PoseBins(orientation=bins), channels=channels, hidden=16)
    network = RingNet(config).train()
    grid = config.grid
    patches = torch.randn(16, 1, grid.rows, grid.columns)
    for _ in range(3):  # statistics for the normalisations
        network(with_halo(patches + 0.1 * torch.randn_like(patches), grid.halo))
    network.eval()
    folded = network.folded()
    assert not any(
        isinstance(m, torch.nn.BatchNorm2d) for m in (*folded.layers.modules(), folded.closing.norm)
    )
    with torch.no_grad():
        for found, expected in zip(
            folded(with_halo(patches, grid.halo)),
            network(with_halo(patches, grid.halo)),
            strict=True,
        ):
            assert expected.std() > 1e-3
            found, expected = (logits.log_softmax(1) for logits in (found, expected))
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert network.closing.norm is not folded.closing.norm  # the network itself can go on training


NARROW = {"stem_channels": 16, "channels": (16, 16, 8), "hidden": 8}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"stem_channels": 32},
        {"channels": (32, 32, 8)},
        {"channels": (16, 16, 12)},
        {"hidden": 24},
        {"stem_channels": 24, "channels": (32, 32, 16), "hidden": 12},
    ],
)
def test_a_widened_network_computes_the_same_and_learns_to_listen_to_what_is_new(change):
    torch.manual_seed(3)
    narrow, wide = (RingNetConfig.for_bins(PoseBins(), **NARROW | c) for c in ({}, change))
    grid = narrow.grid
    network = RingNet(narrow).train()
    patches = with_halo(torch.randn(8, 1, grid.rows, grid.columns), grid.halo)
    network(patches)  # statistics for the normalisations
    assert can_widen(narrow, wide)
    wider = widen(network.eval(), wide).eval()
    assert wider.config == wide
    for found, expected in zip(wider(patches), network(patches), strict=True):
        assert expected.std() > 1e-3
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    trained = network.state_dict()
    optimizer = torch.optim.SGD(wider.parameters(), 1e-2)
    sum(logits.log_softmax(1)[:, 0].sum() for logits in wider(patches)).backward()
    optimizer.step()
    for name, weights in wider.named_parameters():
        if weights.dim() > 1 and weights.shape[1] > trained[name].shape[1]:
            listens = weights[: len(trained[name])].flatten(2).any(2).any(0)
            assert listens.float().mean() > 0.5, name  # rectifiers at 0 learn nothing yet


@pytest.mark.parametrize(
    ("wide", "bins"),
    [
        ({"stem_channels": 15}, PoseBins()),
        ({"channels": (16, 16, 7)}, PoseBins()),
        ({"hidden": 7}, PoseBins()),
        ({"channels": (24, 16, 8)}, PoseBins()),  # no longer adds what it is given
        ({"channels": (16, 16)}, PoseBins()),
        ({}, PoseBins(18)),
    ],
)
def test_what_cannot_be_widened(wide, bins):
    narrow = RingNetConfig.for_bins(PoseBins(), **NARROW)
    assert not can_widen(narrow, RingNetConfig.for_bins(bins, **NARROW | wide))
    assert not can_widen(narrow, PolarNetConfig.for_bins(PoseBins()))
    assert not can_widen(PolarNetConfig.for_bins(PoseBins()), narrow)


@pytest.mark.parametrize(("name", "model"), [("rings-48", "polar"), ("rings-192", "polar-large")])
def test_a_recipe_trains_the_like_of_each_bundled_model(name, model):
    metadata = PoseEstimator(model).metadata
    config = recipe("rings", name)
    shape = network_config(config)
    assert (shape.grid, shape.bins) == (metadata.grid, metadata.bins)
    assert config.synthesis.magnification == metadata.magnification
    entry = shape_to_entry(shape)
    for key, value in metadata.training["network"].items():
        assert (list(entry[key]) if key == "channels" else entry[key]) == value
    trained = metadata.training["recipe"]
    for key in ("loss", "sigma_deg", "sigma_octaves", "floor"):
        assert getattr(config, key) == trained[key]


def test_output_shapes():
    network = RingNet(RingNetConfig.for_bins(PoseBins(18, 9, 2.0), stem_channels=16)).eval()
    grid = network.config.grid
    scale, orientation = network(torch.zeros(5, 1, grid.rows, grid.columns + 2 * grid.halo))
    assert scale.shape == (5, 9)
    assert orientation.shape == (5, 18)
    with pytest.raises(ValueError, match="patches: expected 16 x 30, got"):
        network(torch.zeros(5, 1, grid.rows, grid.columns))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": PolarGrid(24, 72, 3, 6)}, "grid: expected 36 columns and a halo of 6, got 72"),
        ({"grid": PolarGrid(24, 36, 3, 3)}, "grid: expected 36 columns and a halo of 6, got 36"),
        ({"channels": (64,)}, "channels: expected at least two, got (64,)"),
        ({"channels": (16,) * 5}, "channels: expected few enough layers to reach around 36"),
    ],
)
def test_a_shape_that_does_not_hold_together_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RingNetConfig(**change)
