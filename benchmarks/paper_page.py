"""The page docs/paper.md, made from what paper.py measured."""

from __future__ import annotations

from pathlib import Path

ORIENTATION = ("orientation_within_5_deg", "orientation_within_10_deg")
SCALE = ("scale_within_1_6_octave", "scale_within_1_3_octave")
# Lee, Jeong, Cho, BMVC 2021: tables 1 (PatchPose, HPatches), 2 and 3.
PAPER = {
    "PatchPose": "80.5 97.9 | 57.9 78.2",
    "HPatches": "52.0 69.2 | 29.0 53.0",
    "recall": ("97.9 99.4 99.9 100.0", "78.2 84.8 88.8 93.4"),
    "bins": {
        (9, 7): "26.5 26.5 | 22.5 22.5",
        (18, 9): "48.7 48.7 | 37.3 37.3",
        (36, 13): "80.5 97.9 | 57.9 78.2",
        (72, 17): "9.7 15.4 | 19.7 35.6",
    },
}
TITLES = {
    "identity": "identity: nothing changes",
    "sift-at-point": "SIFT's rules at the point",
    "orinet": "OriNet",
    "affnet": "AffNet",
    "polar": "**ours, `polar`, as shipped**",
    "paper": "ResNet-18 pair, the paper's recipe",
    "pairs": "ResNet-18 pair, recipe `pairs`",
    "views": "ResNet-18 pair, recipe `views`",
}
MAIN = tuple(TITLES)

INTRODUCTION = """\
# The paper, reproduced

Made by `benchmarks/paper.py`, from training to this page; every figure is in
[results/paper.json](results/paper.json) with the commands. The method is that of Lee, Jeong and
Cho, *Self-Supervised Learning of Image Scale and Orientation* (BMVC 2021): one ResNet-18 with
global max pooling and a perceptron of four layers for each histogram, trained by histogram
alignment.

**The budget is far below the paper's**: {pair:,} pairs for each of the paper's two networks, on
processor cores, where the paper goes through 3.9 million pairs up to 250 times on a GPU.
Differences between rows trained here count; the distance of the ResNet-18 rows to the paper's
figures is mostly that of the budgets. `polar` was trained longer, see
[its card](../models/polar.md).

Percent of pairs within 5 and 10 degrees, and within 1/6 and 1/3 octave. Peaks are read between
bins unless "fullest bin" is said.
"""


def format_page(content: dict) -> str:
    """Write the page.

    Args:
        content: of results/paper.json.
    """
    results = {
        title: {_name(row): row for row in outcome["rows"]}
        for title, outcome in content["results"].items()
    }
    pair = next(run["keypoints"] for run in content["runs"].values() if run["group"] == "pair")
    parts = [INTRODUCTION.format(pair=pair)]
    parts += [_table_1(results), _table_2(results), _table_3(content, results)]
    parts += [_losses(content, results), _leak(results), _runs(content)]
    environment = content["environment"]
    parts.append(
        f"{environment['cpu']}, {environment['cpus']} cores; PyTorch {environment.get('torch')}, "
        f"OpenCV {environment['opencv']}, commit {environment['commit']}.\n"
    )
    return "\n".join(parts)


def _name(row: dict) -> str:
    return Path(row["method"]).name.removesuffix(".onnx")


