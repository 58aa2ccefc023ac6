"""Train the bundled models: networks of many sizes on the same views, taught by the largest.

The views are made once and seen by all. The largest network learns from the pairs alone; the
others also imitate its averaged weights, which costs them a fraction of the data that they would
need by themselves. On a GPU the step of all networks is recorded once and replayed, because small
networks spend their time on being launched. Give each member of RUN to `cv-patchpose export`, or to
`train --init`; a run cannot be resumed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cv_patchpose.commit import current_commit
from cv_patchpose.grids import PolarGrid
from cv_patchpose.histograms import PoseBins, log_scale_prior
from cv_patchpose.training.calibration import reference_patches, scale_offset
from cv_patchpose.training.checkpoint import CHECKPOINT_NAME, save_checkpoint
from cv_patchpose.training.dataset import Batch, PairStream
from cv_patchpose.training.log import Row, write_rows
from cv_patchpose.training.networks import build_network, network_config, shape_to_entry
from cv_patchpose.training.objective import Logits, PoseLoss, imitation_loss, pair_changes
from cv_patchpose.training.optimization import learning_rate
from cv_patchpose.training.options import SynthesisConfig, TrainConfig
from cv_patchpose.training.prefetch import prefetch
from cv_patchpose.training.sources import POOL_BATCHES, ViewSource, measure

RESTARTS = (100, 1000)  # steps after which the averages forget what came before
EAGER_STEPS = 12  # before the recording, which wants everything to have happened once
SYNTHESIS = SynthesisConfig(magnification=21.0)
BASE = TrainConfig(
    sigma_deg=4.0, sigma_octaves=0.1, floor=0.01, synthesis=SYNTHESIS, batch_size=256, reuse=1
)
FIRST = PolarGrid(rows=24, columns=36, rows_per_octave=3, halo=6)
SECOND = PolarGrid(rows=40, columns=72, rows_per_octave=6, halo=6)


def ring(*channels: int, hidden: int = 64) -> TrainConfig:
    """Shape a ring network: the stem's channels, then those of the layers."""
    return dataclasses.replace(
        BASE,
        network="rings",
        stem_channels=channels[0],
        channels=channels[1:],
        hidden=hidden,
        aligned=False,
    )


TEACHER = "teacher"
FAMILY = {
    TEACHER: dataclasses.replace(BASE, stem_channels=32, channels=(64, 64), hidden=128),
    "rings-32": ring(32, 32, 32, 32),
    "rings-48": ring(48, 48, 48, 48),
    "rings-64": ring(64, 64, 64, 64),
    "rings-96": ring(96, 96, 96, 96, hidden=96),
    "rings-128": ring(128, 128, 128, 128, hidden=128),
    "rings-192": ring(192, 192, 192, 192, hidden=128),
    "separable": dataclasses.replace(BASE, stride=1, separable=True, aligned=False, hidden=32),
}


class Member:
    """A network of the family with what its training needs.

    Args:
        name: of the family.
        device: to train on.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.config = name, FAMILY[name]
        self.shape = network_config(self.config)
        torch.manual_seed(self.config.seed)
        network = build_network(self.shape)
        self.network = network.to(device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).eval()
        self.loss = PoseLoss(self.shape.bins, self.config).to(device)
        gpu = device.type == "cuda"
        # A tensor on a GPU, so that a recorded step reads each new rate.
        self.rate = torch.tensor(0.0, device=device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            self.rate if gpu else 0.0,
            weight_decay=self.config.weight_decay,
            fused=gpu,
            capturable=gpu,
        )
        now, average = self.network.state_dict(), self.average.state_dict()
        names = [name for name, values in average.items() if values.is_floating_point()]
        self._average, self._now = [average[n] for n in names], [now[n] for n in names]

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the steps to come."""
        self.rate.fill_(rate)
        if self.rate.device.type == "cpu":
            self.optimizer.param_groups[0]["lr"] = rate

    def patches(self, batch: dict[str, Tensor]) -> Tensor:
        """Choose the patches of this network's grid, and the rings and columns that it reads."""
        grid = self.shape.grid
        name, sampled = ("second", SECOND) if grid.columns == SECOND.columns else ("first", FIRST)
        more = sampled.halo - grid.halo
        patches = batch[name][:, :, -grid.rows :]
        return patches[..., more : patches.shape[-1] - more].contiguous()

    def _apply(self, network: nn.Module, batch: dict[str, Tensor]) -> Logits:
        patches = self.patches(batch)
        # What a recording would remember of the cast weights must not outlive a step.
        with torch.autocast("cuda", torch.bfloat16, patches.is_cuda, cache_enabled=False):
            found = network(patches, batch["prior"])
        return Logits(*(values.float() for values in found))

    def step(self, batch: dict[str, Tensor], taught: Logits | None) -> Tensor:
        """Learn from one batch; returns the losses of scale and orientation."""
        found = self._apply(self.network, batch)
        views = Logits(*(values.unflatten(0, (-1, SYNTHESIS.views)) for values in found))
        losses = self.loss.compare(views, batch["pairs"], batch["rotation"], batch["octaves"])
        loss = losses[1] + self.config.scale_weight * losses[0]
        if taught is not None:
            loss = loss + self.config.teacher_weight * imitation_loss(found, taught)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = self.config.largest_gradient
        nn.utils.clip_grad_norm_(self.network.parameters(), limit, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._average, self._now, 1 - self.config.ema)
        return torch.stack(losses).detach()

    @torch.no_grad()
    def teach(self, batch: dict[str, Tensor]) -> Logits:
        """Tell the histograms that the averaged weights find."""
        found = self._apply(self.average, batch)
        return Logits(*(values.softmax(-1) for values in found))

    @torch.no_grad()
    def restart_average(self) -> None:
        """Let the average begin anew from the weights of now."""
        torch._foreach_copy_(self._average, self._now)


