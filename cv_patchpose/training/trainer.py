"""The training loop: data, loss, schedule, validation, checkpoints, resume."""

from __future__ import annotations

import copy
import csv
import dataclasses
import itertools
import logging
import math
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from cv_patchpose.histograms import PoseHistograms, find_modes
from cv_patchpose.training.checkpoint import (
    CHECKPOINT_NAME,
    current_commit,
    load_checkpoint,
    save_checkpoint,
)
from cv_patchpose.training.curves import draw_curves
from cv_patchpose.training.dataset import Batch, PairStream, PhotographFolder, find_images, prefetch
from cv_patchpose.training.losses import FineOverlapLoss
from cv_patchpose.training.network import PolarNet, PolarNetConfig
from cv_patchpose.training.options import TrainConfig
from cv_patchpose.training.synthesis import similarity_of

logger = logging.getLogger(__name__)
LOG_NAME = "log.csv"
WARM_UP_SHARE = 0.02
POOL_BATCHES = 12


def pair_changes(batch: Batch) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Compute the true change between every two views of each keypoint.

    Args:
        batch: B keypoints in V views.

    Returns:
        (P, 2) view indices with first < second, (B, P) rotation in degrees clockwise, and
        (B, P) change of log2 scale relative to the windows: the second view's content lies that
        many octaves further out in its window.
    """
    pairs = np.array(list(itertools.combinations(range(batch.jacobian.shape[1]), 2)))
    first, second = pairs.T
    relative = batch.jacobian[:, second] @ np.linalg.inv(batch.jacobian[:, first])
    rotation_deg, zoom = similarity_of(relative)
    return pairs, rotation_deg, zoom - (batch.log2_window[:, second] - batch.log2_window[:, first])


class PoseLoss(nn.Module):
    """Sum of the two overlap losses over all pairs of views.

    Args:
        network: gives the bins.
        config: tolerances and weight.
    """

    def __init__(self, network: PolarNetConfig, config: TrainConfig) -> None:
        super().__init__()
        bins = network.bins
        self.bins = bins
        self.scale_weight = config.scale_weight
        self.orientation = FineOverlapLoss(
            bins.orientation,
            factor=4,
            sigma_bins=config.sigma_deg * bins.orientation / 360,
            circular=True,
        )
        self.scale = FineOverlapLoss(
            bins.scale,
            factor=4,
            sigma_bins=config.sigma_octaves * bins.scale_per_octave,
            circular=False,
        )

    def forward(self, scale: Tensor, orientation: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute both losses.

        Args:
            scale: (B, V, S) logits.
            orientation: (B, V, R) logits.
            batch: the patches' true geometry.

        Returns:
            Mean scale and orientation losses, nats.
        """
        pairs, rotation_deg, octaves = pair_changes(batch)
        first, second = torch.from_numpy(pairs).T
        turn = torch.from_numpy(rotation_deg * self.bins.orientation / 360).float().flatten()
        shift = torch.from_numpy(octaves * self.bins.scale_per_octave).float().flatten()
        return (
            self.scale(scale[:, first].flatten(0, 1), scale[:, second].flatten(0, 1), shift).mean(),
            self.orientation(
                orientation[:, first].flatten(0, 1), orientation[:, second].flatten(0, 1), turn
            ).mean(),
        )


def pose_accuracy(
    scale: Tensor, orientation: Tensor, batch: Batch, network: PolarNetConfig
) -> dict[str, float]:
    """Measure how often two views of a keypoint get poses that agree with the truth.

    Args:
        scale: (B, V, S) logits.
        orientation: (B, V, R) logits.
        batch: the patches' true geometry.
        network: gives the bins.

    Returns:
        Percentages by metric name.
    Source: thresholds of Lee, Jeong, Cho, BMVC 2021, eq. 9.
    """
    views = scale.shape[1]
    histograms = PoseHistograms(
        scale=scale.flatten(0, 1).float().softmax(-1).numpy(),
        orientation=orientation.flatten(0, 1).float().softmax(-1).numpy(),
    )
    poses = find_modes(histograms, network.bins)
    angle_deg = poses.angle_deg.reshape(-1, views)
    octaves = np.log2(poses.scale).reshape(-1, views)
    pairs, rotation_deg, change = pair_changes(batch)
    first, second = pairs.T
    turn_error = np.abs(
        (angle_deg[:, second] - angle_deg[:, first] - rotation_deg + 180) % 360 - 180
    )
    octave_error = np.abs(octaves[:, second] - octaves[:, first] - change)
    return {
        "orientation_within_5_deg": 100 * float((turn_error <= 5).mean()),
        "orientation_within_10_deg": 100 * float((turn_error <= 10).mean()),
        "scale_within_1_6_octave": 100 * float((octave_error <= 1 / 6).mean()),
        "scale_within_1_3_octave": 100 * float((octave_error <= 1 / 3).mean()),
    }


