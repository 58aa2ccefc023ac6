"""The command cv-patchpose, one thin function per verb."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cv2

from cv_patchpose import __version__
from cv_patchpose.assigner import PatchPoseAssigner
from cv_patchpose.descriptors import DESCRIPTORS, VARIANTS
from cv_patchpose.detectors import DETECTORS, detect
from cv_patchpose.drawing import draw_matches_before_after, draw_poses
from cv_patchpose.errors import ModelError, naming
from cv_patchpose.estimator import BUNDLED_MODELS, PoseEstimator, model_path
from cv_patchpose.files import (
    COLUMNS,
    PICTURE_SUFFIXES,
    TABLE_SUFFIXES,
    check_output,
    read_image,
    write_file,
    write_keypoints,
    write_picture,
)
from cv_patchpose.matching import GEOMETRIES, match_keypoints

# What functions call arguments of another name.
_INNER_NAMES = {
    "max_points": "--max-keypoints",
    "scale_prior_octaves": "--scale-prior",
    "checkpoint": "RUN_OR_CHECKPOINT",
    "run": "--output",
}
_IMAGE_HELP = "image; one of other than 8 bits is stretched from its least value to its largest"
_LEAST_ROOM = 20  # columns of a terminal that text is still wrapped in
_FAILURES = (ValueError, TypeError, OSError, ImportError, ModelError, cv2.error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments behind the command's name; None: those of the process.

    Returns:
        0; 2 after an error, which has been printed; 130 after Ctrl-C; 141 when whoever read the
        output has closed it, as `head` does.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A terminal that cannot show all letters of a file's name is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            args = _build_parser(arguments).parse_args(arguments)
            with naming(_INNER_NAMES | args.names):
                return _VERBS[args.verb].run(args) or 0
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except _FAILURES as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            return 141
        print(f"cv-patchpose: error: {_describe(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cv-patchpose: interrupted", file=sys.stderr)
        return 130


def _reader_has_gone() -> bool:
    """Tell whether nobody reads what is printed any more; if so, drop what is left of it."""
    try:
        print(flush=True)  # only by printing can it be told
    except BrokenPipeError:
        # It must go somewhere, or the interpreter complains at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


class _Verb(NamedTuple):
    help: str
    declare: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


def _build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Declare all verbs, but arguments only of those called: some need packages of an extra."""
    parser = argparse.ArgumentParser(
        prog="cv-patchpose", description="Learned scale and orientation for OpenCV keypoints."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in _VERBS.items():
        verb_parser = verbs.add_parser(name, help=verb.help, description=verb.help)
        if name in arguments:
            for kind in (Path, str, None):  # None: of arguments that state no type
                verb_parser.register("type", kind, _not_empty(kind or str))
            verb.declare(verb_parser)
            verb_parser.set_defaults(names=_names_as_typed(verb_parser))
    return parser


def _not_empty(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Refuse what a variable leaves that is not set; as a path it would be the current folder."""

    def convert(text: str) -> Any:
        if not text:
            raise argparse.ArgumentTypeError("expected a name or a path, got ''")
        return kind(text)

    return convert


def _names_as_typed(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Map the name that an argument has in our functions to the one that the user types."""
    return {
        action.dest: action.option_strings[-1] if action.option_strings else str(action.metavar)
        for action in parser._actions  # argparse does not tell them otherwise
    }


def _declare_posing(parser: argparse.ArgumentParser, *, top_k: int) -> None:
    names = ", ".join(BUNDLED_MODELS)
    parser.add_argument("--model", default="polar", help=f"{names} or an ONNX file (polar)")
    parser.add_argument(
        "--top-k", type=int, default=top_k, metavar="N", help=f"most poses per keypoint ({top_k})"
    )
    parser.add_argument(
        "--max-keypoints", type=int, default=2000, metavar="N", help="strongest kept (2000)"
    )


def _declare_assign(parser: argparse.ArgumentParser) -> None:
    columns = ", ".join(COLUMNS)
    parser.add_argument("image", type=Path, metavar="IMAGE", help=_IMAGE_HELP)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help=f".npz or .csv with columns {columns}"
    )
    parser.add_argument(
        "--detector", choices=DETECTORS, default="sift", help="what finds the keypoints (sift)"
    )
    parser.add_argument(
        "--descriptor",
        choices=(*DESCRIPTORS, *VARIANTS),
        default="sift",
        help="what reads the fields (sift)",
    )
    pictures = ", ".join(PICTURE_SUFFIXES)
    parser.add_argument("--picture", type=Path, help=f"also draw the poses: {pictures}")
    _declare_posing(parser, top_k=1)


def _run_assign(args: argparse.Namespace) -> None:
    check_output(args.output, TABLE_SUFFIXES)
    if args.picture:
        check_output(args.picture, PICTURE_SUFFIXES, inputs=(args.image,))
    image = read_image(args.image)
    assigner = PatchPoseAssigner(
        args.model, top_k=args.top_k, descriptor=args.descriptor, detector=args.detector
    )
    with warnings.catch_warnings(record=True) as told, naming({"image": str(args.image)}):
        warnings.simplefilter("always", UserWarning)
        keypoints = assigner.assign(image, detect(image, args.detector, args.max_keypoints))
    for warning in told:
        print(f"warning: {warning.message}", file=sys.stderr)
    write_keypoints(args.output, keypoints)
    print(f"{args.output}: {len(keypoints)} keypoints")
    if args.picture:
        write_picture(args.picture, draw_poses(image, keypoints))
        print(args.picture)


def _declare_match(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image1", type=Path, metavar="IMAGE1", help=_IMAGE_HELP)
    parser.add_argument("image2", type=Path, metavar="IMAGE2", help="another, of the same scene")
    pictures = ", ".join(PICTURE_SUFFIXES)
    parser.add_argument("-o", "--output", type=Path, required=True, help=f"picture: {pictures}")
    parser.add_argument(
        "--geometry",
        choices=GEOMETRIES,
        default="homography",
        help="what correct matches must agree with: homography (default) for planes and turning "
        "cameras, fundamental for other scenes",
    )
    # SIFT comes with all its orientations: two poses are the like of that.
    _declare_posing(parser, top_k=2)


def _run_match(args: argparse.Namespace) -> None:
    check_output(args.output, PICTURE_SUFFIXES, inputs=(args.image1, args.image2))
    image1, image2 = read_image(args.image1), read_image(args.image2)
    assigner = PatchPoseAssigner(args.model, top_k=args.top_k)
    with naming({"image": str(args.image1)}):
        own1 = detect(image1, "sift", args.max_keypoints)
    with naming({"image": str(args.image2)}):
        own2 = detect(image2, "sift", args.max_keypoints)
    before = match_keypoints(image1, own1, image2, own2, geometry=args.geometry)
    ours1, ours2 = assigner.assign(image1, own1), assigner.assign(image2, own2)
    after = match_keypoints(image1, ours1, image2, ours2, geometry=args.geometry)
    titles = ("SIFT's own pose", f"Pose by cv_patchpose ({assigner.estimator.metadata.name})")
    picture = draw_matches_before_after(image1, image2, before, after, titles=titles)
    write_picture(args.output, picture)
    rows = [
        (title, " + ".join(map(str, found.keypoints)), str(len(found)), str(found.inlier.sum()))
        for title, found in zip(titles, (before, after), strict=True)
    ]
    _print_table(("pose", "keypoints", "matches", "inliers"), *rows)
    print(args.output)


def _declare_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=Path,
        nargs="*",
        metavar="RUN_OR_CHECKPOINT",
        help="of one run; of two of resnet18, for orientation and scale; or of several runs that "
        "began with the same weights, which are averaged",
    )
    parser.add_argument("--model", choices=BUNDLED_MODELS, help="copy a bundled model instead")
    parser.add_argument("-o", "--output", type=Path, required=True, help="ONNX file, or a folder")
    parser.add_argument(
        "--magnification",
        type=float,
        metavar="F",
        help="support window over size (that of the training)",
    )
    parser.add_argument("--int8", action="store_true", help="int8 weights: a quarter of the size")
    parser.add_argument(
        "--quantize-on",
        type=Path,
        metavar="PHOTOGRAPHS",
        help="int8 convolutions of a rings network, with ranges calibrated on these photographs",
    )


def _run_export(args: argparse.Namespace) -> None:
    if bool(args.source) == (args.model is not None):
        raise ValueError("export: expected either RUN_OR_CHECKPOINT or --model NAME")
    if args.model is None:
        check_output(args.output, (".onnx",))
        export = _import_extra("training.export", "train").export_checkpoint
        export(
            args.source,
            args.output,
            magnification=args.magnification,
            int8=args.int8,
            quantize_on=args.quantize_on,
        )
        print(args.output)
        return
    changes = {"--magnification": args.magnification, "--quantize-on": args.quantize_on}
    changes["--int8"] = args.int8 or None
    given = [option for option, value in changes.items() if value is not None]
    if given:
        raise ValueError(f"{given[0]}: expected none with --model, which is copied as it is")
    source = model_path(args.model)
    target: Path = args.output
    if target.suffix.lower() != ".onnx":
        if target.is_file():
            raise ValueError(f"{target}: expected a name that ends in .onnx, or a folder")
        target.mkdir(parents=True, exist_ok=True)
        target = target / source.name
    check_output(target, (".onnx",))
    write_file(target, source.read_bytes())
    print(target)


def _declare_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", default="polar", metavar="MODEL", help="name or ONNX file (polar)"
    )
    parser.add_argument(
        "--full", action="store_true", help="tell everything about the training, with its options"
    )


