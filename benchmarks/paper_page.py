"""The page docs/paper.md, made from what paper.py measured of the runs that are there."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from paper_runs import BINS, LOSSES, MODELS, PAIRS, RUNS, SPLIT_RULES

# Figures come in fours: within 5 and 10 degrees, within 1/6 and 1/3 octave.
COLUMNS = (
    *("orientation_within_5_deg", "orientation_within_10_deg"),
    *("scale_within_1_6_octave", "scale_within_1_3_octave"),
)
LIMITS = ("5 degrees", "10 degrees", "1/6 octave", "1/3 octave")
TRUTHS = ("normalized", "global", "local")
RECALL = ("orientation_10_deg", "scale_1_3_octave")
Figures = Sequence[float | None]
Results = dict[str, dict[str, dict[str, Any]]]  # by benchmark, by method

# Lee, Jeong, Cho, BMVC 2021: tables 1, 2 and 3.
PAPER_TABLE_1: dict[str, dict[str, Figures]] = {
    "PatchPose": {
        "sift-at-point": (15.5, 28.7, 28.3, 44.9),
        "orinet": (29.1, 45.0, None, None),
        "affnet": (27.0, 42.0, None, None),
        "paper": (80.5, 97.9, 57.9, 78.2),
    },
    "HPatches": {
        "sift-at-point": (11.2, 25.6, 11.3, 25.3),
        "orinet": (15.8, 29.8, None, None),
        "affnet": (14.0, 23.9, None, None),
        "paper": (52.0, 69.2, 29.0, 53.0),
    },
}
PAPER_RECALL = ((97.9, 99.4, 99.9, 100.0), (78.2, 84.8, 88.8, 93.4))
PAPER_BINS: dict[tuple[int, int], Figures] = {
    (9, 7): (26.5, 26.5, 22.5, 22.5),
    (18, 9): (48.7, 48.7, 37.3, 37.3),
    (36, 13): (80.5, 97.9, 57.9, 78.2),
    (72, 17): (9.7, 15.4, 19.7, 35.6),
}
OURS = {
    "polar": "**ours, `polar`**",
    "polar-large": "ours, `polar-large`",
    "paper": "ResNet-18 pair, the paper's recipe",
    "pairs": "ResNet-18 pair, recipe `pairs`",
    "views": "ResNet-18 pair, recipe `views`",
}
TITLES = {
    "identity": "identity: nothing changes",
    "sift-at-point": "SIFT's rules at the point",
    "orinet": "OriNet",
    "affnet": "AffNet",
    "orinet+affnet": "OriNet after AffNet",
    **OURS,
}

UNLIKE = """\
Ours minus the paper's figure, percentage points. The rows of HPatches are of unlike protocols: here
400 points a pair of five sequences, in windows of 96 pixels; in the paper 25 points a pair of all
viewpoint sequences, in windows of 32."""
INTRODUCTION = """\
Made by `benchmarks/paper_train.py` and `benchmarks/paper.py`, from training to this page; every
figure is in [results/paper.json](results/paper.json) with the commands. The method is that of Lee,
Jeong and Cho, *Self-Supervised Learning of Image Scale and Orientation* (BMVC 2021): one ResNet-18
with global max pooling and a perceptron of four layers for each histogram, trained by histogram
alignment.

**The budget is not the paper's**: {budget}, where the
paper goes up to 250 times through 3.9 million pairs. Rows trained here by one budget compare with
each other; the distance of the ResNet-18 rows to the paper's figures is also that of the budgets.
`polar` is what steps 1 and 2 of its card in commit 3deffe0 give, in float32; `polar-large` is the
two-dimensional network of that name in commit 7f8f63f, its teacher. Neither is what ships today.
Measured between that commit and the one named at the end.