def run_network(
    network: nn.Module, patches: NDArray[np.float32], *, bfloat16: bool
) -> tuple[Tensor, Tensor]:
    """Run (B, V, 1, H, W) patches; returns (B, V, S) scale and (B, V, R) orientation logits."""
    flat = torch.from_numpy(patches).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        scale, orientation = network(flat)
    shape = patches.shape[:2]
    return scale.float().unflatten(0, shape), orientation.float().unflatten(0, shape)


def split_photographs(paths: list[Path], share: float, seed: int) -> tuple[list[Path], list[Path]]:
    """Split image files into training and validation files, by seed."""
    order = np.random.default_rng(seed).permutation(len(paths))
    count = max(1, round(share * len(paths)))
    held = {int(i) for i in order[:count]} if len(paths) > 1 else set()
    return (
        [p for i, p in enumerate(paths) if i not in held],
        [p for i, p in enumerate(paths) if i in held] or list(paths),
    )


def measure_offset(
    network: nn.Module,
    config: PolarNetConfig,
    photographs: PhotographFolder,
    magnification: float,
) -> float:
    """Median of log2 scale on SIFT keypoints, negated: the calibration of the model."""
    from cv_patchpose.patches import build_pyramid, sample_polar

    octaves = []
    for index in range(min(len(photographs), 60)):
        photograph = photographs[index]
        blob = ~np.isnan(photograph.size_px)
        xy, size = photograph.xy_px[blob][:100], photograph.size_px[blob][:100]
        if not len(xy):
            continue
        patches = sample_polar(
            build_pyramid(photograph.image),
            xy,
            magnification * size,
            np.zeros(len(xy)),
            config.grid,
            standardize=True,
        )
        scale, orientation = run_network(network, patches[:, None], bfloat16=False)
        histograms = PoseHistograms(
            scale=scale[:, 0].softmax(-1).numpy(), orientation=orientation[:, 0].softmax(-1).numpy()
        )
        octaves.append(np.log2(find_modes(histograms, config.bins).scale))
    return -float(np.median(np.concatenate(octaves))) if octaves else 0.0