def _cells(row: dict, suffix: str = "") -> str:
    return " | ".join(
        " ".join(_number(row.get(name + suffix)) for name in names)
        for names in (ORIENTATION, SCALE)
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _mean(rows: list[dict]) -> dict:
    """Average two results of one method, kinds A and B."""
    keys = [k for k, v in rows[0].items() if isinstance(v, float) and rows[1].get(k) is not None]
    return {key: sum(row[key] for row in rows) / len(rows) for key in keys}


def _both(results: dict, name: str) -> dict:
    return _mean([results[f"patchpose-{kind}"][name] for kind in "AB"])


def _table(head: str, lines: list[str]) -> str:
    rule = "|---" * head.count("|") + "|"
    return "\n".join([f"| {head} |", rule, *(f"| {line} |" for line in lines)]) + "\n"


def _table_1(results: dict) -> str:
    columns = "orientation | scale"
    left = [f"{TITLES[name]} | {_cells(_both(results, name))}" for name in MAIN]
    argmax = [
        f"{TITLES[name]}, fullest bin | {_cells(_both(results, name), '_argmax')}"
        for name in ("polar", "paper", "pairs", "views")
    ]
    left.append(f"the paper, fullest bin, pairs shuffled | {PAPER['PatchPose']}")
    right = [
        f"{TITLES[name]} | {_cells(results['hpatches-global'][name])} "
        f"| {_cells(results['hpatches-local'][name])}"
        for name in MAIN
    ]
    right.append(f"the paper, eq. 10 | {PAPER['HPatches']} | - | -")
    return "\n".join(
        [
            "## Table 1\n",
            "PatchPose A and B, mean of both, of photographs that nothing here was trained on.\n",
            _table(f"method | {columns}", left + argmax),
            "Corners of five viewpoint sequences of HPatches, windows of 96 pixels: truth by the "
            "paper's eq. 10 (one change for the pair of images), and by the homography's "
            "derivative at the point. Most of these pairs hardly turn or zoom, so that `identity` "
            "is a strong control.\n",
            _table("method | eq. 10: orientation | scale | local: orientation | scale", right),
        ]
    )


def _table_2(results: dict) -> str:
    lines = []
    for name in ("polar", "paper", "pairs", "views"):
        row = _both(results, name)
        recall = [
            " ".join(_number(row.get(f"recall_{metric}@{k}")) for k in (1, 2, 3, 4))
            for metric in ("orientation_10_deg", "scale_1_3_octave")
        ]
        lines.append(f"{TITLES[name]} | {' | '.join(recall)}")
    lines.append(f"the paper | {' | '.join(PAPER['recall'])}")
    return "\n".join(
        [
            "## Table 2\n",
            "Recall with the first 1, 2, 3, 4 candidates.\n",
            _table("method | orientation, 10 degrees | scale, 1/3 octave", lines),
        ]
    )


def _table_3(content: dict, results: dict) -> str:
    lines = [
        f"{o} and {s} | {_cells(_both(results, f'resnet18-{o}-{s}'))} "
        f"| {_cells(_both(results, f'polar-{o}-{s}'))} | {paper}"
        for (o, s), paper in PAPER["bins"].items()
    ]
    budgets = {r["group"]: r["keypoints"] for r in content["runs"].values()}
    return "\n".join(
        [
            "## Table 3\n",
            f"Numbers of bins, our loss, {budgets['joint']:,} pairs for ResNet-18 (both networks) "
            f"and {budgets['polar']:,} keypoints in four views for polar networks.\n",
            _table(
                "bins | ResNet-18: orientation | scale | polar: orientation | scale "
                "| the paper: orientation | scale",
                lines,
            ),
        ]
    )


def _losses(content: dict, results: dict) -> str:
    lines = []
    for name, network, views, loss in (
        ("resnet18-36-13", "ResNet-18", "PatchPose pairs", "overlap"),
        ("resnet18-alignment", "ResNet-18", "PatchPose pairs", "the paper's"),
        ("resnet18-views", "ResNet-18", "spoilt views", "overlap"),
        ("resnet18-views-alignment", "ResNet-18", "spoilt views", "the paper's"),
        ("polar-clean", "polar", "clean views", "overlap"),
        ("polar-clean-alignment", "polar", "clean views", "the paper's"),
        ("polar-36-13", "polar", "spoilt views", "overlap"),
        ("polar-alignment", "polar", "spoilt views", "the paper's"),
    ):
        cells = f"{_cells(_both(results, name))} | {_cells(results['pairs'][name])}"
        lines.append(f"{network} | {views} | {loss} | {cells}")
    head = "network | trained on | loss | PatchPose: orientation | scale "
    return "\n".join(
        [
            "## Losses, and clean against spoilt training\n",
            "By the budgets of table 3. Real pairs: all scenes, windows of 96 pixels, local "
            "truth.\n",
            _table(f"{head}| real pairs: orientation | scale", lines),
        ]
    )


def _leak(results: dict) -> str:
    lines = []
    for rule, title in (("image", "by image"), ("pairs", "shuffled pairs")):
        row = _mean([results[f"leak-{rule}-{kind}"][f"leak-{rule}"] for kind in "AB"])
        lines.append(f"{title} | {_cells(row)}")
    return "\n".join(
        [
            "## What shuffled pairs leak\n",
            "The released code cuts train and test from one shuffled list of pairs, so that test "
            "pairs show keypoints that were trained on. The same network, budget and 200 "
            "photographs, divided either way:\n",
            _table("split | orientation | scale", lines),
        ]
    )


def _runs(content: dict) -> str:
    lines = [
        f"{name} | `{run['options']}` | {run['keypoints']:,} | {run['minutes']:.0f}"
        for name, run in content["runs"].items()
    ]
    pictures = [
        f"![Training of {name}](curves/{name}.png)"
        for name, run in content["runs"].items()
        if run["group"] == "pair"
    ]
    return "\n".join(
        [
            "## Runs\n",
            _table("run | `cv-patchpose train` | pairs or keypoints seen | minutes", lines),
            "\n".join(pictures) + "\n",
        ]
    )
