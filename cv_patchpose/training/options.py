"""Training options: one frozen dataclass each for synthesis and trainer, light to import."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, TypeAlias

LOSSES = ("overlap", "alignment")
NETWORKS = ("polar", "rings", "resnet18")
TARGETS = ("orientation", "scale")
ROTATIONS = ("points", "gradients")
SOURCES = ("views", "patchpose")
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "constant")

_Rule: TypeAlias = tuple[str, Callable[[Any], bool]]


def _number(expected: str, holds: Callable[[Any], bool]) -> _Rule:
    return expected, lambda v: isinstance(v, Real) and math.isfinite(v) and holds(v)


def _whole(least: int) -> _Rule:
    return f"an integer >= {least}", lambda v: isinstance(v, Integral) and int(v) >= least


def _range(low: float, high: float) -> _Rule:
    expected = f"two numbers in order from {low} to {high}"
    return expected, lambda v: len(v) == 2 and low <= v[0] <= v[1] <= high


def _one_of(accepted: tuple[str, ...]) -> _Rule:
    return " or ".join(accepted), lambda v: v in accepted


_POSITIVE = _number("a finite number > 0", lambda v: v > 0)
_NOT_NEGATIVE = _number("a finite number >= 0", lambda v: v >= 0)
_SHARE = _number("a number between 0 and 1", lambda v: 0 < v < 1)
_DECAY = _number("a number from 0 to below 1", lambda v: 0 <= v < 1)
_CHANCE = _number("a number from 0 to 1", lambda v: 0 <= v <= 1)


def _check(config: object, rules: Mapping[str, _Rule]) -> None:
    """Check fields, several names to a rule.

    Raises:
        ValueError: A field that breaks its rule.
    """
    for names, (expected, holds) in rules.items():
        for name in names.split():
            value = getattr(config, name)
            if not holds(value):
                raise ValueError(f"{name}: expected {expected}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class SynthesisConfig:
    """How views, keypoints and windows are drawn.

    Args:
        canvas_px: side of a square view.
        margin_px: keypoints keep this distance from the view's border.
        views: views of each keypoint in a batch; every two of them make a pair.
        keypoints_per_view: keypoints drawn from one set of views.
        zoom_octaves: range of a view's zoom, log2.
        tilt_log_sigma: spread of the log of a view's tilt (ratio of the two axes).
        tilt_log_max: bound on the log of the tilt.
        perspective: spread of the perspective coefficients, per canvas side.
        corruption: factor on the chance of every corruption; 0 gives clean views.
        clean: chance that all views of a keypoint stay clean.
        blur_px: largest Gaussian blur, pixels.
        noise: largest standard deviation of the noise, grey levels of 255.
        jpeg_quality: range of the compression quality.
        gamma_log_sigma: spread of the log of gamma.
        negative: chance that a relit view is inverted.
        window_px: range of the support windows of corners, pixels of the photograph.
        magnification: support window of a blob over its size.
        jitter: spread of a keypoint's place, as a share of the window's diameter.
        jitter_px: the same in pixels of the view, added.
        redetected: largest share of keypoints that are blobs which SIFT finds again in all views
            or all but one: they have the places and the sizes that it finds there. Making views
            then takes more than twice the time.
        tracked: share of the other keypoints whose windows follow the zoom, as those of detectors
            that measure scale; the network is told that the scale is known to their spread.
        free: share of the keypoints left whose windows follow it up to any error; the rest have
            windows of fixed pixels.
        rotation: which rotation counts as the true one between views that are slanted against
            each other, that nearest to the map of the "points", or of the "gradients" around a
            keypoint, which descriptors are made of; see `gradients`.
        scale_range_octaves: half range of the errors of free windows, uniform.
        scale_sigma_octaves: spread of the errors of tracked windows, normal.

    Raises:
        ValueError: a field out of range.
    """

    canvas_px: int = 384
    margin_px: int = 24
    views: int = 4
    keypoints_per_view: int = 48
    zoom_octaves: tuple[float, float] = (-1.5, 1.2)
    tilt_log_sigma: float = 0.35
    tilt_log_max: float = 1.0
    perspective: float = 0.12
    corruption: float = 0.8
    clean: float = 0.25
    blur_px: float = 2.5
    noise: float = 14.0
    jpeg_quality: tuple[float, float] = (15.0, 90.0)
    gamma_log_sigma: float = 0.35
    negative: float = 0.0
    window_px: tuple[float, float] = (28.0, 160.0)
    magnification: float = 18.0
    jitter: float = 0.004
    jitter_px: float = 0.3
    redetected: float = 0.0
    tracked: float = 0.4
    free: float = 0.2
    rotation: str = "points"
    scale_range_octaves: float = 1.0
    scale_sigma_octaves: float = 0.2

    def __post_init__(self) -> None:
        """Check every field."""
        _check(self, _SYNTHESIS_RULES)
        if 2 * self.margin_px >= self.canvas_px:
            expected = f"less than half of canvas_px ({self.canvas_px})"
            raise ValueError(f"margin_px: expected {expected}, got {self.margin_px}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a network is trained; `recipes` names some whole sets of options.

    Args:
        network: "polar", "rings" or "resnet18".
        targets: histograms to learn, "orientation", "scale" or both; one only for "resnet18".
        source: "views" of photographs, spoilt, or the pairs of "patchpose" (resnet18 only).
        split_by: how the pairs of "patchpose" are divided, by "image" or by shuffled "pairs".
        orientation_bins: of the orientation histogram.
        scale_bins: of the scale histogram, spread over four octaves.
        temperature: divides the outputs of resnet18 before the softmax.
        budget_minutes: active training time; the learning rate follows its share used up.
        budget_keypoints: stop after so many keypoints instead, when not None.
        batch_size: keypoints per step; each brings its views.
        optimizer: "adamw" or "sgd".
        momentum: of SGD.
        schedule: of the learning rate, "cosine" (after a short warm-up) or "constant" (without).
        learning_rate: peak of the schedule.
        weight_decay: of the optimizer.
        largest_gradient: norm to which gradients are clipped; None: not clipped.
        ema: decay of the averaged weights, which are the ones kept; 0: the last ones.
        loss: "overlap" (ours) or "alignment" (that of the paper), see `losses`.
        sigma_deg: tolerance of the orientation's overlap loss, degrees.
        sigma_octaves: tolerance of the scale's overlap loss, octaves.
        floor: of the overlap losses, see `losses.overlap_loss`.
        scale_weight: weight of the scale's loss.
        validation_share: share of the photographs held out.
        validation_keypoints: keypoints measured at each validation.
        validate_every_minutes: time between validations, each followed by a checkpoint.
        seed: of everything random.
        device: "cpu", "cuda", or "auto": a GPU where there is one.
        threads: of PyTorch; 0 leaves its default.
        streams: threads that make batches.
        workers: processes that make batches instead, four of which each keeps ready in shared
            memory; 0: none, but the threads.
        reuse: how often a keypoint's patches are drawn, on average.
        bfloat16: forward pass in bfloat16; None: where the processor has it.
        stem_channels: first convolution's channels.
        channels: channels of the convolutions that follow it.
        hidden: width of the heads.
        stride: rings and directions of polar's patches per bin.
        separable: polar's 3 x 3 convolutions are one per channel, followed by 1 x 1.
        aligned: polar's orientation is also read from rows aligned by the scale.
        init: run or checkpoint whose weights to begin with, None for random ones; of a ring network
            with fewer channels it is widened, see `widening.widen`.
        teacher: model whose histograms are imitated too, by name or ONNX file; None for none.
        teacher_octaves: windows over which the teacher's histograms are averaged, log2 of their
            size over the network's.
        teacher_weight: of imitation, beside the loss of pairs.
        teacher_targets: histograms to imitate, "orientation", "scale" or both.
        teacher_agreement: 0: of each view the teacher tells what it finds in the pupil's patch.
            Otherwise, of keypoints tracked or found again, what it finds in all views together
            before they were spoilt, the more decidedly the larger this is, see
            `imitation.Agreement`.
        synthesis: ranges of the synthesis.

    Raises:
        ValueError: a field out of range.
    """

    network: str = "polar"
    targets: tuple[str, ...] = TARGETS
    source: str = "views"
    split_by: str = "image"
    orientation_bins: int = 36
    scale_bins: int = 13
    temperature: float = 1.0
    budget_minutes: float = 60.0
    budget_keypoints: int | None = None
    batch_size: int = 64
    optimizer: str = "adamw"
    momentum: float = 0.9
    schedule: str = "cosine"
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    largest_gradient: float | None = 5.0
    ema: float = 0.999
    loss: str = "overlap"
    sigma_deg: float = 7.0
    sigma_octaves: float = 0.18
    floor: float = 0.05
    scale_weight: float = 1.0
    validation_share: float = 0.05
    validation_keypoints: int = 512
    validate_every_minutes: float = 3.0
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    streams: int = 1
    workers: int = 0
    reuse: int = 2
    bfloat16: bool | None = None
    stem_channels: int = 16
    channels: tuple[int, ...] = (32, 32)
    hidden: int = 64
    stride: int = 2
    separable: bool = False
    aligned: bool = True
    init: str | None = None
    teacher: str | None = None
    teacher_octaves: tuple[float, ...] = (0.0,)
    teacher_weight: float = 1.0
    teacher_agreement: float = 0.0
    teacher_targets: tuple[str, ...] = TARGETS
    synthesis: SynthesisConfig = dataclasses.field(default_factory=SynthesisConfig)

    def __post_init__(self) -> None:
        """Check every field, and that they go together."""
        _check(self, _TRAIN_RULES)
        if self.network != "resnet18" and self.source != "views":
            raise ValueError(f"source: expected views for {self.network}, got {self.source!r}")
        if self.network != "resnet18" and set(self.targets) != set(TARGETS):
            raise ValueError(f"targets: expected both for {self.network}, got {self.targets!r}")
        if self.network == "rings" and (self.separable or self.aligned):
            raise ValueError("separable, aligned: expected False for rings, got True")
        if self.teacher and self.network == "resnet18":
            raise ValueError(f"teacher: expected none for resnet18, got {self.teacher!r}")


