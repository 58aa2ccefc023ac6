"""What a PatchPose dataset is made with: one frozen dataclass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

KINDS = ("A", "B")
PATCH_SIZES = (32, 64)

_MOST_SHARD_PIXELS = 65_536  # of the identity patches: 92 MB of all 468 patches of each keypoint
_LEAST = {"keypoints_per_image": 1, "images_per_shard": 1, "long_side_px": 1, "seed": 0}


@dataclass(frozen=True, kw_only=True)
class PatchPoseConfig:
    """Everything that decides the pairs of a dataset, beside its images.

    Attributes:
        kind: "A": rotations 0, 10, ..., 350 degrees and the 13 bin-centre scales. "B": 35 random
            whole degrees and 12 random scales in [1/4, 4], uniform in octaves, and the identity.
        patch_size: P, side of the patches, 32 or 64 pixels.
        keypoints_per_image: At most this many of each image, half of them SIFT's, half corners.
        min_content: Keypoints whose patches differ less than this, in grey levels of 255, are
            left out; see `selection.measure_content`. The default leaves out a fifth of the
            candidates of photographs at 32 pixels, the share that the released practice drops.
        border_px: Keypoints lie at least this far from the border; None: the released rule,
            twice ceil(1.415 P), which keeps every window of P / (1/4) pixels inside the image
            however it is turned. With less, the border is replicated beyond.
        long_side_px: Larger images are shrunk to this first.
        held_out: Share of the images, or of the pairs, of each of the splits val and test.
        images_per_shard: Images whose patches are written as one file; together with
            keypoints_per_image at most 64 keypoints at 32 pixels and 16 at 64, which bounds memory.
        seed: Of everything random.

    Raises:
        ValueError: A field out of range.
    """

    kind: str = "A"
    patch_size: int = 32
    keypoints_per_image: int = 3
    min_content: float = 27.0
    border_px: int | None = None
    long_side_px: int = 640
    held_out: float = 0.05
    images_per_shard: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        _require(self.kind in KINDS, "kind", f"one of {', '.join(KINDS)}", self.kind)
        sizes = " or ".join(map(str, PATCH_SIZES))
        _require(self.patch_size in PATCH_SIZES, "patch_size", sizes, self.patch_size)
        for name, least in _LEAST.items():
            _require_whole(name, getattr(self, name), least)
        if self.border_px is not None:
            _require_whole("border_px", self.border_px, 0)
        content, share = self.min_content, self.held_out
        expected = "a finite number of at least 0"
        _require(_is_real(content) and content >= 0, "min_content", expected, content)
        expected = "a share above 0 and below 1/2"
        _require(_is_real(share) and 0 < share < 0.5, "held_out", expected, share)

        most, held = _MOST_SHARD_PIXELS // self.patch_size**2, self.keypoints_per_image
        expected = f"so few that a shard holds at most {most} keypoints, {held} an image"
        fits = self.images_per_shard * held <= most
        _require(fits, "images_per_shard", expected, self.images_per_shard)

    @property
    def margin_px(self) -> int:
        """Distance that keypoints keep from the border, pixels."""
        released = 2 * math.ceil(1.415 * self.patch_size)
        return released if self.border_px is None else self.border_px


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _require_whole(name: str, value: Any, least: int) -> None:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    _require(whole and value >= least, name, f"a whole number of at least {least}", value)


def _require(holds: bool, name: str, expected: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
