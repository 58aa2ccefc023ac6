"""Train the networks of the paper and ours by equal budgets, several at once; export them.

Leaves what benchmarks/paper.py measures, on this machine or another: run.json and log.csv in the
folder of each run, the models as NAME.onnx, and the results of the runs on the small dataset. What
is there is skipped: a script that was killed goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from paper_runs import MODELS, RUNS, describe_command

from cv_patchpose.evaluation.report import describe_environment, package_versions
from cv_patchpose.files import find_images, write_file
from cv_patchpose.training.checkpoint import load_checkpoint

LEAK_IMAGES = 100
LEAK_HELD_OUT = 0.2


class Training:
    """Trains and exports runs.

    Args:
        options: of this script.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.root: Path = options.runs
        self.end = time.monotonic() + 60 * options.deadline
        self.names: set[str] = set()
        self.trained: set[str] = set()
        self.failed: dict[str, str] = {}
        self.lock = threading.Lock()
        on_gpu = torch.cuda.is_available()
        device = torch.cuda.get_device_name() if on_gpu else describe_environment()["cpu"]
        self.machine = {"device": device, "versions": package_versions()}

    def run_all(self, names: list[str]) -> None:
        """Begin runs in the order of their names; one that fails does not stop the others."""
        self.names = set(names)
        pool = ThreadPoolExecutor(self.options.train_jobs)
        try:
            list(pool.map(self._attempt, names))
        finally:
            pool.shutdown(cancel_futures=True)

    def _attempt(self, name: str) -> None:
        try:
            outcome = self._train(name)
            with self.lock:
                self.trained.add(name)
                model, runs = next(item for item in MODELS.items() if name in item[1])
                rest = set(runs) - self.trained
                complete = all(self._is_there(other) for other in rest - self.names)
                complete &= rest.isdisjoint(self.names)
            if complete:
                self._export(model, runs)
        except Exception as error:
            self.failed[name] = outcome = f"failed: {error}"
        print(f"{name}: {outcome}", flush=True)

    def _is_there(self, name: str) -> bool:
        return (self.root / name / "run.json").exists()

    def _train(self, name: str) -> str:
        """Train to the end of the budget, or until the time is over."""
        run, folder = RUNS[name], self.root / name
        facts, checkpoint = folder / "run.json", folder / "checkpoint.pt"
        budget: float = getattr(self.options, run.group)
        unit, limit = "keypoints", ["--keypoints", str(budget)]
        if run.group == "pair" and self.options.pair_minutes:
            unit, budget = "minutes", self.options.pair_minutes
            limit = ["--minutes", str(budget)]
        if facts.exists() and json.loads(facts.read_text())[unit] >= budget:
            return "is there"
        images: Path = self.options.photographs if run.data == "photographs" else self._few()
        command = ["train", *shlex.split(run.options), *limit]
        words = ["train", "--resume", *limit] if checkpoint.exists() else command
        words = [*words, *shlex.split(self.options.train_options)]
        try:
            self._call(name, [*words, str(images), "-o", str(folder)], self.end)
        except subprocess.TimeoutExpired:
            if not checkpoint.exists():
                raise
        state = load_checkpoint(checkpoint)
        seen = {key: state[key] for key in ("keypoints", "minutes", "photographs")}
        told = describe_command([*command, str(images), "-o", name])
        described = {"command": told, f"budget_{unit}": budget, **seen, **self.machine}
        for model in (m for m, runs in MODELS.items() if name in runs):
            for stale in (self._model(model), *self.root.glob(f"results/{model}-[AB].json")):
                stale.unlink(missing_ok=True)
        write_file(facts, (json.dumps(described, indent=1) + "\n").encode())
        return f"{seen['keypoints']:,} pairs in {seen['minutes']:.1f} minutes"

    def _export(self, model: str, runs: tuple[str, ...]) -> None:
        output = self._model(model)
        if not output.exists():
            folders = [str(self.root / run) for run in runs]
            self._call(model, ["export", *folders, "--int8", "-o", str(output)])
        if RUNS[runs[0]].data == "leak":
            self._test_leak(model)

    def _test_leak(self, model: str) -> None:
        """Test here, where the dataset is: another machine may find other keypoints."""
        results = self.root / "results"
        results.mkdir(exist_ok=True)
        for kind in "AB":
            output = results / f"{model}-{kind}.json"
            if output.exists():
                continue
            words = ["evaluate", "patchpose", str(self._few() / kind), "--split", "test"]
            words += ["--split-by", model.removeprefix("leak-"), "--no-cache"]
            words += ["--methods", str(self._model(model)), "--jobs", str(self.options.jobs)]
            self._call(model, [*words, "-o", str(output)])

    def _model(self, name: str) -> Path:
        return self.root / f"{name}.onnx"

    def _few(self) -> Path:
        """Generate the small dataset, once."""
        images, dataset = self.root / "few", self.root / "leak"
        with self.lock:
            if not (dataset / "complete").exists():
                images.mkdir(exist_ok=True)
                photographs = find_images(self.options.photographs)
                step = max(1, len(photographs) // LEAK_IMAGES)
                for path in photographs[::step][:LEAK_IMAGES]:
                    shutil.copy(path, images)
                for kind in "AB":
                    words = ["generate", str(images), "--kind", kind, "-o", str(dataset / kind)]
                    words += ["--held-out", str(LEAK_HELD_OUT), "--jobs", str(self.options.jobs)]
                    self._call("leak", words)
                write_file(dataset / "complete", b"")
        return dataset

    def _call(self, log: str, arguments: list[str], end: float = float("inf")) -> None:
        """Run a command of cv-patchpose; kill it when the time is over."""
        logs = self.root / "logs"
        logs.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "cv_patchpose.cli", *arguments]
        left = min(max(0.0, end - time.monotonic()), threading.TIMEOUT_MAX)
        with (logs / f"{log}.txt").open("ab") as file:
            subprocess.run(command, stdout=file, stderr=file, timeout=left, check=True)


def main() -> int:
    """Train and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path, metavar="PHOTOGRAPHS")
    parser.add_argument("runs", type=Path, metavar="RUNS", help="folder for everything made")
    parser.add_argument("--pair", type=int, default=100_000, help="pairs of each single network")
    parser.add_argument(
        "--pair-minutes", type=float, metavar="MINUTES", help="of each single network, instead"
    )
    parser.add_argument("--joint", type=int, default=30_000, help="pairs of runs of both networks")
    parser.add_argument("--polar", type=int, default=40_000, help="keypoints of polar networks")
    parser.add_argument("--only", nargs="*", choices=list(RUNS), help="names of runs")
    parser.add_argument("--train-jobs", type=int, default=1, help="runs at once")
    parser.add_argument(
        "--train-options", default="", metavar="TEXT", help="more for the command train"
    )
    parser.add_argument(
        "--deadline",
        type=float,
        default=float("inf"),
        metavar="MINUTES",
        help="of all trainings; those that are not through by then are exported as last saved",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that make the small dataset")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    training = Training(options)
    training.run_all(options.only or list(RUNS))
    return int(bool(training.failed))


if __name__ == "__main__":
    sys.exit(main())
