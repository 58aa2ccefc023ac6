"""The training loop: schedule, validation, log, checkpoints, resume."""

from __future__ import annotations

import copy
import csv
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from cv_patchpose.training.calibration import measure_scale_offset
from cv_patchpose.training.checkpoint import (
    CHECKPOINT_NAME,
    current_commit,
    load_checkpoint,
    save_checkpoint,
)
from cv_patchpose.training.curves import draw_curves
from cv_patchpose.training.dataset import Batch, PairStream, PhotographFolder, find_images, prefetch
from cv_patchpose.training.network import PolarNet, PolarNetConfig
from cv_patchpose.training.objective import PoseLoss, pose_accuracy, run_network
from cv_patchpose.training.options import TrainConfig

LOG_NAME = "log.csv"
VALIDATION_NAME = "validation.txt"
WARM_UP_SHARE = 0.02
LAST_LEARNING_RATE_SHARE = 0.003
POOL_BATCHES = 12
VALIDATION_BATCH = 64
VALIDATION_SEED = 12345
RECENT_STEPS = 500
LARGEST_GRADIENT = 5.0
_BAR = "{desc} {percentage:5.1f}%|{bar}| {elapsed}<{remaining} {postfix}"


def split_photographs(paths: list[Path], share: float, seed: int) -> tuple[list[Path], list[Path]]:
    """Split image files into training and validation files, by seed; a single one is both."""
    if len(paths) < 2:
        return paths, paths
    order = np.random.default_rng(seed).permutation(len(paths))
    held = set(order[: max(1, round(share * len(paths)))].tolist())
    return (
        [path for index, path in enumerate(paths) if index not in held],
        [path for index, path in enumerate(paths) if index in held],
    )


def network_config(config: TrainConfig) -> PolarNetConfig:
    """Shape the network as the training options say."""
    standard = PolarNetConfig()
    return dataclasses.replace(
        standard,
        grid=dataclasses.replace(standard.grid, halo=2 + 2 * len(config.channels)),
        stem_channels=config.stem_channels,
        channels=config.channels,
        hidden=config.hidden,
    )