class Family:
    """All members and the step that they take together.

    Args:
        names: of the members; the teacher is always one.
        device: to train on.
        streams: of the GPU, over which the members are spread; 0: one after the other.
        record: record the step on the GPU once and replay it.
    """

    def __init__(
        self, names: list[str], device: torch.device, *, streams: int = 0, record: bool = True
    ) -> None:
        self.device = device
        self.members = [Member(name, device) for name in FAMILY if name in {TEACHER, *names}]
        self.losses = torch.zeros(len(self.members), 2, device=device)
        self.gpu = device.type == "cuda"
        self.record = record and self.gpu
        self.sides = [torch.cuda.Stream() for _ in range(streams)] if self.gpu else []
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: dict[str, Tensor] = {}
        self.steps = 0

    def step(self, batch: dict[str, Tensor]) -> None:
        """Let every member learn from a batch."""
        if not self.inputs:
            self.inputs = {name: values.to(self.device) for name, values in batch.items()}
        for name, values in batch.items():
            given = values.pin_memory() if self.gpu else values
            self.inputs[name].copy_(given, non_blocking=True)
        if self.record and self.steps == EAGER_STEPS:
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._step()
        if self.graph:
            self.graph.replay()
        elif self.gpu:
            # As the recorder asks for: the first steps happen on a stream of their own.
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._step()
            torch.cuda.current_stream().wait_stream(aside)
        else:
            self._step()
        self.steps += 1
        if self.steps in RESTARTS:
            for member in self.members:
                member.restart_average()

    def _step(self) -> None:
        taught = self.members[0].teach(self.inputs)
        main = torch.cuda.current_stream() if self.gpu else None
        for number, member in enumerate(self.members):
            told = taught if number else None
            side = self.sides[number % len(self.sides)] if self.sides else None
            if side is None:
                self.losses[number].copy_(member.step(self.inputs, told))
                continue
            if number < len(self.sides):
                side.wait_stream(main)
            with torch.cuda.stream(side):
                self.losses[number].copy_(member.step(self.inputs, told))
        for side in self.sides[: len(self.members)]:
            main.wait_stream(side)


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """Prepare a batch for the members: patches of both grids, prior, and the true changes."""
    pairs, rotation_deg, octaves = pair_changes(batch)
    prior = log_scale_prior(batch.scale_sigma.ravel(), PoseBins())
    arrays = {
        "first": batch.patches.reshape(-1, *batch.patches.shape[2:]),
        "second": batch.second_patches.reshape(-1, *batch.second_patches.shape[2:]),
        "prior": prior,
        "rotation": rotation_deg.astype(np.float32),
        "octaves": octaves.astype(np.float32),
        "pairs": pairs,
    }
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}