def _run_info(args: argparse.Namespace) -> None:
    estimator = PoseEstimator(args.model)
    about = dataclasses.asdict(estimator.metadata)
    training = about.pop("training")
    if not args.full:
        training = _shortened(training)
    _print_table(
        ("cv-patchpose", __version__),
        ("OpenCV", cv2.__version__),
        ("engine", estimator.engine),
        ("providers", ", ".join(estimator.providers)),
        ("file", str(estimator.path)),
        *((name, _plain(value)) for name, value in about.items()),
        *((f"training: {name}", _plain(value)) for name, value in training.items()),
    )


def _shortened(training: dict[str, Any]) -> dict[str, str]:
    """Tell what a model was trained on and for how long, each run where several were joined."""
    of_one_run = ("data", "network", "recipe")
    joined = [v for k, v in training.items() if isinstance(v, dict) and k not in of_one_run]
    found = {
        name: [_plain(run[name]) for run in (training, *joined) if name in run]
        for name in ("data", "commit", "keypoints", "minutes")
    }
    return {name: "; ".join(values) for name, values in found.items() if values}


def _verb_of_extra(text: str, module: str, extra: str) -> _Verb:
    """Make a verb of a module that has `add_arguments` and `run`."""

    def run(args: argparse.Namespace) -> int:
        with _needing(extra):
            return int(import_module(f"cv_patchpose.{module}").run(args))

    return _Verb(text, lambda parser: _import_extra(module, extra).add_arguments(parser), run)


