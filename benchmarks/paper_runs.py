"""What is trained for docs/paper.md, and the models that are made of it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

BINS = ((9, 7), (18, 9), (36, 13), (72, 17))
PAIRS = ("paper", "pairs", "views")
SPLIT_RULES = ("image", "pairs")


@dataclass(frozen=True)
class Run:
    """A training: its group decides the budget.

    Attributes:
        group: "pair": one of the paper's two networks; "joint": both in one run; "polar".
        options: of the command train.
        data: "photographs", or "leak", a small dataset.
    """

    group: str
    options: str
    data: str = "photographs"


RUNS = {
    **{
        f"{recipe}-{target}": Run("pair", f"--network resnet18 --recipe {recipe} --target {target}")
        for recipe in PAIRS
        for target in ("orientation", "scale")
    },
    **{
        f"resnet18-{o}-{s}": Run(
            "joint", f"--network resnet18 --recipe pairs --orientation-bins {o} --scale-bins {s}"
        )
        for o, s in BINS
    },
    "resnet18-alignment": Run("joint", "--network resnet18 --recipe pairs --loss alignment"),
    "resnet18-views": Run("joint", "--network resnet18 --recipe views"),
    **{
        f"leak-{rule}": Run("joint", f"--network resnet18 --recipe pairs --split-by {rule}", "leak")
        for rule in SPLIT_RULES
    },
    **{f"polar-{o}-{s}": Run("polar", f"--orientation-bins {o} --scale-bins {s}") for o, s in BINS},
    "polar-alignment": Run("polar", "--loss alignment"),
    "polar-clean": Run("polar", "--clean 1"),
    "polar-clean-alignment": Run("polar", "--clean 1 --loss alignment"),
    "resnet18-views-alignment": Run("joint", "--network resnet18 --recipe views --loss alignment"),
}
# Each model and the runs that make it.
MODELS = {
    **{recipe: (f"{recipe}-orientation", f"{recipe}-scale") for recipe in PAIRS},
    **{name: (name,) for name, run in RUNS.items() if run.group != "pair"},
}
# Models that differ in loss and in what they were trained on: network, views, loss.
LOSSES = {
    "resnet18-36-13": ("ResNet-18", "PatchPose pairs", "overlap"),
    "resnet18-alignment": ("ResNet-18", "PatchPose pairs", "the paper's"),
    "resnet18-views": ("ResNet-18", "spoilt views", "overlap"),
    "resnet18-views-alignment": ("ResNet-18", "spoilt views", "the paper's"),
    "polar-clean": ("polar", "clean views", "overlap"),
    "polar-clean-alignment": ("polar", "clean views", "the paper's"),
    "polar-36-13": ("polar", "spoilt views", "overlap"),
    "polar-alignment": ("polar", "spoilt views", "the paper's"),
}


def describe_command(arguments: list[str]) -> str:
    """Write a command of cv-patchpose without the folders of this machine."""
    names = [",".join(Path(part).name for part in a.split(",")) for a in arguments]
    return shlex.join(["cv-patchpose", *names])