Percent of pairs within 5 and 10 degrees, and within 1/6 and 1/3 octave. Peaks are read between
bins unless "fullest bin" is said. The models are exported with weights of eight bits.
"""


def format_page(content: dict[str, Any]) -> str:
    """Write the page.

    Args:
        content: of results/paper.json.
    """
    runs = content["runs"]
    results = {
        title: {row["method"]: row for row in outcome["rows"]}
        for title, outcome in content["results"].items()
    }
    parts = ["# The paper, reproduced\n"]
    introduction = INTRODUCTION.format(budget=_budget(runs, PAIRS))
    parts += [_text(paragraph) for paragraph in introduction.split("\n\n")]
    measured = {*results["patchpose-A"], *(title.removesuffix("-A") for title in results)}
    if lacking := [name for name in MODELS if name not in measured]:
        parts.append(_text(f"Not there, and left out of the tables: {', '.join(lacking)}."))
    parts += [_table_1(results, content.get("truths_agree")), _unlearned(runs)]
    parts += [_table_2(results), _distance(runs, results)]
    parts += [_table_3(runs, results), _losses(runs, results), _leak(results)]
    parts += [_runs(runs), _curves(runs), _machines(content)]
    return "\n".join(parts)


# Figures


def _read(row: dict[str, Any], suffix: str = "") -> Figures:
    return [row.get(column + suffix) for column in COLUMNS]


def _patchpose(results: Results, name: str, suffix: str = "") -> Figures:
    """Figures on PatchPose, means of kinds A and B."""
    return _mean([_read(results[f"patchpose-{kind}"][name], suffix) for kind in "AB"])


def _mean(several: Sequence[Figures]) -> Figures:
    return [
        None if any(v is None for v in values) else sum(v for v in values if v is not None) / 2
        for values in zip(*several, strict=True)
    ]


def _minus(ours: Figures, other: Figures) -> Figures:
    pairs = zip(ours, other, strict=True)
    return [None if a is None or b is None else a - b for a, b in pairs]


def _cells(figures: Figures) -> str:
    """Write four figures as two cells."""
    written = ["-" if value is None else f"{value:.1f}" for value in figures]
    return f"{' '.join(written[:2])} | {' '.join(written[2:])}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f}"


def _text(paragraph: str) -> str:
    return textwrap.fill(paragraph, 110, break_on_hyphens=False) + "\n"


def _table(head: str, lines: Iterable[str]) -> str:
    rule = "|---" * (head.count("|") + 1) + "|"
    return "\n".join([f"| {head} |", rule, *(f"| {line} |" for line in lines)]) + "\n"


def _points(results: Results, titles: Sequence[str]) -> tuple[int, int]:
    """Most pairs of patches that any method was measured by."""
    rows = [list(results[title].values()) for title in titles]
    orientation, scale = (
        sum(max(row[f"{what}_points"] for row in each) for each in rows)
        for what in ("orientation", "scale")
    )
    return orientation, scale


# What a group of runs saw


def _spread(values: Iterable[float], form: str) -> str:
    written = list(dict.fromkeys(format(value, form) for value in sorted(values)))
    return written[0] if len(written) == 1 else f"{written[0]} to {written[-1]}"


def _budget(runs: dict[str, Any], models: Iterable[str]) -> str:
    """Say what the runs of some models saw, how long and where."""
    chosen = [runs[run] for model in models for run in MODELS[model] if run in runs]
    if not chosen:
        return "none of the runs is there"
    seen = _spread((run["keypoints"] for run in chosen), ",")
    minutes = _spread((run["minutes"] for run in chosen), ".1f")
    devices = " and ".join(dict.fromkeys(run["device"] for run in chosen))
    return f"{seen} pairs or keypoints to each network, {minutes} minutes on {devices}"


# Sections


def _table_1(results: Results, truths_agree: dict[str, Figures] | None) -> str:
    orientation, scale = _points(results, ("patchpose-A", "patchpose-B"))
    nothing: Figures = (None,) * 4
    names = [name for name in TITLES if name in results["patchpose-A"]]
    left, right = [], []
    for name in names:
        of = "paper" if name in PAIRS or name.startswith("polar") else name
        printed = PAPER_TABLE_1["PatchPose"].get(of, nothing)
        rows = {"": _patchpose(results, name)}
        if name in OURS:
            rows[", fullest bin"] = _patchpose(results, name, "_argmax")
        left += [
            f"{TITLES[name]}{how} | {_cells(figures)} | {_cells(printed)}"
            for how, figures in rows.items()
        ]
        printed = PAPER_TABLE_1["HPatches"].get(of, nothing)
        truths = [_read(results[f"hpatches-{truth}"][name]) for truth in TRUTHS]
        right.append(f"{TITLES[name]} | {' | '.join(map(_cells, [printed, *truths]))}")
    if truths_agree:
        truths = [truths_agree.get(truth, [100.0] * 4) for truth in TRUTHS]
        right.append(f"the local truth itself | {' | '.join(map(_cells, [nothing, *truths]))}")
    points = _points(results, ("hpatches-global",))[0]
    paper = "in the paper: orientation | scale"
    return "\n".join(
        [
            "## Table 1\n",
            _text(
                "PatchPose A and B, mean of both, of photographs that nothing here was trained "
                f"on: {orientation:,} pairs for the orientation, {scale:,} for the scale. The "
                "paper's own method stands beside all of ours; it reads the fullest bin, and "
                "tests on pairs from the list that it trains on."
            ),
            _table(f"method | orientation | scale | {paper}", left),
            _text(
                f"Corners of viewpoint sequences of HPatches, {points:,} places, windows of 96 "
                "pixels. The paper's truth, eq. 10, is one change for the pair of images, read "
                "from the first column of the homography. In pixels that is the change at the "
                "image's corner without its perspective part, which patches do not show; the "
                "released code normalises the homography first, which makes it that of the "
                "image's centre. Beside both, the homography's derivative at the point, and in "
                "the last row that derivative on a grid of points, as eq. 10 judges it: nobody "
                "can do better. The paper takes all viewpoint sequences, these are five. Where "
                "scenes hardly turn or zoom, `identity` is a strong control."
            ),
            _table(
                "method | in the paper: orientation | scale | eq. 10, centre: orientation | scale "
                "| eq. 10, pixels: orientation | scale | local: orientation | scale",
                right,
            ),
        ]
    )


def _unlearned(runs: dict[str, Any]) -> str:
    """Name runs of the pairs whose loss stayed where it began."""
    stuck = []
    for name, run in runs.items():
        target = "scale" if name.endswith("-scale") else "orientation"
        losses = [row[f"{target}_loss"] for row in run.get("log", ())]
        if run["group"] == "pair" and losses and max(losses) - min(losses) < 0.05 * max(losses):
            stuck.append(f"{name} at {losses[-1]:.2f} nats")
    if not stuck:
        return ""
    return _text(
        f"**Did not learn in this budget**: {'; '.join(stuck)}. The loss of even histograms over "
        "36 orientations is 2 ln 36 = 7.17 nats: at T = 20 the first logits hardly differ and the "
        "gradient nearly vanishes; of scale, the paper's loss counts the shared bins only and is "
        "least when all is put in a bin outside them. Figures of these rows are those of no "
        "answer. (These runs had a warm-up of 2 % and, on the GPU, bfloat16, which the recipe has "
        "not.)"
    )


def _recall(results: Results, name: str, what: str) -> list[float]:
    rows = [results[f"patchpose-{kind}"][name] for kind in "AB"]
    return [sum(row[f"recall_{what}@{k}"] for row in rows) / 2 for k in (1, 2, 3, 4)]


def _table_2(results: Results) -> str:
    lines = []
    for name in (n for n in OURS if n in results["patchpose-A"]):
        recall = [" ".join(f"{v:.1f}" for v in _recall(results, name, what)) for what in RECALL]
        lines.append(f"{OURS[name]} | {' | '.join(recall)}")
    printed = [" ".join(f"{v:.1f}" for v in values) for values in PAPER_RECALL]
    return "\n".join(
        [
            "## Table 2\n",
            "Recall with the first 1, 2, 3, 4 candidates, PatchPose as above.\n",
            _table(
                "method | orientation, 10 degrees | scale, 1/3 octave",
                [*lines, f"the paper | {' | '.join(printed)}"],
            ),
        ]
    )


def _distance(runs: dict[str, Any], results: Results) -> str:
    names = [name for name in OURS if name in results["patchpose-A"]]
    lines, behind = [], [0] * len(names)

    def add(what: str, limits: Sequence[str], found: Sequence[Figures], printed: Figures) -> None:
        for number, limit in enumerate(limits):
            gaps = [_minus(figures, printed)[number] for figures in found]
            for n, gap in enumerate(gaps):
                behind[n] += gap is not None and gap < 0
            lines.append(f"{what}, {limit} | {' | '.join(map(_signed, gaps))}")

    fullest = [_patchpose(results, name, "_argmax") for name in names]
    add("PatchPose, fullest bin", LIMITS, fullest, PAPER_TABLE_1["PatchPose"]["paper"])
    eq_10 = [_read(results["hpatches-normalized"][name]) for name in names]
    add("HPatches, eq. 10, centre", LIMITS, eq_10, PAPER_TABLE_1["HPatches"]["paper"])
    for what, limit, printed in zip(RECALL, LIMITS[1::2], PAPER_RECALL, strict=True):
        recall = [_recall(results, name, what) for name in names]
        add(f"recall, {limit}", [f"k = {k}" for k in (1, 2, 3, 4)], recall, printed)
    missed = [f"{OURS[name]}: {count}" for name, count in zip(names, behind, strict=True)]
    budgets = [f"{OURS[name]}: {_budget(runs, [name])}" for name in names if name in PAIRS]
    return "\n".join(
        [
            "## How far from the paper\n",
            _text(UNLIKE) + "\n",
            _table(f"figure | {' | '.join(OURS[name] for name in names)}", lines),
            _text(f"Figures not reached, of {len(lines)}: {'; '.join(missed)}."),
            _text(f"Budgets: {'; '.join(budgets) or 'none'}."),
        ]
    )


def _table_3(runs: dict[str, Any], results: Results) -> str:
    measured = results["patchpose-A"]
    networks = {"ResNet-18": "resnet18", "polar": "polar"}
    found = {
        title: {(o, s): f"{name}-{o}-{s}" for o, s in BINS if f"{name}-{o}-{s}" in measured}
        for title, name in networks.items()
    }
    figures = {
        title: {bins: _patchpose(results, name) for bins, name in names.items()}
        for title, names in found.items()
    }
    lines = []
    for bins in BINS:
        cells = [_cells(figures[title].get(bins, (None,) * 4)) for title in networks]
        lines.append(f"{bins[0]} and {bins[1]} | {' | '.join(cells)} | {_cells(PAPER_BINS[bins])}")
    budgets = [f"{title}: {_budget(runs, names.values())}" for title, names in found.items()]
    head = " | ".join(f"{title}: orientation | scale" for title in (*networks, "the paper"))
    return "\n".join(
        [
            "## Table 3\n",
            _text(
                f"Numbers of bins, PatchPose as above, trained by our loss. {'; '.join(budgets)}."
            ),
            _table(f"bins | {head}", lines),
            _finding(figures, _patchpose(results, "identity")),
        ]
    )


def _finding(figures: dict[str, dict[tuple[int, int], Figures]], identity: Figures) -> str:
    """Answer whether too many bins make training fail, by the fall of the last row."""
    (before, after), wide = BINS[-2:], {"orientation": 1, "scale": 3}
    falls, answers = [], []
    for title, table in {"the paper": PAPER_BINS, **figures}.items():
        if before not in table or after not in table:
            continue
        for number, (what, index) in enumerate(wide.items()):
            one, other = table[before][index] or 0.0, table[after][index] or 0.0
            falls.append(
                f"{title}, {what}, {before[number]} to {after[number]} bins: "
                f"{one:.1f} to {other:.1f}"
            )
            if title != "the paper":
                verdict = "yes" if other < one / 2 else "no"
                answers.append(f"{title}, {what}: {verdict}")
    return _text(
        f"**Do too many bins make training fail?** Within the wider limits, {'; '.join(falls)}. "
        f"`identity` has {identity[1]:.1f} and {identity[3]:.1f}. "
        "In the paper more than half is lost. More than half lost here: "
        f"{'; '.join(answers) or 'not measured'}."
    )


def _losses(runs: dict[str, Any], results: Results) -> str:
    measured = [name for name in LOSSES if name in results["patchpose-A"]]
    figures = {
        LOSSES[name]: (_patchpose(results, name), _read(results["pairs"][name]))
        for name in measured
    }
    lines = [
        f"{' | '.join(of)} | {_cells(clean)} | {_cells(real)}"
        for of, (clean, real) in figures.items()
    ]
    identity = _patchpose(results, "identity"), _read(results["pairs"]["identity"])
    lines.append(f"identity | - | - | {' | '.join(map(_cells, identity))}")
    spoilt = "spoilt views"
    compared = []
    for (network, views, loss), ours in figures.items():
        others = []
        if loss == "overlap":
            others.append(
                ((network, views, "the paper's"), f"{network}, {views}: overlap - the paper's loss")
            )
        if views == spoilt:
            for clean in ("PatchPose pairs", "clean views"):
                title = f"{network}, loss {loss}: {spoilt} - {clean}"
                others.append(((network, clean, loss), title))
        for other, title in others:
            if other in figures:
                gaps = [
                    _signed(_average(_minus(mine, theirs)))
                    for mine, theirs in zip(ours, figures[other], strict=True)
                ]
                compared.append(f"{title} | {' | '.join(gaps)}")
    points = _points(results, ("pairs",))[0]
    head = "network | trained on | loss | PatchPose: orientation | scale "
    groups = {
        title: [name for name in measured if RUNS[name].group == group]
        for title, group in (("ResNet-18", "joint"), ("polar", "polar"))
    }
    budgets = [f"{title}: {_budget(runs, names)}" for title, names in groups.items()]
    return "\n".join(
        [
            "## Losses, and clean against spoilt training\n",
            _text(
                f"{'; '.join(budgets)}. PatchPose as above, whose patches are clean. Real pairs: "
                f"all scenes, {points:,} places, windows of 96 pixels, local truth."
            ),
            _table(f"{head}| real pairs: orientation | scale", lines),
            "Differences, mean of the four figures, percentage points:\n",
            _table("compared | PatchPose | real pairs", compared),
        ]
    )


def _average(figures: Figures) -> float | None:
    known = [value for value in figures if value is not None]
    return sum(known) / len(known) if known else None


def _leak(results: Results) -> str:
    found = {
        rule: _mean([_read(results[f"leak-{rule}-{kind}"][f"leak-{rule}"]) for kind in "AB"])
        for rule in SPLIT_RULES
        if f"leak-{rule}-A" in results
    }
    titles = {"image": "by image", "pairs": "shuffled pairs"}
    lines = [f"{titles[rule]} | {_cells(figures)}" for rule, figures in found.items()]
    if len(found) == len(SPLIT_RULES):
        gaps = map(_signed, _minus(found["pairs"], found["image"]))
        lines.append("what the leak is worth | {} {} | {} {}".format(*gaps))
    return "\n".join(
        [
            "## What shuffled pairs leak\n",
            _text(
                "The released code cuts train and test from one shuffled list of pairs, so that "
                "test pairs show keypoints that were trained on. One network, budget and small "
                "set of photographs, divided either way:"
            ),
            _table("split | orientation | scale", lines),
        ]
    )


def _runs(runs: dict[str, Any]) -> str:
    lines = []
    for name, run in runs.items():
        seen = f"{run['keypoints']:,}"
        if run["keypoints"] < run.get("budget_keypoints", 0):
            seen += f" of {run['budget_keypoints']:,}, cut off"
        if run["minutes"] < run.get("budget_minutes", 0):
            seen += f", cut off before {run['budget_minutes']} minutes"
        speed = run["keypoints"] / max(run["minutes"] * 60, 1e-9)
        lines.append(f"{name} | `{run['options']}` | {seen} | {run['minutes']:.1f} | {speed:,.0f}")
    head = "run | `cv-patchpose train` | pairs or keypoints seen | minutes | each second"
    return "\n".join(
        [
            "## Runs\n",
            "Wall time of training, without validation, beside other runs on the same machine.\n",
            _table(head, lines),
        ]
    )


def _curves(runs: dict[str, Any]) -> str:
    return "".join(
        f"![Training of {name}](curves/{name}.png)\n"
        for name, run in runs.items()
        if run["group"] == "pair"
    )


def _machines(content: dict[str, Any]) -> str:
    environment = content["environment"]
    trained = dict.fromkeys(
        f"{run['device']}, PyTorch {run['versions'].get('torch')}, "
        f"OpenCV {run['versions']['opencv']}"
        for run in content["runs"].values()
    )
    return _text(
        f"Trained on {'; '.join(trained)}. Measured on {environment['cpu']}, "
        f"{environment['cpus']} cores, OpenCV {environment['opencv']}, "
        f"commit {environment['commit']}."
    )
