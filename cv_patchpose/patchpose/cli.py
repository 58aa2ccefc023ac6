"""The generate command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cv_patchpose.patchpose.generator import Report, generate
from cv_patchpose.patchpose.options import KINDS, PATCH_SIZES, PatchPoseConfig
from cv_patchpose.patchpose.plan import LAYOUTS, SPLITS

# option: (field of PatchPoseConfig, type, help)
_OPTIONS: dict[str, tuple[str, type, str]] = {
    "--keypoints": ("keypoints_per_image", int, "most keypoints of an image"),
    "--min-content": ("min_content", float, "grey levels by which a keypoint's patches differ"),
    "--border-px": ("border_px", int, "least distance of keypoints from the border"),
    "--long-side-px": ("long_side_px", int, "larger images are shrunk to this"),
    "--held-out": ("held_out", float, "share of each of val and test"),
    "--images-per-shard": ("images_per_shard", int, "images in one file"),
    "--seed": ("seed", int, "of everything random"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; options left out keep the configuration's default."""
    standard = PatchPoseConfig()
    parser.add_argument(
        "images", type=Path, metavar="IMAGES", help="folder of images, or SPair-71k"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DATASET", help="folder to write"
    )
    parser.add_argument(
        "--kind",
        choices=KINDS,
        required=True,
        help="A: bin centres; B: random rotations and scales",
    )
    parser.add_argument(
        "--patch-size", type=int, choices=PATCH_SIZES, default=standard.patch_size,
        help=f"pixels ({standard.patch_size})",
    )  # fmt: skip
    for option, (field, kind, text) in _OPTIONS.items():
        value = getattr(standard, field)
        default = "twice ceil(1.415 x patch size)" if value is None else value
        parser.add_argument(
            option, dest=field, type=kind, default=value, metavar="N" if kind is int else "F",
            help=f"{text} ({default})",
        )  # fmt: skip
    parser.add_argument("--layout", choices=LAYOUTS, default="auto", help="of IMAGES (auto)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1)")
    parser.add_argument(
        "--part", type=_part, default=(1, 1), metavar="I/N",
        help="write every N-th shard from the I-th; others run elsewhere on the same folder",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Write a dataset and print what it holds.

    Args:
        args: Parsed by :func:`add_arguments`.

    Returns:
        0.

    Raises:
        ValueError: See :func:`cv_patchpose.patchpose.generator.generate`.
        OSError: A file that cannot be written.
    """
    fields = ["kind", "patch_size", *(field for field, _, _ in _OPTIONS.values())]
    config = PatchPoseConfig(**{field: getattr(args, field) for field in fields})
    report = generate(
        args.images, args.output, config, layout=args.layout, jobs=args.jobs, part=args.part
    )
    print(f"{args.output}: {_describe(report)}")
    for reason, count in sorted(report.skipped.items()):
        print(f"{count} images skipped: {reason}{_advice(reason)}")
    if report.missing:
        print(f"{report.missing} of {report.shards} shards are left to other parts")
    for split in SPLITS:
        if not (report.missing or report.pairs[split]):
            print(
                f"warning: no pairs in {split}: its images were all skipped; a larger --held-out "
                "or more images help",
                file=sys.stderr,
            )
    return 0


def _advice(reason: str) -> str:
    return "; --border-px N allows less" if "margin" in reason else ""


def _describe(report: Report) -> str:
    total = report.pairs.total()
    by_split = ", ".join(f"{report.pairs[split]:,} {split}" for split in SPLITS)
    return (
        f"{total:,} pairs ({by_split}) of {report.keypoints:,} keypoints; "
        f"{report.dropped:,} candidates had too little content"
    )


def _part(text: str) -> tuple[int, int]:
    first, _, count = text.partition("/")
    try:
        return int(first), int(count)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected I/N, such as 1/4, got {text!r}") from None