_SYNTHESIS_RULES: dict[str, _Rule] = {
    "canvas_px": _whole(64),
    "margin_px": _whole(0),
    "views": _whole(2),
    "keypoints_per_view": _whole(1),
    "zoom_octaves": _range(-10, 10),
    "tilt_log_sigma tilt_log_max perspective corruption gamma_log_sigma": _NOT_NEGATIVE,
    "jitter jitter_px scale_range_octaves scale_sigma_octaves": _NOT_NEGATIVE,
    "blur_px": _number("a finite number >= 0.3", lambda v: v >= 0.3),
    "noise": _number("a finite number >= 1", lambda v: v >= 1),
    "jpeg_quality": _range(0, 100),
    "negative clean redetected tracked free": _CHANCE,
    "rotation": _one_of(ROTATIONS),
    "window_px": _range(1, 10000),
    "magnification": _POSITIVE,
}


_TRAIN_RULES: dict[str, _Rule] = {
    "network": _one_of(NETWORKS),
    "source": _one_of(SOURCES),
    "split_by": _one_of(("image", "pairs")),
    "optimizer": _one_of(OPTIMIZERS),
    "schedule": _one_of(SCHEDULES),
    "device": _one_of(("auto", "cpu", "cuda")),
    "targets teacher_targets": (
        f"some of {', '.join(TARGETS)}",
        lambda v: len(v) > 0 and set(v) <= set(TARGETS),
    ),
    "temperature": _POSITIVE,
    "largest_gradient": ("None or a number > 0", lambda v: v is None or _POSITIVE[1](v)),
    "orientation_bins scale_bins": _whole(3),
    "budget_minutes learning_rate sigma_deg sigma_octaves validate_every_minutes": _POSITIVE,
    "budget_keypoints": ("None or an integer >= 1", lambda v: v is None or _whole(1)[1](v)),
    "batch_size": _whole(2),
    "weight_decay floor scale_weight teacher_weight teacher_agreement": _NOT_NEGATIVE,
    "ema momentum": _DECAY,
    "validation_share": _SHARE,
    "loss": _one_of(LOSSES),
    "seed threads workers": _whole(0),
    "streams reuse validation_keypoints stem_channels hidden stride": _whole(1),
    "channels": ("integers >= 1", lambda v: all(map(_whole(1)[1], v))),
    "teacher_octaves": ("at least one number", lambda v: len(v) > 0),
    "separable aligned": ("True or False", lambda v: v in (True, False)),
    "bfloat16": ("None, True or False", lambda v: v in (None, True, False)),
}
