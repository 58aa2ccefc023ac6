"""The training loop: schedule, validation, log, checkpoints, resume."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cv_patchpose.commit import current_commit
from cv_patchpose.errors import naming
from cv_patchpose.files import write_file
from cv_patchpose.training.checkpoint import (
    CHECKPOINT_NAME,
    config_of,
    load_checkpoint,
    network_of,
    save_checkpoint,
    shape_of,
)
from cv_patchpose.training.curves import draw_curves
from cv_patchpose.training.dataset import Batch
from cv_patchpose.training.distributed import join_processes
from cv_patchpose.training.log import Row, read_rows, write_rows
from cv_patchpose.training.networks import (
    build_network,
    describe_differences,
    network_config,
    shape_to_entry,
)
from cv_patchpose.training.objective import (
    PoseLoss,
    has_bfloat16,
    imitation_loss,
    run_network,
    taught_by,
)
from cv_patchpose.training.optimization import learning_rate, make_optimizer
from cv_patchpose.training.options import TrainConfig
from cv_patchpose.training.prefetch import prefetch
from cv_patchpose.training.sources import measure, open_source
from cv_patchpose.training.widening import can_widen, widen

FIXED = ("seed", "validation_share", "source", "init")  # options that a resumed run cannot change
LOG_NAME = "log.csv"
CURVES_NAME = "curves.png"
VALIDATION_NAME = "validation.txt"
RECENT_STEPS = 500
_BAR = "{desc} {percentage:5.1f}%|{bar}| {elapsed}<{remaining} {postfix}"


@contextlib.contextmanager
def _thread_counts(threads: int) -> Iterator[None]:
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(threads or before[0])
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


class Trainer:
    """One training run in a folder: log.csv, curves.png, checkpoint.pt, validation.txt.

    Training photographs and validation photographs are disjoint. A running average of the
    weights is what is validated and kept. Processes started by torchrun share the batches; the
    first of them writes.

    Args:
        images: folder of photographs, or of PatchPose pairs, see `sources.open_source`.
        run: folder of the run; made if missing, with the first batch.
        config: how to train; to resume, `saved_config` of the run with what is to change.
        resume: go on from the run's checkpoint.

    Raises:
        ValueError: too few photographs, a run folder that already holds a checkpoint, or
            nothing to resume, or that on other photographs or from another beginning.
        OSError: the run's folder cannot be written.
    """

    def __init__(
        self, images: Path | str, run: Path | str, config: TrainConfig, *, resume: bool = False
    ) -> None:
        self.config = config
        self.shape = network_config(config)
        self.run_folder = Path(run)
        self.checkpoint_path = self.run_folder / CHECKPOINT_NAME
        self.group = join_processes(config.device)
        self.batch_size = self.group.share_of(config.batch_size)
        device = self.group.device
        self.bfloat16 = has_bfloat16(device) if config.bfloat16 is None else config.bfloat16
        state = self._open_run(resume)
        self.source = open_source(images, config, self.shape)
        self.origin = {"data": self.source.origin, "commit": current_commit() or ""}
        torch.manual_seed(config.seed)
        network = build_network(self.shape).to(device)
        # Laid out as the patches are. PyTorch's stubs do not know of it.
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).eval()
        self.averaged, self.latest = (
            [value for value in network.state_dict().values() if value.is_floating_point()]
            for network in (self.average, self.network)
        )
        self.loss = PoseLoss(self.shape.bins, config).to(device)
        self.optimizer = make_optimizer(self.network, config)
        self.step, self.keypoints, self.minutes = 0, 0, 0.0
        self.rows: list[Row] = []
        if state:
            self._restore(state)
        else:
            self._begin()
        self.parallel = self.group.wrap(self.network)

    def _open_run(self, resume: bool) -> dict[str, Any] | None:
        """Check the run's folder; read the checkpoint to resume."""
        if not resume:
            if self.run_folder.exists() and not self.run_folder.is_dir():
                raise ValueError(f"run: expected a folder, got the file {self.run_folder}")
            if self.checkpoint_path.exists():
                raise ValueError(
                    f"run: {self.run_folder} already holds a checkpoint; resume it or name a new "
                    "folder"
                )
            return None
        state = self._load(self.checkpoint_path)
        before = config_of(state)
        for name in FIXED:
            old, new = getattr(before, name), getattr(self.config, name)
            if old != new:
                raise ValueError(f"{name}: expected {old!r} as in {self.run_folder}, got {new!r}")
        return state

    def _load(self, path: Path | str) -> dict[str, Any]:
        state = load_checkpoint(path)
        if shape_of(state) != self.shape:
            raise ValueError(
                f"{path}: expected a network like the one to train, got one of "
                f"{describe_differences(shape_of(state), self.shape)}; give the same options, or "
                "another checkpoint"
            )
        return state

    def _begin(self) -> None:
        if self.config.init:
            with naming({"checkpoint": "init"}):
                state = load_checkpoint(self.config.init)
                if can_widen(shape_of(state), self.shape):
                    weights = widen(network_of(state), self.shape).state_dict()
                else:
                    weights = self._load(self.config.init)["average"]
            self._tell_what_is_known(state)
            self.network.load_state_dict(weights)
            self.average.load_state_dict(weights)

    def _tell_what_is_known(self, begun_with: dict[str, Any]) -> None:
        """Tell of photographs held out here that the run begun with was trained on."""
        known = set(self._validation_files()) - set(begun_with["validation_files"])
        if known and begun_with.get("data") == self.source.origin:
            tqdm.write(
                f"init: was trained on {len(known)} of the {len(self.source.held_out)} photographs "
                "held out here: validation will look better than it is",
                file=sys.stderr,
            )

    def _make_folder(self) -> None:
        self.run_folder.mkdir(parents=True, exist_ok=True)
        held_out = "".join(f"{name}\n" for name in self.source.held_out)
        write_file(self.run_folder / VALIDATION_NAME, held_out.encode())

    def _restore(self, state: dict[str, Any]) -> None:
        if state["validation_files"] != self._validation_files():
            raise ValueError(
                f"images: expected the photographs that {self.run_folder} was trained on, got "
                "others: the validation photographs differ"
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.keypoints = state["step"], state["keypoints"]
        self.minutes = state["minutes"]
        self.rows = read_rows(self.run_folder / LOG_NAME, self.keypoints)

    def _validation_files(self) -> list[str]:
        return [Path(name).name for name in self.source.held_out]

    def progress(self) -> float:
        """Share of the budget used up, 0 to 1."""
        if self.config.budget_keypoints is not None:
            return min(1.0, self.keypoints / self.config.budget_keypoints)
        return min(1.0, self.minutes / self.config.budget_minutes)

    def train(self) -> Path:
        """Run until the budget is used up.

        Returns:
            Path of the last checkpoint.

        Raises:
            KeyboardInterrupt: Interrupted; what was learnt until then has been saved.
        """
        with (
            _thread_counts(self.config.threads),
            contextlib.closing(
                prefetch(self._streams(), depth=4, processes=self.config.workers > 0)
            ) as batches,
        ):
            try:
                self._loop(batches)
            except KeyboardInterrupt:
                if self.group.leads and self.step:
                    self._save()
                raise
        self.group.leave()
        return self.checkpoint_path

    def _loop(self, batches: Iterator[Batch]) -> None:
        validation = self.source.validation() if self.group.leads else {}
        losses: deque[Tensor] = deque(maxlen=RECENT_STEPS)
        mark = time.monotonic()
        every = self.config.validate_every_minutes
        next_validation = self.minutes + every
        with tqdm(
            total=100.0,
            initial=100 * self.progress(),
            desc="train",
            bar_format=_BAR,
            mininterval=1,
            disable=not self.group.leads,
        ) as bar:
            while self.progress() < 1:
                batch = next(batches)
                if self.group.leads and not self.step:  # not before there is something to learn
                    self._make_folder()
                losses.append(self._step(batch))
                now = time.monotonic()
                # One clock for all processes, which must take the same number of steps.
                self.minutes = self.group.from_leader(self.minutes + (now - mark) / 60)
                mark = now
                if self.group.leads and self.step == 1:
                    self._save()  # a run killed before its first validation can be resumed too
                    mark = time.monotonic()
                bar.update(100 * self.progress() - bar.n)
                if self.minutes >= next_validation or self.progress() >= 1:
                    if self.group.leads:
                        bar.set_postfix_str(self._validate(validation, losses))
                    next_validation = self.minutes + every
                    mark = time.monotonic()

    def _streams(self) -> list[Iterable[Batch]]:
        config, group = self.config, self.group
        return [
            self.source.stream((config.seed, self.step, number, group.rank), self.batch_size)
            for number in range(config.workers or config.streams)
        ]

    def _step(self, batch: Batch) -> Tensor:
        """Learn from a batch; return its two losses, for which nothing need wait yet."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.progress())
        logits = run_network(self.parallel, batch, self.shape.bins, bfloat16=self.bfloat16)
        scale_loss, orientation_loss = self.loss(logits, batch)
        loss = orientation_loss + self.config.scale_weight * scale_loss
        if self.config.teacher:
            taught = taught_by(batch, self.config.teacher_targets)
            loss = loss + self.config.teacher_weight * imitation_loss(logits, taught)
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.largest_gradient is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.largest_gradient)
        self.optimizer.step()
        self._update_average()
        self.step += 1
        self.keypoints += len(batch.patches) * self.group.size
        return torch.stack((scale_loss, orientation_loss)).detach()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(self.averaged, self.latest, 1 - decay)

    def _validate(self, batches: dict[str, list[Batch]], losses: Iterable[Tensor]) -> str:
        scale_loss, orientation_loss = torch.stack([*losses]).mean(0).tolist()
        row = {
            "minutes": self.minutes,
            "keypoints": self.keypoints,
            "learning_rate": learning_rate(self.config, self.progress()),
            "scale_loss": scale_loss,
            "orientation_loss": orientation_loss,
            **measure(self.average, batches, self.shape),
        }
        self._save()
        self._log(row)
        kind = next(reversed(batches))
        shown = {"orientation 5 deg": "orientation_within_5_deg"}
        shown["scale 1/6 octave"] = "scale_within_1_6_octave"
        return ", ".join(
            f"{text} {row[f'{kind}_{metric}']:.1f} %"
            for text, metric in shown.items()
            if f"{kind}_{metric}" in row
        )

    def _save(self) -> None:
        save_checkpoint(self._state(), self.checkpoint_path)

    def _log(self, row: Row) -> None:
        self.rows = [old for old in self.rows if old.keys() == row.keys()] + [row]
        write_rows(self.run_folder / LOG_NAME, self.rows)
        draw_curves(self.rows, self.run_folder / CURVES_NAME)

    def _state(self) -> dict[str, Any]:
        return {
            "train_config": dataclasses.asdict(self.config),
            "network_config": shape_to_entry(self.shape),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "keypoints": self.keypoints,
            "minutes": self.minutes,
            "scale_offset_octaves": self.source.scale_offset(self.average),
            "photographs": self.source.images,
            "validation_files": self._validation_files(),
            **self.origin,
        }