_VERBS = {
    "assign": _Verb("write posed keypoints of an image", _declare_assign, _run_assign),
    "match": _Verb(
        "match two images with the detector's pose and with ours", _declare_match, _run_match
    ),
    "export": _Verb("write an ONNX model", _declare_export, _run_export),
    "generate": _verb_of_extra("make a PatchPose dataset", "patchpose.cli", "train"),
    "train": _verb_of_extra("train a model on a folder of photographs", "training.cli", "train"),
    "evaluate": _verb_of_extra("run a benchmark", "evaluation.cli", "eval"),
    "info": _Verb("describe the installation and a model", _declare_info, _run_info),
}


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        items = {k: f"({_plain(v)})" if isinstance(v, dict) else v for k, v in value.items()}
        return ", ".join(f"{name} {item}" for name, item in items.items())
    return str(value)


def _print_table(*rows: Sequence[str]) -> None:
    """Print rows; in a terminal, the last column goes on in further lines where it is long."""
    *widths, _ = (max(map(len, column)) + 2 for column in zip(*rows, strict=True))
    indent = sum(widths)
    room = shutil.get_terminal_size().columns - indent if sys.stdout.isatty() else 0
    for *cells, last in rows:
        lines = [last]
        if room > _LEAST_ROOM:
            lines = textwrap.wrap(last, room, break_long_words=False, break_on_hyphens=False)
        start = "".join(text.ljust(width) for text, width in zip(cells, widths, strict=True))
        print((start + f"\n{' ' * indent}".join(lines)).rstrip())


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError):
        return str(error)  # our own, whose lines are meant
    return " ".join(str(error).split())


@contextlib.contextmanager
def _needing(extra: str) -> Iterator[None]:
    """Name the extra that a missing package belongs to."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("cv_patchpose"):
            raise
        raise ImportError(
            f"{error.name}: expected an installed package, got none; "
            f"pip install 'cv-patchpose[{extra}]'"
        ) from error


def _import_extra(module: str, extra: str) -> ModuleType:
    """Import a module of ours that needs packages of an extra."""
    with _needing(extra):
        return import_module(f"cv_patchpose.{module}")


if __name__ == "__main__":
    sys.exit(main())