class Trainer:
    """One training run in a folder: log.csv, curves.png, checkpoint.pt, validation.txt.

    Training photographs and validation photographs are disjoint. A running average of the
    weights is what is validated and kept.

    Args:
        images: folder of photographs.
        run: folder of the run; made if missing.
        config: how to train.
        resume: go on from the run's checkpoint.

    Raises:
        ValueError: no usable photograph, a run folder that already holds a checkpoint, or
            nothing to resume.
    """

    def __init__(
        self, images: Path | str, run: Path | str, config: TrainConfig, *, resume: bool = False
    ) -> None:
        self.config = config
        self.run_folder = Path(run)
        self.checkpoint_path = self.run_folder / CHECKPOINT_NAME
        self._check_run(resume)
        self._open_photographs(images)
        self.run_folder.mkdir(parents=True, exist_ok=True)
        held_out = "".join(f"{path}\n" for path in self.validation.paths)
        (self.run_folder / VALIDATION_NAME).write_text(held_out)
        torch.manual_seed(config.seed)
        if config.threads:
            torch.set_num_threads(config.threads)
        cv2.setNumThreads(1)
        self.shape = network_config(config)
        self.network: nn.Module = PolarNet(self.shape)
        self.loss = PoseLoss(
            self.shape.bins,
            sigma_deg=config.sigma_deg,
            sigma_octaves=config.sigma_octaves,
            floor=config.floor,
        )
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.step, self.keypoints, self.minutes = 0, 0, 0.0
        if config.init:
            self.network.load_state_dict(load_checkpoint(config.init)["average"])
        self.average = copy.deepcopy(self.network).eval()
        if resume:
            self._restore(load_checkpoint(self.checkpoint_path))

    def _check_run(self, resume: bool) -> None:
        if resume and not self.checkpoint_path.exists():
            raise ValueError(f"resume: expected {self.checkpoint_path}, got no such file")
        if not resume and self.checkpoint_path.exists():
            raise ValueError(
                f"run: {self.run_folder} already holds a checkpoint; resume it or name a new folder"
            )

    def _open_photographs(self, images: Path | str) -> None:
        training, validation = split_photographs(
            find_images(images), self.config.validation_share, self.config.seed
        )
        self.training = PhotographFolder(training)
        self.validation = PhotographFolder(validation)
        if not len(self.training) or not len(self.validation):
            raise ValueError(
                f"images: expected readable photographs of at least 96 px below {images}, got "
                f"{len(self.training)} for training and {len(self.validation)} for validation"
            )

    def progress(self) -> float:
        """Share of the budget used up, 0 to 1."""
        if self.config.budget_keypoints is not None:
            return min(1.0, self.keypoints / self.config.budget_keypoints)
        return min(1.0, self.minutes / self.config.budget_minutes)

    def learning_rate(self) -> float:
        """Warm up linearly, then fall along a cosine."""
        done = self.progress()
        if done < WARM_UP_SHARE:
            return self.config.learning_rate * max(0.02, done / WARM_UP_SHARE)
        cosine = 0.5 * (1 + math.cos(math.pi * (done - WARM_UP_SHARE) / (1 - WARM_UP_SHARE)))
        return self.config.learning_rate * max(cosine, LAST_LEARNING_RATE_SHARE)

    def train(self) -> Path:
        """Run until the budget is used up.

        Returns:
            Path of the last checkpoint.
        """
        validation = self._validation_batches()
        batches = prefetch(self._streams(), depth=4)
        losses: list[tuple[float, float]] = []
        mark = time.monotonic()
        next_validation = self.minutes + self.config.validate_every_minutes
        initial = 100 * self.progress()
        with tqdm(
            total=100.0, initial=initial, desc="train", bar_format=_BAR, mininterval=1
        ) as bar:
            while self.progress() < 1:
                losses.append(self._step(next(batches)))
                now = time.monotonic()
                self.minutes, mark = self.minutes + (now - mark) / 60, now
                bar.update(100 * self.progress() - bar.n)
                if self.minutes >= next_validation or self.progress() >= 1:
                    bar.set_postfix_str(self._validate(validation, losses[-RECENT_STEPS:]))
                    next_validation = self.minutes + self.config.validate_every_minutes
                    mark = time.monotonic()
        return self.checkpoint_path

    def _streams(self) -> list[PairStream]:
        config = self.config
        return [
            PairStream(
                self.training,
                self.shape.grid,
                config.synthesis,
                batch_size=config.batch_size,
                pool_size=POOL_BATCHES * config.batch_size,
                seed=(config.seed, self.step, number),
            )
            for number in range(config.streams)
        ]

    def _step(self, batch: Batch) -> tuple[float, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        logits = run_network(self.network, batch.patches, bfloat16=self.config.bfloat16)
        scale_loss, orientation_loss = self.loss(*logits, batch)
        self.optimizer.zero_grad()
        (orientation_loss + self.config.scale_weight * scale_loss).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_GRADIENT)
        self.optimizer.step()
        self._update_average()
        self.step += 1
        self.keypoints += len(batch.patches)
        return scale_loss.item(), orientation_loss.item()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
        values = self.network.state_dict()
        for name, average in self.average.state_dict().items():
            if average.is_floating_point():
                average.lerp_(values[name], 1 - decay)

    def _validation_batches(self) -> dict[str, list[Batch]]:
        spoilt = self.config.synthesis
        kinds = {"clean": dataclasses.replace(spoilt, corruption=0.0), "spoilt": spoilt}
        count = max(1, self.config.validation_keypoints // VALIDATION_BATCH)
        batches = {}
        for name, synthesis in kinds.items():
            stream = iter(
                PairStream(
                    self.validation,
                    self.shape.grid,
                    synthesis,
                    batch_size=VALIDATION_BATCH,
                    pool_size=VALIDATION_BATCH,
                    seed=VALIDATION_SEED,
                )
            )
            batches[name] = [next(stream) for _ in range(count)]
        return batches

    @torch.no_grad()
    def _validate(self, batches: dict[str, list[Batch]], losses: list[tuple[float, float]]) -> str:
        scale_loss, orientation_loss = np.mean(losses, 0)
        row: dict[str, float] = {
            "minutes": self.minutes,
            "keypoints": self.keypoints,
            "learning_rate": self.learning_rate(),
            "scale_loss": scale_loss,
            "orientation_loss": orientation_loss,
        }
        for name, group in batches.items():
            measured = [
                pose_accuracy(*run_network(self.average, b.patches), b, self.shape.bins)
                for b in group
            ]
            for metric in measured[0]:
                row[f"{name}_{metric}"] = float(np.mean([m[metric] for m in measured]))
        self._log(row)
        save_checkpoint(self._state(), self.checkpoint_path)
        return (
            f"orientation 5 deg {row['spoilt_orientation_within_5_deg']:.1f} %, "
            f"scale 1/6 octave {row['spoilt_scale_within_1_6_octave']:.1f} %"
        )

    def _log(self, row: dict[str, float]) -> None:
        path = self.run_folder / LOG_NAME
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow({name: f"{value:.7g}" for name, value in row.items()})
        draw_curves(path, self.run_folder / "curves.png")

    def _state(self) -> dict[str, Any]:
        return {
            "train_config": dataclasses.asdict(self.config),
            "network_config": dataclasses.asdict(self.shape),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "keypoints": self.keypoints,
            "minutes": self.minutes,
            "scale_offset_octaves": measure_scale_offset(
                self.average,
                self.shape.grid,
                self.shape.bins,
                self.validation,
                self.config.synthesis.magnification,
            ),
            "photographs": len(self.training),
            "validation_files": [path.name for path in self.validation.paths],
            "commit": current_commit(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        if state["network_config"] != dataclasses.asdict(self.shape):
            raise ValueError(
                f"resume: expected a network of shape {state['network_config']}, "
                f"got options for {dataclasses.asdict(self.shape)}"
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.keypoints = state["step"], state["keypoints"]
        self.minutes = state["minutes"]
