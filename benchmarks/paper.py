"""Train the networks of the paper and ours by equal budgets, measure them, write docs/paper.md.

Every step is a command of cv-patchpose, and is skipped where its output is there: a run that was
killed goes on where it stopped. PHOTOGRAPHS are trained on, HELD_OUT are others, PAIRS scenes in
HPatches' layout, WEIGHTS the published weights of OriNet and AffNet.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from paper_page import format_page

from cv_patchpose.evaluation.report import describe_environment
from cv_patchpose.files import write_file
from cv_patchpose.training.checkpoint import load_checkpoint
from cv_patchpose.training.log import read_rows

DOCS = Path(__file__).resolve().parents[1] / "docs"
BINS = ((9, 7), (18, 9), (36, 13), (72, 17))
LEAK_IMAGES = 200


@dataclass(frozen=True)
class Run:
    """A training: its group decides the budget.

    Attributes:
        group: "pair": one of the paper's two networks; "joint": both in one run; "polar".
        options: of the command train.
        data: "photographs", or "leak", the small dataset.
    """

    group: str
    options: str
    data: str = "photographs"


RUNS = {
    "paper-orientation": Run("pair", "--network resnet18 --recipe paper --target orientation"),
    "paper-scale": Run("pair", "--network resnet18 --recipe paper --target scale"),
    "pairs-orientation": Run("pair", "--network resnet18 --recipe pairs --target orientation"),
    "pairs-scale": Run("pair", "--network resnet18 --recipe pairs --target scale"),
    "views-orientation": Run("pair", "--network resnet18 --recipe views --target orientation"),
    "views-scale": Run("pair", "--network resnet18 --recipe views --target scale"),
    **{
        f"resnet18-{o}-{s}": Run(
            "joint", f"--network resnet18 --recipe pairs --orientation-bins {o} --scale-bins {s}"
        )
        for o, s in BINS
    },
    "resnet18-alignment": Run("joint", "--network resnet18 --recipe pairs --loss alignment"),
    "resnet18-views": Run("joint", "--network resnet18 --recipe views"),
    "resnet18-views-alignment": Run("joint", "--network resnet18 --recipe views --loss alignment"),
    "leak-image": Run("joint", "--network resnet18 --recipe pairs --split-by image", "leak"),
    "leak-pairs": Run("joint", "--network resnet18 --recipe pairs --split-by pairs", "leak"),
    **{f"polar-{o}-{s}": Run("polar", f"--orientation-bins {o} --scale-bins {s}") for o, s in BINS},
    "polar-alignment": Run("polar", "--loss alignment"),
    "polar-clean": Run("polar", "--clean 1"),
    "polar-clean-alignment": Run("polar", "--clean 1 --loss alignment"),
}
PAIRS = ("paper", "pairs", "views")


class Experiment:
    """The folder of all runs and results.

    Args:
        options: of this script.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.root: Path = options.runs
        self.commands: list[str] = []

    def call(self, output: Path, command: str, *paths: Path | str) -> Path:
        """Run a command of cv-patchpose that writes an output, unless it is there."""
        arguments = [*shlex.split(command), *map(str, paths), "-o", str(output)]
        if not output.exists():
            print(f"== {output.name}", flush=True)
            subprocess.run([sys.executable, "-m", "cv_patchpose.cli", *arguments], check=True)
        names = (Path(a).name if os.sep in a else a for a in arguments)
        self.commands.append(f"cv-patchpose {' '.join(names)}")
        return output

    def datasets(self) -> dict[str, Path]:
        """Generate what is measured on: held-out photographs, and a small set to leak from."""
        few = self.root / "few"
        if not few.exists():
            few.mkdir(parents=True)
            photographs = sorted(self.options.photographs.iterdir())
            for path in photographs[:: max(1, len(photographs) // LEAK_IMAGES)]:
                shutil.copy(path, few)
        made = {}
        for name, images in (("held-out", self.options.held_out), ("leak", few)):
            for kind in "AB":
                output = self.root / name / kind
                index = output / "complete"
                if not index.exists():
                    self.call(output, f"generate --kind {kind} --jobs {self.options.jobs}", images)
                    write_file(index, b"")
                made[f"{name}-{kind}"] = output
        return made

    def train(self, name: str) -> Path:
        """Train a run to the end of its budget, going on where it stopped."""
        run, folder = RUNS[name], self.root / name
        budget = getattr(self.options, run.group)
        images = self.options.photographs if run.data == "photographs" else self.root / "leak"
        command = f"train {run.options} --keypoints {budget} --threads {self.options.threads}"
        done = folder / "checkpoint.pt"
        if not done.exists() or load_checkpoint(done)["keypoints"] < budget:
            resume = ["--resume", "--keypoints", str(budget)] if done.exists() else []
            words = ["train", *resume] if resume else shlex.split(command)
            print(f"== train {name}", flush=True)
            arguments = [*words, str(images), "-o", str(folder)]
            subprocess.run([sys.executable, "-m", "cv_patchpose.cli", *arguments], check=True)
        self.commands.append(f"cv-patchpose {command} {images.name} -o {name}")
        return folder

    def export(self, name: str) -> Path:
        """Export a run, or the two runs of a pair, to a model file."""
        folders = [self.root / name]
        if name in PAIRS:
            folders = [self.root / f"{name}-{target}" for target in ("orientation", "scale")]
        return self.call(self.root / f"{name}.onnx", "export", *folders)


def models(names: list[str]) -> list[str]:
    """List the models that can be made of trained runs."""
    single = [n for n in names if RUNS[n].group != "pair"]
    pairs = [p for p in PAIRS if {f"{p}-orientation", f"{p}-scale"} <= set(names)]
    return pairs + single


def measure(experiment: Experiment, names: list[str]) -> dict[str, dict]:
    """Measure every model and the peers on every benchmark."""
    options, data = experiment.options, experiment.datasets()
    made = {name: experiment.export(name) for name in models(names)}
    whole = {n: p for n, p in made.items() if not n.startswith("leak")}
    peers = "identity,sift-at-point,orinet,affnet,polar"
    methods = ",".join([peers, *map(str, whole.values())])
    weights = f"--peer-weights {options.weights} --jobs {options.jobs}"
    results = {}

    def evaluate(title: str, benchmark: str, root: Path, chosen: str, more: str = "") -> None:
        output = experiment.root / "results" / f"{title}.json"
        output.parent.mkdir(exist_ok=True)
        command = f"evaluate {benchmark} {root} --methods {chosen} {weights} {more}"
        results[title] = json.loads(experiment.call(output, command).read_text())

    for kind in "AB":
        stored = data[f"held-out-{kind}"]
        evaluate(f"patchpose-{kind}", "patchpose", stored, methods, "--split train --top-k 4")
        for rule in ("image", "pairs"):
            if f"leak-{rule}" in made:
                more = f"--split test --split-by {rule}"
                chosen = str(made[f"leak-{rule}"])
                evaluate(f"leak-{rule}-{kind}", "patchpose", data[f"leak-{kind}"], chosen, more)
    for truth in ("global", "local"):
        more = f"--ground-truth {truth} --window-px 96"
        scenes = options.pairs / "hpatches-sequences"
        evaluate(f"hpatches-{truth}", "homography-pose", scenes, methods, more)
    evaluate("pairs", "homography-pose", options.pairs, methods)
    return results


def describe_runs(experiment: Experiment, names: list[str]) -> dict[str, dict]:
    """Collect what each run saw, how long it took, and its curve."""
    described = {}
    for name in names:
        folder = experiment.root / name
        state = load_checkpoint(folder / "checkpoint.pt")
        described[name] = {
            "group": RUNS[name].group,
            "options": RUNS[name].options,
            "keypoints": state["keypoints"],
            "minutes": round(state["minutes"], 1),
            "photographs": state["photographs"],
            "log": read_rows(folder / "log.csv", state["keypoints"]),
        }
        if RUNS[name].group == "pair":
            curves = (folder / "curves.png").read_bytes()
            write_file(DOCS / "curves" / f"{name}.png", curves)
    return described


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("photographs", "held_out", "pairs", "weights"):
        parser.add_argument(name, type=Path, metavar=name.upper())
    parser.add_argument("runs", type=Path, metavar="RUNS", help="folder for everything made")
    parser.add_argument("--pair", type=int, default=100_000, help="pairs of each single network")
    parser.add_argument("--joint", type=int, default=30_000, help="pairs of runs of both networks")
    parser.add_argument("--polar", type=int, default=40_000, help="keypoints of polar networks")
    parser.add_argument("--only", nargs="*", choices=list(RUNS), help="train these, then stop")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    experiment = Experiment(options)
    if any(RUNS[name].data == "leak" for name in options.only or RUNS):
        experiment.datasets()
    for name in options.only or RUNS:
        experiment.train(name)
    if options.only:
        return
    (DOCS / "curves").mkdir(exist_ok=True)
    content = {
        "benchmark": "paper",
        "runs": describe_runs(experiment, list(RUNS)),
        "results": measure(experiment, list(RUNS)),
        "commands": experiment.commands,
        "environment": describe_environment(),
    }
    write_file(DOCS / "results/paper.json", (json.dumps(content, indent=1) + "\n").encode())
    write_file(DOCS / "paper.md", format_page(content).encode())


if __name__ == "__main__":
    main()
