"""Train ring networks of many widths on the same views, taught by the largest network among them.

The teacher learns from the pairs of views alone. The others also imitate what its averaged weights
find in the views before these were spoilt. Views are made on the device that trains; keypoints
that a detector finds again in them come from processes on the processor. On a GPU the step of all
networks is recorded once and replayed, because small networks spend their time on being launched.
Give each member of RUN to `cv-patchpose export`, or to `train --init`; a run cannot be resumed.

Which direction of a patch counts as 0 the teacher finds for itself, and not every answer serves
matching as well (docs/performance.md): `--init rings-384=CHECKPOINT` begins with that of another
network of rings, which may be narrower, and `--elder CHECKPOINT` lets all, the teacher too, imitate
another network of rings at first.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import queue
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cv_patchpose.commit import current_commit
from cv_patchpose.errors import naming
from cv_patchpose.training.calibration import reference_patches, scale_offset
from cv_patchpose.training.checkpoint import (
    CHECKPOINT_NAME,
    load_checkpoint,
    network_of,
    save_checkpoint,
    shape_of,
)
from cv_patchpose.training.dataset import Batch, PairStream, arrays_of
from cv_patchpose.training.device_synthesis import DevicePhotographs, send
from cv_patchpose.training.device_views import (
    DeviceBatch,
    DevicePool,
    DeviceViews,
    compare_views,
    rotation_from_photograph,
)
from cv_patchpose.training.imitation import Agreement
from cv_patchpose.training.log import Row, write_rows
from cv_patchpose.training.networks import (
    NetworkConfig,
    build_network,
    describe_differences,
    network_config,
    shape_to_entry,
)
from cv_patchpose.training.objective import Logits, PoseLoss, imitation_loss
from cv_patchpose.training.optimization import learning_rate
from cv_patchpose.training.options import ROTATIONS, SynthesisConfig, TrainConfig
from cv_patchpose.training.prefetch import prefetch
from cv_patchpose.training.rings import RingNetConfig
from cv_patchpose.training.sources import POOL_BATCHES, ViewSource, measure
from cv_patchpose.training.widening import can_widen, widen

RESTARTS = (200, 2000)  # steps after which the averages forget what came before
EAGER_STEPS = 12  # before the recording, which wants everything to have happened once
GROUPS = 64  # photographs of which views are made at once
POOL_KEYPOINTS = 65536
FOUND_BATCH = 256  # keypoints that come from the processor at once
FOUND_POOL = 16384
FOUND_REUSE = 4  # how often each of them is drawn, at most
FOUND_SHARE = 0.25  # of a batch
PATIENCE_S = 2.0
GUIDED = 0.4  # share of the training in which the elder is imitated, less and less
SYNTHESIS = SynthesisConfig(
    magnification=21.0, tracked=0.2, blur_px=4.0, tilt_log_sigma=0.42, zoom_octaves=(-1.6, 1.2)
)
BASE = TrainConfig(
    network="rings",
    aligned=False,
    sigma_deg=4.0,
    sigma_octaves=0.1,
    floor=0.01,
    teacher_weight=2.5,
    teacher_agreement=2.0,
    batch_size=1024,
    reuse=1,
    synthesis=SYNTHESIS,
)


def ring(width: int, hidden: int = 64) -> TrainConfig:
    """Shape a ring network of so many channels."""
    return dataclasses.replace(BASE, stem_channels=width, channels=(width,) * 3, hidden=hidden)


TEACHERS = ("rings-384", "wide")
FAMILY = {
    "wide": dataclasses.replace(
        BASE,
        network="polar",
        aligned=True,
        stride=1,
        stem_channels=64,
        channels=(64,) * 4,
        hidden=256,
    ),
    "rings-384": ring(384, 256),
    "rings-32": ring(32),
    "rings-48": ring(48),
    "rings-64": ring(64),
    "rings-96": ring(96, 96),
    "rings-192": ring(192, 128),
}


class Member:
    """A network of the family with what its training needs.

    Args:
        name: of the family.
        device: to train on.
        init: run or checkpoint whose weights to begin with, widened where they are of fewer
            channels; None for random ones.
    """

    def __init__(self, name: str, device: torch.device, init: str | None = None) -> None:
        self.name, self.config = name, dataclasses.replace(FAMILY[name], init=init)
        self.shape = network_config(self.config)
        torch.manual_seed(self.config.seed)
        network = _begun_with(init, self.shape) if init else build_network(self.shape)
        network.register_forward_pre_hook(functools.partial(_cut_patches, self.shape))
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

    def step(self, batch: DeviceBatch, taught: Logits | None, weight: Tensor | float) -> Tensor:
        """Learn from one batch, imitating what is taught by a weight beside that of the options.

        Returns:
            The losses of scale and orientation.
        """
        found = _apply(self.network, batch["patches"])
        losses = self.loss.compare(found, batch["pairs"], batch["rotation"], batch["octaves"])
        loss = losses[1] + self.config.scale_weight * losses[0]
        if taught is not None:
            loss = loss + weight * self.config.teacher_weight * imitation_loss(found, taught)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = self.config.largest_gradient
        nn.utils.clip_grad_norm_(self.network.parameters(), limit, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._average, self._now, 1 - self.config.ema)
        return torch.stack(losses).detach()

    @torch.no_grad()
    def restart_average(self) -> None:
        """Let the average begin anew from the weights of now."""
        torch._foreach_copy_(self._average, self._now)


def _cut_patches(
    shape: NetworkConfig, _: nn.Module, arguments: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    """Leave out the innermost rings and the columns of the halo that a network does not read."""
    patches, log_prior = (*arguments, None)[:2]
    rows, columns = shape.grid.rows, shape.grid.columns + 2 * shape.grid.halo
    beside = (patches.shape[3] - columns) // 2
    if log_prior is None:
        log_prior = patches.new_zeros(len(patches), shape.bins.scale)
    return patches[:, :, patches.shape[2] - rows :, beside : beside + columns], log_prior


def _apply(network: nn.Module, patches: Tensor) -> Logits:
    """Give the logits (B, V, ...) of (B, V, 1, H, W) patches."""
    # What a recording would remember of the cast weights must not outlive a step.
    with torch.autocast("cuda", torch.bfloat16, patches.is_cuda, cache_enabled=False):
        found = network(patches.flatten(0, 1).float(), None)
    return Logits(*(values.float().unflatten(0, patches.shape[:2]) for values in found))


@torch.no_grad()
def teach(network: nn.Module, batch: DeviceBatch, agree: Agreement) -> Logits:
    """Tell the histograms that a network finds in views that were not spoilt.

    Of keypoints whose scale is known beforehand, and whose windows so show the same, it is what
    it finds in all views together.
    """
    found = _apply(network, batch["exact_patches"])
    alone = Logits(*(values.softmax(-1) for values in found))
    agreed = agree(*alone, batch["turns"], batch["moves"])
    known = batch["known"][:, None, None]
    return Logits(*(torch.where(known, a, b) for a, b in zip(agreed, alone, strict=True)))


def _load_elder(checkpoint: str) -> nn.Module:
    with naming({"checkpoint": "elder"}):
        state = load_checkpoint(checkpoint)
    theirs, ours = shape_of(state), network_config(ring(64))
    if not isinstance(theirs, RingNetConfig) or (theirs.grid, theirs.bins) != (
        ours.grid,
        ours.bins,
    ):
        differences = describe_differences(theirs, ours)
        raise ValueError(f"elder: expected rings as of the family, got {differences}: {checkpoint}")
    return network_of(state).eval()


def _begun_with(checkpoint: str, shape: NetworkConfig) -> nn.Module:
    with naming({"checkpoint": "init"}):
        state = load_checkpoint(checkpoint)
    if shape_of(state) == shape:
        return network_of(state)
    if not can_widen(shape_of(state), shape):
        differences = describe_differences(shape_of(state), shape)
        raise ValueError(f"init: {checkpoint} is of another network: {differences}")
    return widen(network_of(state), shape)


class Family:
    """All members and the step that they take together.

    Args:
        names: of the members; the teacher is always one.
        device: to train on.
        teacher: its name.
        streams: of the GPU, over which the members are spread; 0: one after the other.
        record: record the step on the GPU once and replay it.
        init: checkpoints by the names of the members that begin with their weights.
        elder: checkpoint of a network of rings that all imitate, as far as `guidance` says.
    """

    def __init__(
        self,
        names: list[str],
        device: torch.device,
        *,
        teacher: str = TEACHERS[0],
        streams: int = 0,
        record: bool = True,
        init: dict[str, str] | None = None,
        elder: str | None = None,
    ) -> None:
        self.device = device
        pupils = [name for name in FAMILY if name in names and name != teacher]
        self.members = [Member(name, device, (init or {}).get(name)) for name in (teacher, *pupils)]
        self.elder = _load_elder(elder).to(device) if elder else None
        self.guidance = torch.tensor(0.0, device=device)  # a tensor, as the rates are
        self.agree = Agreement(self.members[0].shape.bins, BASE.teacher_agreement).to(device)
        self.losses = torch.zeros(len(self.members), 2, device=device)
        self.gpu = device.type == "cuda"
        self.record = record and self.gpu
        self.sides = [torch.cuda.Stream() for _ in range(streams)] if self.gpu else []
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: DeviceBatch = {}
        self.steps = 0

    def step(self, batch: DeviceBatch) -> None:
        """Let every member learn from a batch."""
        if not self.inputs:
            self.inputs = {name: values.clone() for name, values in batch.items()}
        for name, values in batch.items():
            self.inputs[name].copy_(values)
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
        taught, old = teach(self.members[0].average, self.inputs, self.agree), None
        if self.elder:
            old = teach(self.elder, self.inputs, self.agree)
            mixed = (torch.lerp(*both, self.guidance) for both in zip(taught, old, strict=True))
            taught = Logits(*mixed)
        main = torch.cuda.current_stream() if self.gpu else None
        for number, member in enumerate(self.members):
            lesson = (taught, 1.0) if number else (old, self.guidance)
            side = self.sides[number % len(self.sides)] if self.sides else None
            if side is None:
                self.losses[number].copy_(member.step(self.inputs, *lesson))
                continue
            if number < len(self.sides):
                side.wait_stream(main)
            with torch.cuda.stream(side):
                self.losses[number].copy_(member.step(self.inputs, *lesson))
        for side in self.sides[: len(self.members)]:
            main.wait_stream(side)


def prepare(batch: DeviceBatch) -> DeviceBatch:
    """Compute what the members are told of a batch."""
    pairs, rotation, octaves = compare_views(batch)
    return {
        "patches": batch["patches"],
        "exact_patches": batch["exact_patches"],
        "pairs": pairs,
        "rotation": rotation,
        "octaves": octaves,
        "known": batch["scale_sigma"][:, 0].isfinite(),
        "turns": rotation_from_photograph(batch),
        "moves": batch["log2_exact_window"] - batch["log2_window"],
    }


class Supply:
    """Batches without end, of views made on the device and of keypoints that SIFT finds again.

    Args:
        source: of the photographs.
        device: to make views on.
        workers: processes that look for keypoints again; 0: none does.
    """

    def __init__(self, source: ViewSource, device: torch.device, workers: int) -> None:
        shape = source.shape
        photographs = DevicePhotographs(source.training, device)
        self.synthesis = source.config.synthesis
        self.views = DeviceViews(photographs, shape.grid, self.synthesis, BASE.seed)
        self.device = device
        self.made, self.found = DevicePool(POOL_KEYPOINTS), DevicePool(FOUND_POOL)
        self.used = self.arrived = self.found_left = 0
        self._queue: queue.Queue[DeviceBatch | BaseException] = queue.Queue(8)
        self._stop = threading.Event()
        again = dataclasses.replace(self.synthesis, redetected=1.0, tracked=1.0)
        self._streams = [
            PairStream(
                source.training,
                shape.grid,
                again,
                batch_size=FOUND_BATCH,
                pool_size=POOL_BATCHES * FOUND_BATCH // 4,
                seed=(BASE.seed, number),
                exact=True,
            )
            for number in range(workers)
        ]

    def __enter__(self) -> Supply:
        """Begin to make views."""
        if self._streams:
            # The processes are forked by the first batch, which no thread should see.
            ahead = prefetch(self._streams, depth=4, processes=True)
            self._queue.put(_halve(next(ahead)))
            self._thread = threading.Thread(target=self._collect, args=(ahead,), daemon=True)
            self._thread.start()
        while self.made.filled < self.made.capacity // 2:
            self.made.put(self.views.make(GROUPS))
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        self._stop.set()
        if self._streams:
            self._thread.join(PATIENCE_S)  # a daemon, which may be at a batch that takes long

    def _collect(self, ahead: Generator[Batch, None, None]) -> None:
        with contextlib.closing(ahead):
            try:
                for batch in ahead:
                    self._offer(_halve(batch))
                    if self._stop.is_set():
                        return
            except BaseException as error:  # carried over to the training
                self._offer(error)

    def _offer(self, item: DeviceBatch | BaseException) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                return self._queue.put(item, timeout=0.1)

    def _receive(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                tensors = self._queue.get_nowait()
                if isinstance(tensors, BaseException):
                    raise tensors
                self.found_left += FOUND_REUSE * len(tensors["patches"])
                self.arrived += len(tensors["patches"])
                self.found.put({name: send(self.device, t) for name, t in tensors.items()})

    def __iter__(self) -> Iterator[DeviceBatch]:
        """Give batches of BASE.batch_size keypoints."""
        each = GROUPS * self.synthesis.keypoints_per_view * BASE.reuse
        while True:
            self._receive()
            found = min(round(FOUND_SHARE * BASE.batch_size), self.found_left)
            made = BASE.batch_size - found
            parts = [self.made.draw(made)] + ([self.found.draw(found)] if found else [])
            yield {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            self.used += made
            self.found_left -= found
            while self.used >= each:
                self.made.put(self.views.make(GROUPS))
                self.used -= each


def _halve(batch: Batch) -> DeviceBatch:
    """Copy a batch out of shared memory, as precise as `DevicePool` keeps it."""
    halves = {True: torch.float16, False: torch.float32}
    return {
        name: torch.from_numpy(array).to(halves[name.endswith("patches")], copy=True)
        for name, array in arrays_of(batch).items()
    }


class Run:
    """A training of the family in a folder: each member's checkpoint.pt and log.csv.

    Args:
        photographs: folder of photographs.
        folder: to write to.
        family: to train.
        workers: processes that look for keypoints again.
        rotation: of `SynthesisConfig`.
    """

    def __init__(
        self,
        photographs: Path,
        folder: Path,
        family: Family,
        workers: int,
        rotation: str = SYNTHESIS.rotation,
    ) -> None:
        self.folder, self.family, self.workers = folder, family, workers
        shape = network_config(ring(64))  # all patches are of the rings' grid
        synthesis = dataclasses.replace(SYNTHESIS, rotation=rotation)
        self.source = ViewSource(photographs, dataclasses.replace(BASE, synthesis=synthesis), shape)
        for part in (self.source.training, self.source.held):
            part.find_all()
        self.origin = {"data": self.source.origin, "commit": current_commit() or ""}
        self.validation = self.source.validation()
        self.references = reference_patches(shape.grid, self.source.held, SYNTHESIS.magnification)
        self.rows: dict[str, list[Row]] = {member.name: [] for member in family.members}

    def train(self, minutes: float, validate_every: float) -> None:
        """Train for some minutes, validations included; validate and save now and then."""
        family = self.family
        config = dataclasses.replace(BASE, budget_minutes=minutes)
        losses = torch.zeros_like(family.losses)
        with (
            Supply(self.source, family.device, self.workers) as self.supply,
            tqdm(total=100.0, desc="train", mininterval=5) as bar,
        ):
            begin, next_validation = time.monotonic(), validate_every
            for batch in self.supply:
                spent = (time.monotonic() - begin) / 60
                for member in family.members:
                    member.set_rate(learning_rate(config, min(1.0, spent / minutes)))
                family.guidance.fill_(max(0.0, 1 - spent / minutes / GUIDED))
                family.step(prepare(batch))
                losses.lerp_(family.losses, 0.02)
                if family.steps % 20 == 0:
                    losses.sum().item()  # so that the processor does not run far ahead
                    bar.update(min(100.0, 100 * spent / minutes) - bar.n)
                    bar.set_postfix_str(f"{family.steps} steps, {self.supply.arrived} found again")
                if spent >= next_validation or spent >= minutes:
                    self.save(spent, losses.tolist(), config)
                    next_validation = (time.monotonic() - begin) / 60 + validate_every
                if spent >= minutes:
                    break

    def save(self, minutes: float, losses: list[list[float]], config: TrainConfig) -> None:
        """Validate all members, write their logs and checkpoints."""
        seen, teacher = self.family.steps * BASE.batch_size, self.family.members[0]
        for member, (scale_loss, orientation_loss) in zip(self.family.members, losses, strict=True):
            row: Row = {
                "minutes": minutes,
                "keypoints": seen,
                "scale_loss": scale_loss,
                "orientation_loss": orientation_loss,
                **measure(member.average, self.validation, member.shape),
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
                        synthesis=self.source.config.synthesis,
                        teacher=None if member is teacher else teacher.name,
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
                    member.average, self.references, member.shape.bins
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


def _named_checkpoint(text: str) -> tuple[str, str]:
    name, _, checkpoint = text.partition("=")
    if name not in FAMILY or not checkpoint:
        raise argparse.ArgumentTypeError(
            f"expected MEMBER=CHECKPOINT, a member of {', '.join(FAMILY)}, got {text!r}"
        )
    return name, checkpoint


def main() -> None:
    """Train the family."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path, metavar="PHOTOGRAPHS")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--validate-every", type=float, default=1.0, metavar="MINUTES")
    rings = [name for name in FAMILY if name != "wide"]
    parser.add_argument("--members", nargs="*", choices=list(FAMILY), default=rings)
    parser.add_argument(
        "--teacher",
        choices=TEACHERS,
        default=TEACHERS[0],
        help="member that teaches the others; wide is two-dimensional (rings-384)",
    )
    parser.add_argument(
        "--elder", metavar="CHECKPOINT", help="network of rings that all imitate at first"
    )
    parser.add_argument(
        "--workers", type=int, default=4, help="processes that look for keypoints again"
    )
    parser.add_argument("--side-streams", type=int, default=4, help="of the GPU")
    parser.add_argument(
        "--init",
        nargs="*",
        default=[],
        type=_named_checkpoint,
        metavar="MEMBER=CHECKPOINT",
        help="weights to begin with",
    )
    parser.add_argument(
        "--rotation",
        choices=ROTATIONS,
        default=SYNTHESIS.rotation,
        help="which counts as the true one between slanted views",
    )
    parser.add_argument("--eager", action="store_true", help="do not record the step on the GPU")
    options = parser.parse_args()
    init = dict(options.init)
    members = {options.teacher, *options.members}
    if len(init) < len(options.init) or not init.keys() <= members:
        parser.error(f"--init: expected each of {', '.join(sorted(members))} once at most")
    if min(options.workers, options.side_streams) < 0:
        parser.error("--workers, --side-streams: expected whole numbers of at least 0")
    if not (options.minutes > 0 and options.validate_every > 0):
        parser.error("--minutes, --validate-every: expected numbers above 0")
    if options.run.exists():
        parser.error(f"RUN: expected a new folder, got {options.run}")
    cv2.setNumThreads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = (
        True  # what cuDNN guesses is thirty times slower for some widths
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    family = Family(
        options.members,
        device,
        teacher=options.teacher,
        streams=options.side_streams,
        record=not options.eager,
        init=init,
        elder=options.elder,
    )
    run = Run(options.photographs, options.run, family, options.workers, options.rotation)
    begin = time.monotonic()
    run.train(options.minutes, options.validate_every)
    print(f"{family.steps} steps in {time.monotonic() - begin:.0f} s on {describe(device)}")


def describe(device: torch.device) -> str:
    """Name the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor"


if __name__ == "__main__":
    main()
