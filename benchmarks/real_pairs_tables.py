"""The tables of docs/benchmarks.md: what real_pairs.py measures, and what they show of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

METHODS = (
    *("detector", "detector-all", "upright", "orinet", "orinet+affnet", "affnet"),
    *("polar", "polar:2", "polar-large", "resnet18"),
)
QUICK_METHODS = ("detector", "detector-all", "upright", "orinet", "polar", "polar:2")
# Of the tables that take longest: without the slowest methods. The others are compared with the
# first, pair by pair.
FEWER_METHODS = (
    *("polar", "detector", "detector-all", "upright", "orinet", "orinet+affnet", "polar:2"),
)
JUDGED = "polar"  # the one method that verdicts are about, however well variants of it do
OURS = (JUDGED, "polar:2", "polar-large", "polar@angle")  # resnet18 is the paper's network
MATCHING = {
    "mma_1": ("MMA@1", ".3f"),
    "mma_3": ("@3", ".3f"),
    "mma_5": ("@5", ".3f"),
    "mma_10": ("@10", ".3f"),
    "matches": ("matches", ".0f"),
    "correct_matches": ("correct", ".0f"),
    "homography_within_1_px": ("homography within 1 px, %", ".1f"),
    "homography_within_3_px": ("3 px", ".1f"),
    "homography_within_5_px": ("5 px", ".1f"),
    "pose_ms": ("pose, ms", ".0f"),
}
TWO_VIEW = {
    "maa_5": ("mAA(5)", ".3f"),
    "maa_10": ("mAA(10)", ".3f"),
    "gain": (f"minus that of `{JUDGED}`, ± standard error", ""),
    "maa_10_easy": ("easy", ".3f"),
    "maa_10_medium": ("medium", ".3f"),
    "maa_10_hard": ("hard", ".3f"),
    "inliers": ("inliers", ".0f"),
    "pose_ms": ("pose, ms", ".0f"),
}
# What is in the summary: column, number of the table, rotated, and its accuracy.
SUMMARY = (
    ("planar, RootSIFT: correct", 0, False, "correct_matches"),
    ("rotated", 0, True, "correct_matches"),
    ("planar, HardTFeat: correct", 1, False, "correct_matches"),
    ("rotated", 1, True, "correct_matches"),
    ("two views, AdaLAM: mAA(10)", 2, False, "maa_10"),
    ("rotated", 2, True, "maa_10"),
    ("pose of an image, ms", 0, True, "pose_ms"),
)
QUICK = (0, 1, 4)  # tables of a quick run, rotated
DRAWN = ((0, True), (2, True))  # tables with pictures


@dataclass(frozen=True)
class Table:
    """One call of the benchmark.

    Attributes:
        title: heading.
        benchmark: its name.
        options: of the command.
        rotation: the option that rotates image 2; without it, as photographed.
        columns: of the result: title and format.
        methods: that are compared.
    """

    title: str
    benchmark: str
    options: str
    rotation: str
    columns: dict[str, tuple[str, str]]
    methods: Sequence[str] = METHODS

    @property
    def planar(self) -> bool:
        """Whether its scenes are planes."""
        return self.benchmark == "homography-matching"

    def name(self, rotated: bool) -> str:
        """Name the result's file."""
        parts = [self.benchmark, *self.options.replace("--", "").split()]
        return "-".join([*parts, "turned"] if rotated else parts)

    def heading(self, rotated: bool) -> str:
        """Name the table on the page."""
        return f"{self.title}, {'rotated' if rotated else 'as photographed'}"

    def words(
        self, rotated: bool, root: str, methods: Sequence[str], weights: str, jobs: int
    ) -> list[str]:
        """Write the command behind `cv-patchpose`, but for the output."""
        options = self.options.split() + (self.rotation.split() if rotated else [])
        return [
            *("evaluate", self.benchmark, root, "--methods", ",".join(methods), *options),
            *("--peer-weights", weights, "--jobs", str(jobs)),
        ]


def tables() -> list[Table]:
    """List what is measured."""
    planar = [
        Table(
            f"Planar scenes, SIFT keypoints, {title}",
            "homography-matching",
            f"--descriptor {descriptor} --budget keypoints",
            "--rotate 60",
            MATCHING,
        )
        for title, descriptor in (("RootSIFT", "sift"), ("HardTFeat", "hardtfeat"))
    ]
    two_view = [
        Table(
            f"Two views, {title}",
            "two-view",
            f"--max-keypoints {options}",
            "--random-turn",
            TWO_VIEW,
            methods,
        )
        for title, options, methods in (
            ("2,048 SIFT keypoints, AdaLAM", "2048 --matcher adalam", FEWER_METHODS),
            (
                "2,048 SIFT keypoints, mutual nearest neighbours",
                "2048 --matcher mutual",
                FEWER_METHODS,
            ),
            ("1,024 SIFT keypoints, AdaLAM", "1024 --matcher adalam", FEWER_METHODS),
            (
                "2,048 Key.Net keypoints, AdaLAM",
                "2048 --matcher adalam --detector keynet",
                [name for name in FEWER_METHODS if name != "detector-all"],  # it has one angle
            ),
        )
    ]
    return planar + two_view
