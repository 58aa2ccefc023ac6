"""Named sets of training options."""

from __future__ import annotations

from dataclasses import replace

from cv_patchpose.training.options import SynthesisConfig, TrainConfig

PAPER = TrainConfig(
    network="resnet18",
    source="patchpose",
    loss="alignment",
    temperature=20.0,
    optimizer="sgd",
    learning_rate=3.0,
    momentum=0.9,
    weight_decay=0.0,
    schedule="constant",
    largest_gradient=None,
    ema=0.0,
    bfloat16=False,
    batch_size=64,
)
PAIRS = TrainConfig(
    network="resnet18",
    source="patchpose",
    learning_rate=1e-3,
    sigma_deg=4.0,
    sigma_octaves=0.1,
    floor=0.01,
)
VIEWS = replace(PAIRS, source="views")
RINGS = TrainConfig(
    network="rings",
    stem_channels=64,
    channels=(64, 64, 64),
    aligned=False,
    sigma_deg=4.0,
    sigma_octaves=0.1,
    floor=0.01,
)
RINGS_48 = replace(
    RINGS,
    stem_channels=48,
    channels=(48, 48, 48),
    floor=0.001,
    synthesis=SynthesisConfig(magnification=21.0),
)
RINGS_64 = replace(RINGS_48, stem_channels=64, channels=(64, 64, 64))
RINGS_192 = replace(RINGS_48, stem_channels=192, channels=(192, 192, 192), hidden=128)
# The first network is the default, and the first recipe of each its own.
RECIPES: dict[str, dict[str, TrainConfig]] = {
    "rings": {"rings-48": RINGS_48, "rings-64": RINGS_64, "rings-192": RINGS_192, "rings": RINGS},
    "polar": {"polar": TrainConfig()},
    "resnet18": {"paper": PAPER, "pairs": PAIRS, "views": VIEWS},
}


def recipe(network: str | None = None, name: str | None = None) -> TrainConfig:
    """Return a recipe of a network, its default when no name is given.

    Args:
        network: "rings", "polar" or "resnet18"; None: the first.
        name: One of the network's recipes: for rings "rings-48", "rings-64" and "rings-192", of so
            many channels, with the losses of the bundled models, or "rings", an earlier one; for
            polar "polar"; for resnet18 "paper" (Lee, Jeong, Cho, BMVC 2021: SGD at 3.0 with
            momentum 0.9, batches of 64, temperature 20, the alignment loss on PatchPose pairs, in
            float32, without a warm-up), "pairs" (ours on the same pairs: AdamW and the overlap
            loss) or "views" (the same on spoilt views of photographs).

    "paper" is exact, but that the last weights are kept and not those of the best validation. In
    the budgets tried, 110,000 to 199,000 pairs, it did not train: with PyTorch's usual
    initialisation and a temperature of 20 the outputs for different patches hardly differ, and the
    gradient is about 3e-4. The loss of the orientation stayed at 2 ln 36 = 7.167, that of uniform
    histograms; the network of the scale put its mass into a bin outside those that two views
    share, which the loss does not see. "pairs" and "views" are the recipes that train.

    Raises:
        ValueError: An unknown network or recipe.
    """
    if network is None:
        network = next(iter(RECIPES))
    if network not in RECIPES:
        raise ValueError(f"network: expected one of {', '.join(RECIPES)}, got {network!r}")
    known = RECIPES[network]
    if name is not None and name not in known:
        owners = [other for other, recipes in RECIPES.items() if name in recipes]
        advice = f"; {name} goes with --network {owners[0]}" if owners else ""
        raise ValueError(
            f"recipe: expected one of {', '.join(known)} for {network}, got {name!r}{advice}"
        )
    return known[name or next(iter(known))]