class Run:
    """A training of the family in a folder: each member's checkpoint.pt and log.csv.

    Args:
        photographs: folder of photographs.
        folder: to write to.
        family: to train.
        workers: processes that make views.
    """

    def __init__(self, photographs: Path, folder: Path, family: Family, workers: int) -> None:
        self.folder, self.family, self.workers = folder, family, workers
        self.source = ViewSource(photographs, BASE, family.members[-1].shape)
        for part in (self.source.training, self.source.held):
            part.find_all()
        self.origin = {"data": self.source.origin, "commit": current_commit() or ""}
        self.validation, self.references = {}, {}
        for shape in {m.shape.grid: m.shape for m in family.members}.values():
            source = copy.copy(self.source)
            source.shape = shape
            self.validation[shape.grid] = source.validation()
            self.references[shape.grid] = reference_patches(
                shape.grid, source.held, SYNTHESIS.magnification
            )
        self.rows: dict[str, list[Row]] = {member.name: [] for member in family.members}

    def train(self, minutes: float, validate_every: float) -> None:
        """Train for some minutes, validations included; validate and save now and then."""
        family, count = self.family, BASE.batch_size
        config = dataclasses.replace(BASE, budget_minutes=minutes)
        streams = [
            PairStream(
                self.source.training,
                FIRST,
                SYNTHESIS,
                batch_size=count,
                pool_size=POOL_BATCHES * count // 4,
                seed=(config.seed, number),
                reuse=config.reuse,
                second_grid=SECOND,
            )
            for number in range(self.workers)
        ]
        losses = torch.zeros_like(family.losses)
        begin, next_validation = time.monotonic(), validate_every
        with (
            tqdm(total=100.0, desc="train", mininterval=5) as bar,
            contextlib.closing(prefetch(streams, depth=4, processes=True)) as batches,
        ):
            for batch in batches:
                spent = (time.monotonic() - begin) / 60
                for member in family.members:
                    member.set_rate(learning_rate(config, min(1.0, spent / minutes)))
                family.step(tensors_of(batch))
                losses.lerp_(family.losses, 0.02)
                if family.steps % 20 == 0:
                    losses.sum().item()  # so that the processor does not run far ahead
                    bar.update(min(100.0, 100 * spent / minutes) - bar.n)
                    bar.set_postfix_str(f"{family.steps} steps")
                if spent >= next_validation or spent >= minutes:
                    self.save(spent, losses.tolist(), config)
                    next_validation = (time.monotonic() - begin) / 60 + validate_every
                if spent >= minutes:
                    break

    def save(self, minutes: float, losses: list[list[float]], config: TrainConfig) -> None:
        """Validate all members, write their logs and checkpoints."""
        seen = self.family.steps * BASE.batch_size
        for member, (scale_loss, orientation_loss) in zip(self.family.members, losses, strict=True):
            grid = member.shape.grid
            row: Row = {
                "minutes": minutes,
                "keypoints": seen,
                "scale_loss": scale_loss,
                "orientation_loss": orientation_loss,
                **measure(member.average, self.validation[grid], member.shape),
            }
            self.rows[member.name].append(row)
            folder = self.folder / member.name
            folder.mkdir(parents=True, exist_ok=True)
            write_rows(folder / "log.csv", self.rows[member.name])
            state = {
                "train_config": dataclasses.asdict(
                    dataclasses.replace(
                        member.config,
                        budget_minutes=config.budget_minutes,
                        teacher=None if member.name == TEACHER else TEACHER,
                    )
                ),
                "network_config": shape_to_entry(member.shape),
                "network": member.network.state_dict(),
                "average": member.average.state_dict(),
                "optimizer": {},
                "step": self.family.steps,
                "keypoints": seen,
                "minutes": minutes,
                "scale_offset_octaves": scale_offset(
                    member.average, self.references[grid], member.shape.bins
                ),
                "photographs": self.source.images,
                "validation_files": [Path(name).name for name in self.source.held_out],
                **self.origin,
            }
            save_checkpoint(state, folder / CHECKPOINT_NAME)
            shown = " ".join(
                f"{row[f'spoilt_{metric}']:.1f}"
                for metric in (
                    "orientation_within_5_deg",
                    "orientation_within_10_deg",
                    "scale_within_1_6_octave",
                    "scale_within_1_3_octave",
                )
            )
            tqdm.write(
                f"{minutes:5.1f} min {seen:9d} {member.name:15s} loss {scale_loss:.3f} "
                f"{orientation_loss:.3f} spoilt {shown}"
            )


def main() -> None:
    """Train the family."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path, metavar="PHOTOGRAPHS")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--validate-every", type=float, default=1.0, metavar="MINUTES")
    parser.add_argument("--members", nargs="*", choices=list(FAMILY), default=list(FAMILY))
    parser.add_argument("--workers", type=int, default=4, help="processes that make views")
    parser.add_argument("--side-streams", type=int, default=4, help="of the GPU")
    parser.add_argument("--eager", action="store_true", help="do not record the step on the GPU")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    family = Family(options.members, device, streams=options.side_streams, record=not options.eager)
    run = Run(options.photographs, options.run, family, options.workers)
    begin = time.monotonic()
    run.train(options.minutes, options.validate_every)
    print(f"{family.steps} steps in {time.monotonic() - begin:.0f} s on {describe(device)}")


def describe(device: torch.device) -> str:
    """Name the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor"


if __name__ == "__main__":
    main()