class Trainer:
    """One training run in a folder: log.csv, curves.png and checkpoint.pt.

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
        training, validation = split_photographs(
            find_images(images), config.validation_share, config.seed
        )
        self.training = PhotographFolder(training)
        self.validation = PhotographFolder(validation)
        if not len(self.training) or not len(self.validation):
            raise ValueError(
                f"images: expected readable photographs of at least 96 px below {images}, got "
                f"{len(self.training)} for training and {len(self.validation)} for validation"
            )
        torch.manual_seed(config.seed)
        if config.threads:
            torch.set_num_threads(config.threads)
        cv2.setNumThreads(1)
        halo = 2 + 2 * len(config.channels)
        base = PolarNetConfig()
        self.network_config = dataclasses.replace(
            base,
            grid=dataclasses.replace(base.grid, halo=halo),
            stem_channels=config.stem_channels,
            channels=config.channels,
            hidden=config.hidden,
        )
        self.network = PolarNet(self.network_config).to(memory_format=torch.channels_last)
        self.loss = PoseLoss(self.network_config, config)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.keypoints = 0
        self.minutes = 0.0
        self.step = 0
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
        self.run_folder.mkdir(parents=True, exist_ok=True)

    def progress(self) -> float:
        """Share of the budget used up, 0 to 1."""
        if self.config.budget_keypoints is not None:
            return min(1.0, self.keypoints / self.config.budget_keypoints)
        return min(1.0, self.minutes / self.config.budget_minutes)

    def _learning_rate(self) -> float:
        done = self.progress()
        if done < WARM_UP_SHARE:
            return self.config.learning_rate * max(0.02, done / WARM_UP_SHARE)
        cosine = 0.5 * (1 + math.cos(math.pi * (done - WARM_UP_SHARE) / (1 - WARM_UP_SHARE)))
        return self.config.learning_rate * max(cosine, 0.003)

    def train(self) -> Path:
        """Run until the budget is used up.

        Returns:
            Path of the last checkpoint.
        """
        streams = self._streams()
        validation = self._validation_batches()
        last_validation = self.minutes
        recent: list[tuple[float, float]] = []
        mark = time.monotonic()
        with tqdm(
            total=100.0,
            initial=100 * self.progress(),
            desc="train",
            mininterval=1.0,
            bar_format="{desc} {percentage:5.1f}%|{bar}| {elapsed}<{remaining} {postfix}",
        ) as bar:
            for batch in prefetch(streams, depth=4):
                recent.append(self._step(batch))
                now = time.monotonic()
                self.minutes += (now - mark) / 60
                mark = now
                bar.update(100 * self.progress() - bar.n)
                finished = self.progress() >= 1
                if finished or self.minutes - last_validation >= self.config.validate_every_minutes:
                    row = self._validate(validation, np.array(recent[-500:]).mean(0))
                    bar.set_postfix_str(
                        f"orientation 5 deg {row['spoilt_orientation_within_5_deg']:.1f} %  "
                        f"scale 1/6 oct {row['spoilt_scale_within_1_6_octave']:.1f} %"
                    )
                    recent, last_validation = [], self.minutes
                    mark = time.monotonic()
                if finished:
                    return self.checkpoint_path
        raise AssertionError("the stream of batches has no end")

    def _streams(self) -> list[PairStream]:
        config = self.config
        return [
            PairStream(
                self.training,
                self.network_config.grid,
                config.synthesis,
                batch_size=config.batch_size,
                pool_size=POOL_BATCHES * config.batch_size,
                seed=hash((config.seed, self.step, number)) & 0xFFFFFFFF,
            )
            for number in range(config.streams)
        ]

    def _step(self, batch: Batch) -> tuple[float, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        scale, orientation = run_network(self.network, batch.patches, bfloat16=self.config.bfloat16)
        scale_loss, orientation_loss = self.loss(scale, orientation, batch)
        self.optimizer.zero_grad()
        (orientation_loss + self.config.scale_weight * scale_loss).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for mean, value in zip(
                self.average.parameters(), self.network.parameters(), strict=True
            ):
                mean.lerp_(value, 1 - decay)
            for mean, value in zip(self.average.buffers(), self.network.buffers(), strict=True):
                mean.copy_(value)
        self.step += 1
        self.keypoints += len(batch.patches)
        return float(scale_loss.detach()), float(orientation_loss.detach())

    def _validation_batches(self) -> dict[str, list[Batch]]:
        batches = {}
        spoilt = self.config.synthesis
        for name, synthesis in (
            ("clean", dataclasses.replace(spoilt, corruption=0.0)),
            ("spoilt", spoilt),
        ):
            stream = iter(
                PairStream(
                    self.validation,
                    self.network_config.grid,
                    synthesis,
                    batch_size=64,
                    pool_size=64,
                    seed=12345,
                )
            )
            count = max(1, self.config.validation_keypoints // 64)
            batches[name] = [next(stream) for _ in range(count)]
        return batches

    @torch.no_grad()
    def _validate(
        self, batches: dict[str, list[Batch]], losses: NDArray[np.float64]
    ) -> dict[str, float]:
        row: dict[str, float] = {
            "minutes": round(self.minutes, 2),
            "keypoints": self.keypoints,
            "learning_rate": self._learning_rate(),
            "scale_loss": float(losses[0]),
            "orientation_loss": float(losses[1]),
        }
        for name, group in batches.items():
            measured = [
                pose_accuracy(
                    *run_network(self.average, batch.patches, bfloat16=False),
                    batch,
                    self.network_config,
                )
                for batch in group
            ]
            for metric in measured[0]:
                row[f"{name}_{metric}"] = float(np.mean([m[metric] for m in measured]))
        self._log(row)
        draw_curves(self.run_folder / LOG_NAME, self.run_folder / "curves.png")
        self._save()
        return row

    def _log(self, row: dict[str, float]) -> None:
        path = self.run_folder / LOG_NAME
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" for k, v in row.items()})

    def _save(self) -> None:
        magnification = self.config.synthesis.magnification
        state: dict[str, Any] = {
            "train_config": dataclasses.asdict(self.config),
            "network_config": dataclasses.asdict(self.network_config),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "keypoints": self.keypoints,
            "minutes": self.minutes,
            "scale_offset_octaves": measure_offset(
                self.average, self.network_config, self.validation, magnification
            ),
            "photographs": len(self.training),
            "commit": current_commit(),
            "validation_files": [p.name for p in self.validation.paths],
        }
        save_checkpoint(state, self.checkpoint_path)

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.keypoints = state["step"], state["keypoints"]
        self.minutes = state["minutes"]
