"""The evaluate command."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from cv_patchpose.detectors import detector_traits
from cv_patchpose.evaluation import (
    homography_matching,
    homography_pose,
    patch_pairs,
    patchpose,
    two_view,
)
from cv_patchpose.evaluation.description import DESCRIPTORS
from cv_patchpose.evaluation.detection import DETECTORS, PEER_DETECTORS
from cv_patchpose.evaluation.matchers import MATCHERS
from cv_patchpose.evaluation.methods import METHODS_HELP
from cv_patchpose.evaluation.pipeline import PipelineOptions
from cv_patchpose.evaluation.report import (
    STAGES_TITLE,
    describe_environment,
    format_json,
    format_table,
    stage_rows,
    strip_folders,
)
from cv_patchpose.evaluation.report_folder import PAGE, prepare_report, write_report
from cv_patchpose.evaluation.runner import require_choice, threads_per_process
from cv_patchpose.files import check_output, write_file
from cv_patchpose.patchpose.plan import SPLIT_RULES, SPLITS
from cv_patchpose.patchpose.shards import is_dataset

_BENCHMARKS: dict[str, tuple[ModuleType, type[Any]]] = {
    "homography-matching": (homography_matching, homography_matching.MatchingProtocol),
    "homography-pose": (homography_pose, homography_pose.PoseProtocol),
    "patchpose": (patchpose, patchpose.PatchPoseProtocol),
    "two-view": (two_view, two_view.TwoViewProtocol),
}
_ON_DATASETS: dict[str, tuple[ModuleType, type[Any]]] = {
    "patchpose": (patch_pairs, patch_pairs.PatchPairsProtocol),
}
_WITH_ANGLE = [name for name in DETECTORS if detector_traits(name).measures == "pose"]
_CACHE = ".cv-patchpose-cache"
_OPTIONS = {
    field.name
    for _, protocol in (*_BENCHMARKS.values(), *_ON_DATASETS.values())
    for field in dataclasses.fields(protocol)
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; options left out keep the protocol's default."""
    names = ", ".join(_BENCHMARKS)
    parser.add_argument("benchmark", metavar="BENCHMARK", help=f"one of {names}")
    parser.add_argument("root", type=Path, metavar="ROOT",
            help="scenes in HPatches' layout; two-view: folders with cameras.json, or IMC2021's; "
            "patchpose: photographs, or a dataset that generate wrote")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    parser.add_argument("--report", type=Path, metavar="DIR",
            help="folder for report.html with plots and pictures, report.json, rows.csv and "
            "pairs.csv; -o, --report or both")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--cache", type=Path, metavar="DIR",
            help="where results of pairs, detections and poses are kept with their times, so that "
            "an interrupted run continues and adding a method evaluates only that method "
            f"({_CACHE} beside the output)")  # fmt: skip
    parser.add_argument("--no-cache", action="store_true", help="measure everything, keep nothing")
    absent = argparse.SUPPRESS

    options = parser.add_argument_group("all benchmarks").add_argument
    options("--methods", type=_comma_list, required=True, metavar="A,B,...",
            help=f"{'. '.join(METHODS_HELP)}. With detectors that measure no angle (all but "
            f"{', '.join(_WITH_ANGLE)}), detector is SIFT's gradient rule")  # fmt: skip
    options("--peer-weights", type=Path, default=absent, metavar="DIR",
            help="folder with OriNet.pth, AffNet.pth and other published weights")  # fmt: skip
    options("--quick", action="store_true", default=absent, help="a third of the work")

    options = parser.add_argument_group("all but patchpose").add_argument
    options("--max-keypoints", type=int, default=absent,
            help="strongest points kept (1000; two-view: 2048); at most 400 of fixed points, 25 of "
            "the paper's")  # fmt: skip
    options("--rotate", type=float, default=absent, metavar="DEG", help="rotate image 2 clockwise")
    options("--zoom", type=float, default=absent, metavar="F", help="zoom image 2")
    options("--scale-prior", type=_scale_prior, default=absent, metavar="OCTAVES",
            help="standard deviation of the prior on scale, or none, or auto (auto)")  # fmt: skip

    options = parser.add_argument_group("homography-matching and two-view").add_argument
    options("--detector", default=absent,
            help=f"one of {', '.join((*DETECTORS, *PEER_DETECTORS))} (sift)")  # fmt: skip
    options("--descriptor", default=absent,
            help=f"one of {', '.join(DESCRIPTORS)} (sift, as RootSIFT)")  # fmt: skip
    options("--matcher", default=absent,
            help=f"one of {', '.join(MATCHERS)} (mutual; two-view: adalam)")  # fmt: skip
    options("--budget", default=absent,
            help="what --max-keypoints counts: places, or keypoints, of which a place may have "
            "several (places; two-view: keypoints)")  # fmt: skip
    options("--corner-size", type=float, default=absent, metavar="PX",
            help="size of points of detectors without scale (12)")  # fmt: skip

    options = parser.add_argument_group("homography-matching").add_argument
    options("--min-zoom-change", type=float, default=absent, metavar="F",
            help="only pairs zoomed by more than F or less than 1/F")  # fmt: skip

    about = (
        "difficulty is the angle between the optical axes, not that of the baseline: easy below 15 "
        "degrees, hard from 30"
    )
    options = parser.add_argument_group("two-view", about).add_argument
    options("--random-turn", action="store_true", default=absent,
            help="rotate image 2 by an angle drawn for each image")  # fmt: skip

    options = parser.add_argument_group("homography-pose").add_argument
    options("--points", default=absent,
            help="fixed, repeated, or paper: 25 of SIFT and Harris (fixed)")  # fmt: skip
    options("--ground-truth", default=absent, help="local, gradients, global or normalized (local)")
    options("--window-px", type=float, default=absent,
            help="support window of fixed points, also for patchpose (96)")  # fmt: skip
    options("--top-k", type=int, default=absent, metavar="K",
            help="recall with 1 to K candidates, also for patchpose on a dataset (1)")  # fmt: skip

    options = parser.add_argument_group("patchpose").add_argument
    options("--images", type=int, default=absent, help="photographs drawn (20)")
    options("--seed", type=int, default=absent, help="of everything drawn, also for two-view (0)")
    options("--split", default=absent, help=f"of a dataset: {', '.join(SPLITS)} (test)")
    options("--split-by", default=absent,
            help=f"of a dataset: {' or '.join(SPLIT_RULES)} (image)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run a benchmark, write its JSON file and print its table.

    Args:
        args: Parsed by :func:`add_arguments`.

    Returns:
        0, or 1 if some sequences or images could not be measured, or not with every method.

    Raises:
        ValueError: Unknown benchmark, method or option for it, or nothing to measure.
    """
    require_choice("benchmark", args.benchmark, tuple(_BENCHMARKS))
    _check_outputs(args)
    module, protocol_class = _find_benchmark(args)
    protocol = _build_protocol(args, protocol_class)
    cache = _cache_folder(args)
    try:
        outcome = module.run_benchmark(args.root, protocol, args.jobs, cache)
    except KeyboardInterrupt:
        if cache:
            print(f"cv-patchpose: a rerun continues from the results in {cache}", file=sys.stderr)
        raise
    content = {
        "benchmark": args.benchmark,
        "protocol": {"root": args.root.resolve().name, **_effective(protocol)},
        "rows": outcome.rows,
        "failures": {
            name: strip_folders(what, args.root) for name, what in outcome.failures.items()
        },
        "environment": describe_environment()
        | {"jobs": args.jobs, "threads": threads_per_process(args.jobs)},
    }
    if args.output:
        write_file(args.output, format_json(content).encode())
    print(format_table(outcome.rows))
    if stages := stage_rows(outcome.rows):
        print(f"\n{STAGES_TITLE}\n{format_table(stages)}")
    if args.report:
        show = getattr(module, "show_pair", None)
        shown = dataclasses.replace(protocol, methods=tuple(row["method"] for row in outcome.rows))
        write_report(args.report, content, outcome, shown, show)
        print(args.report / PAGE)
    reused, total = outcome.reused
    if reused:
        print(f"{reused} of {total} results are from earlier runs (--no-cache measures again)")
    for name, what in outcome.failures.items():
        print(f"not measured: {name}: {what}", file=sys.stderr)
    return int(bool(outcome.failures))


def _effective(protocol: Any) -> dict[str, Any]:
    """Return a protocol's fields, with the number of points that --quick leaves."""
    fields = dataclasses.asdict(protocol)
    if isinstance(protocol, PipelineOptions):
        fields["max_keypoints"] = protocol.points
        del fields["kept"]  # where files are is nobody else's business
    if isinstance(protocol, homography_pose.PoseProtocol):
        fields["max_keypoints"] = protocol.most_points
    return fields


def _check_outputs(args: argparse.Namespace) -> None:
    if args.output is None and args.report is None:
        raise ValueError("output: expected -o FILE.json, --report DIR or both, got neither")
    if args.cache and args.no_cache:
        raise ValueError("cache: expected --cache DIR or --no-cache, got both")
    cache = _cache_folder(args)
    if cache and cache.exists() and not cache.is_dir():
        raise ValueError(f"--cache: expected a folder, got the file {cache}")
    if args.report:
        prepare_report(args.report)
    if args.output:
        check_output(args.output, (".json",))


def _cache_folder(args: argparse.Namespace) -> Path | None:
    if args.no_cache:
        return None
    beside: Path = args.output.parent if args.output else args.report
    return args.cache or beside / _CACHE


def _find_benchmark(args: argparse.Namespace) -> tuple[ModuleType, type[Any]]:
    if args.benchmark in _ON_DATASETS and is_dataset(args.root):
        return _ON_DATASETS[args.benchmark]
    return _BENCHMARKS[args.benchmark]


def _build_protocol(args: argparse.Namespace, protocol_class: type[Any]) -> Any:
    fields = {field.name for field in dataclasses.fields(protocol_class)}
    given = {name: value for name, value in vars(args).items() if name in _OPTIONS}
    for name in sorted(given.keys() - fields):
        option = "--" + name.replace("_", "-")
        what = f"{args.benchmark} on a dataset" if is_dataset(args.root) else args.benchmark
        owners = [key for key, (_, protocol) in _BENCHMARKS.items() if _has(protocol, name)]
        owners += [f"{k} on a dataset" for k, (_, each) in _ON_DATASETS.items() if _has(each, name)]
        raise ValueError(
            f"{option}: expected an option of {what}, got one of {', '.join(owners)} only"
        )
    return protocol_class(**given)


def _has(protocol_class: type[Any], option: str) -> bool:
    return option in {field.name for field in dataclasses.fields(protocol_class)}


def _comma_list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _scale_prior(text: str) -> float | str | None:
    if text in ("auto", "none"):
        return None if text == "none" else text
    return float(text)
