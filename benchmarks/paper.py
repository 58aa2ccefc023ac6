"""Measure what benchmarks/paper_train.py trained, and write docs/paper.md.

HELD_OUT are photographs that nothing was trained on, PAIRS scenes in HPatches' layout with those of
HPatches in the folder hpatches-sequences, WEIGHTS the published weights of OriNet and AffNet. Of
RUNS only the models, run.json and log.csv of each run, and the results of the runs on the small
dataset are read. The page is made of what is there. What is measured is kept in RUNS: a script
that was killed goes on where it stopped; to measure again, delete RUNS/results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from paper_page import format_page
from paper_runs import LOSSES, MODELS, PAIRS, RUNS, SPLIT_RULES, describe_command

from cv_patchpose.evaluation.report import describe_environment
from cv_patchpose.evaluation.sequences import find_sequences, list_pairs
from cv_patchpose.files import read_image, write_file
from cv_patchpose.homography import global_change, local_jacobian, nearest_similarity, project
from cv_patchpose.training.curves import draw_curves
from cv_patchpose.training.log import read_rows

DOCS = Path(__file__).resolve().parents[1] / "docs"
PEERS = (
    *("identity", "sift-at-point", "orinet", "affnet", "orinet+affnet"),
    *("polar", "polar-large"),
)


class Measuring:
    """Measures models.

    Args:
        options: of this script.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.root: Path = options.runs
        (self.root / "results").mkdir(exist_ok=True)
        self.commands: list[str] = []
        self.models = {name: self.root / f"{name}.onnx" for name in MODELS}

    def measure(self) -> dict[str, dict]:
        """Measure every model and the peers on every benchmark, by the benchmark's title."""
        held_out, scenes = self._held_out(), self.options.pairs / "hpatches-sequences"
        every = [name for name in MODELS if not name.startswith("leak")]
        results = {}
        for kind in "AB":
            where = f"patchpose {held_out / kind} --split train --top-k 4"
            results[f"patchpose-{kind}"] = self._evaluate(f"patchpose-{kind}", where, every)
            for rule in SPLIT_RULES:
                there = self.root / f"results/leak-{rule}-{kind}.json"
                if there.exists():
                    results[f"leak-{rule}-{kind}"] = read_result(there)
        for truth in ("global", "normalized", "local"):
            where = f"homography-pose {scenes} --ground-truth {truth} --window-px 96"
            results[f"hpatches-{truth}"] = self._evaluate(f"hpatches-{truth}", where, PAIRS)
        where = f"homography-pose {self.options.pairs} --window-px 96"
        results["pairs"] = self._evaluate("pairs", where, (*PAIRS, *LOSSES))
        return results

    def _evaluate(self, title: str, where: str, names: Any) -> dict:
        made = [str(self.models[name]) for name in names if self.models[name].exists()]
        output = self.root / f"results/{title}.json"
        words = ["evaluate", *where.split(), "--methods", ",".join([*PEERS, *made])]
        words += ["--peer-weights", str(self.options.weights), "--jobs", str(self.options.jobs)]
        self._call([*words, "-o", str(output)], done=output.exists())
        return read_result(output)

    def _held_out(self) -> Path:
        folder = self.root / "held-out"
        for kind in "AB":
            words = ["generate", str(self.options.held_out), "--kind", kind]
            self._call([*words, "--jobs", str(self.options.jobs), "-o", str(folder / kind)])
        return folder

    def _call(self, arguments: list[str], done: bool = False) -> None:
        """Run a command of cv-patchpose, unless its output is there."""
        self.commands.append(describe_command(arguments))
        if done:
            return
        print(self.commands[-1], flush=True)
        subprocess.run([sys.executable, "-m", "cv_patchpose.cli", *arguments], check=True)


def read_result(path: Path) -> dict[str, Any]:
    """Read what was measured, the models by their names."""
    outcome = json.loads(path.read_text())
    protocol, rows = outcome["protocol"], outcome["rows"]
    protocol["methods"] = [Path(method).stem for method in protocol["methods"]]
    rows = [{**row, "method": Path(row["method"]).stem} for row in rows]
    return {"protocol": protocol, "rows": rows, "failures": outcome["failures"]}


def compare_truths(scenes: Path) -> dict[str, list[float]]:
    """How far the paper's truth (eq. 10) agrees with the local one, on 20 x 20 points an image.

    Returns:
        Percent within 5 and 10 degrees, 1/6 and 1/3 octave, of the change read in pixels from the
        corner of the image ("global") and from its centre ("normalized").
    """
    errors: dict[str, list[list[float]]] = {"global": [[], []], "normalized": [[], []]}
    for pair in list_pairs(find_sequences(scenes)[0], quick=False):
        homography = pair.target.homography
        height, width = read_image(pair.first).shape[:2]
        rows, columns = read_image(pair.target.path).shape[:2]
        x, y = np.meshgrid(np.linspace(0, width - 1, 20), np.linspace(0, height - 1, 20))
        points = np.column_stack([x.ravel(), y.ravel()])
        there = project(homography, points)
        points = points[((there >= 0) & (there < (columns, rows))).all(1)]
        scale, angle = nearest_similarity(local_jacobian(homography, points))
        from_middle = move((width - 1) / 2, (height - 1) / 2)
        to_middle = move(-(columns - 1) / 2, -(rows - 1) / 2)
        for name, read in {
            "global": homography,
            "normalized": to_middle @ homography @ from_middle,
        }.items():
            paper_scale, paper_angle = global_change(read)
            errors[name][0] += [*np.abs((angle - paper_angle + 180) % 360 - 180)]
            errors[name][1] += [*np.abs(np.log2(scale / paper_scale))]
    return {
        name: [
            100 * float(np.mean(np.array(found) <= limit))
            for found, limits in ((degrees, (5, 10)), (octaves, (1 / 6, 1 / 3)))
            for limit in limits
        ]
        for name, (degrees, octaves) in errors.items()
    }


def move(x: float, y: float) -> np.ndarray:
    """Make a (3, 3) translation."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def describe_runs(root: Path) -> dict[str, dict]:
    """Collect of each run that is there what it saw, how long it took, and its curve."""
    described = {}
    for name, run in RUNS.items():
        folder = root / name
        if not (folder / "run.json").exists():
            print(f"{name}: not there")
            continue
        facts = json.loads((folder / "run.json").read_text())
        log = read_rows(folder / "log.csv", facts["keypoints"])
        described[name] = {"group": run.group, "options": run.options, **facts, "log": log}
        if run.group == "pair":
            (DOCS / "curves").mkdir(exist_ok=True)
            draw_curves(log, DOCS / f"curves/{name}.png")
    return described


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("held_out", "pairs", "weights", "runs"):
        parser.add_argument(name, type=Path, metavar=name.upper())
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    measuring = Measuring(options)
    runs = describe_runs(options.runs)
    if not runs:
        parser.error(f"RUNS: expected runs of paper_train.py in {options.runs}, got none")
    content = {
        "benchmark": "paper",
        "runs": runs,
        "results": measuring.measure(),
        "truths_agree": compare_truths(options.pairs / "hpatches-sequences"),
        "commands": [run["command"] for run in runs.values()] + measuring.commands,
        "environment": describe_environment(),
    }
    write_file(DOCS / "results/paper.json", (json.dumps(content, indent=1) + "\n").encode())
    write_file(DOCS / "paper.md", format_page(content).encode())


if __name__ == "__main__":
    main()
