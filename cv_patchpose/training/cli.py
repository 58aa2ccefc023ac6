"""Arguments of the verb train."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cv_patchpose.errors import naming
from cv_patchpose.training.options import TARGETS, TrainConfig
from cv_patchpose.training.recipes import RECIPES, recipe

# option: (field of TrainConfig, type, help)
_OPTIONS: dict[str, tuple[str, type, str]] = {
    "--minutes": ("budget_minutes", float, "training time"),
    "--keypoints": ("budget_keypoints", int, "stop after so many keypoints instead"),
    "--validate-every": ("validate_every_minutes", float, "minutes between validations"),
    "--temperature": ("temperature", float, "divides the outputs of resnet18"),
    "--orientation-bins": ("orientation_bins", int, "of the orientation histogram"),
    "--scale-bins": ("scale_bins", int, "of the scale histogram, over four octaves"),
    "--split-by": ("split_by", str, "PatchPose pairs are divided by image or by pairs"),
    "--optimizer": ("optimizer", str, "adamw or sgd"),
    "--learning-rate": ("learning_rate", float, "peak of the schedule"),
    "--batch-size": ("batch_size", int, "keypoints per step"),
    "--seed": ("seed", int, "of everything random"),
    "--device": ("device", str, "cpu, cuda or auto"),
    "--threads": ("threads", int, "of PyTorch; 0: its own choice"),
    "--streams": ("streams", int, "threads that make batches"),
    "--workers": ("workers", int, "processes that make batches instead; 0: none"),
    "--loss": ("loss", str, "overlap or alignment"),
    "--floor": (
        "floor",
        float,
        "added to the probability in the overlap loss: the larger, the less outliers count",
    ),
    "--reuse": ("reuse", int, "how often the patches of a keypoint are used, on average"),
    "--init": ("init", str, "run or checkpoint to begin with; one of narrower rings is widened"),
    "--teacher": ("teacher", str, "model whose histograms are imitated too, name or ONNX file"),
    "--teacher-weight": (
        "teacher_weight",
        float,
        "weight of the imitation loss, beside the loss of pairs",
    ),
    "--teacher-agreement": (
        "teacher_agreement",
        float,
        "exponent on the consensus of what the teacher finds in all views; 0: no consensus",
    ),
}


_METAVARS = {
    "budget_minutes": "MINUTES",
    "validate_every_minutes": "MINUTES",
    "init": "RUN",
    "teacher": "MODEL",
}
_METAVARS_BY_TYPE = {int: "N", float: "F", str: "NAME"}
_BFLOAT16 = {"auto": None, "yes": True, "no": False}

# The same of SynthesisConfig.
_VIEW_OPTIONS: dict[str, tuple[str, type, str]] = {
    "--magnification": ("magnification", float, "support window of a blob over its size"),
    "--clean": ("clean", float, "share of keypoints whose views are not degraded"),
    "--tracked": ("tracked", float, "share of the other keypoints whose windows follow the zoom"),
    "--redetected": (
        "redetected",
        float,
        "largest share of keypoints that SIFT finds again in the views",
    ),
    "--rotation": (
        "rotation",
        str,
        "rotation that counts as true between slanted views: of the points or the gradients",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    names = "; ".join(f"{network}: {', '.join(known)}" for network, known in RECIPES.items())
    parser.add_argument(
        "images",
        type=Path,
        metavar="PHOTOGRAPHS",
        help="folder of photographs, or of PatchPose datasets",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="RUN", help="folder of the run"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in RUN, by its options"
    )
    parser.add_argument(
        "--network",
        choices=list(RECIPES),
        help="what to train (rings, as the bundled models; polar is some ten times as slow)",
    )
    parser.add_argument(
        "--recipe",
        help=f"named set of options, the first of each network its default ({names})",
    )
    parser.add_argument(
        "--teacher-target",
        choices=("orientation", "scale", "both"),
        help="histograms of the teacher to imitate (both)",
    )
    parser.add_argument(
        "--target", choices=("orientation", "scale", "both"), help="what resnet18 learns (both)"
    )
    parser.add_argument(
        "--bfloat16",
        choices=_BFLOAT16,
        help="forward pass in bfloat16 (auto: where the processor has it)",
    )
    for option, (field, kind, text) in (_OPTIONS | _VIEW_OPTIONS).items():
        parser.add_argument(
            option,
            dest=field,
            type=kind,
            default=argparse.SUPPRESS,
            metavar=_METAVARS.get(field, _METAVARS_BY_TYPE[kind]),
            help=f"{text}{_defaults(field)}",
        )


def run(args: argparse.Namespace) -> int:
    """Train and print the checkpoint's path.

    Returns:
        0.
    """
    # Here, so that the help needs no torch.
    from cv_patchpose.training.trainer import Trainer

    given, views = _given(args, _OPTIONS), _given(args, _VIEW_OPTIONS)
    for field, target in (("targets", args.target), ("teacher_targets", args.teacher_target)):
        if target:
            given[field] = TARGETS if target == "both" else (target,)
    if args.bfloat16:
        given["bfloat16"] = _BFLOAT16[args.bfloat16]
    if "budget_minutes" in given:
        given.setdefault("budget_keypoints", None)
    base = _base_config(args)
    config = dataclasses.replace(
        base, **given, synthesis=dataclasses.replace(base.synthesis, **views)
    )
    trainer = Trainer(args.images, args.output, config, resume=args.resume)
    with _terminated_as_interrupted():
        try:
            checkpoint = trainer.train()
        except KeyboardInterrupt:
            if trainer.group.leads and trainer.checkpoint_path.exists():
                print(f"{trainer.checkpoint_path}: --resume continues from here", file=sys.stderr)
            raise
    if trainer.group.leads:
        print(checkpoint)
    return 0


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, which batch systems send, do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no other thread may set a handler
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _given(args: argparse.Namespace, options: dict[str, tuple[str, type, str]]) -> dict[str, Any]:
    return {field: getattr(args, field) for field, _, _ in options.values() if field in args}


def _defaults(field: str) -> str:
    """Say an option's usual default, and that of the recipes that differ."""
    configs = {name: config for known in RECIPES.values() for name, config in known.items()}
    values = {
        name: getattr(config, field, getattr(config.synthesis, field, None))
        for name, config in configs.items()
    }
    if None in values.values():
        return ""
    usual = Counter(values.values()).most_common(1)[0][0]
    others = "".join(f"; {name}: {v}" for name, v in values.items() if v != usual)
    return f" ({usual}{others})"


def _base_config(args: argparse.Namespace) -> TrainConfig:
    """Return the options of the run to resume, or those of the recipe."""
    if not args.resume:
        return recipe(args.network, args.recipe)
    for name in ("network", "recipe"):
        if getattr(args, name):
            raise ValueError(f"{name}: expected none with --resume, got {getattr(args, name)!r}")
    from cv_patchpose.training.checkpoint import CHECKPOINT_NAME, saved_config

    if not (args.output / CHECKPOINT_NAME).is_file():
        raise ValueError(
            f"--resume: expected a run with a {CHECKPOINT_NAME}, got {args.output}, where nothing "
            "was saved; start without --resume"
        )
    with naming({"checkpoint": "--resume"}):
        return saved_config(args.output)
