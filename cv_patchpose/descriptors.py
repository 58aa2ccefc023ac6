"""Which fields of a keypoint a descriptor reads, and what they must hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.keypoints import KeypointArrays

_SMALLEST_SIZE_PX = np.float32(0.5)  # OpenCV 4 overruns its memory from 0.43 px downwards


class FieldRule(Protocol):
    """Writes the fields of a keypoint that depend on its size for one descriptor."""

    @property
    def name(self) -> str:
        """Of the descriptor, as accepted by `rule_for`."""

    @property
    def class_id_is_free(self) -> bool:
        """Whether the descriptor leaves class_id to the caller."""

    def write(self, keypoints: KeypointArrays, image_size: tuple[int, int]) -> KeypointArrays:
        """Return the keypoints with fields that fit their characteristic size.

        Args:
            keypoints: With characteristic sizes, as SIFT defines them: twice the sigma.
            image_size: (height, width) of the image they are described on.
        """


@dataclass(frozen=True)
class SiftRule:
    """SIFT finds its pyramid level in the octave, packed with the layer.

    Attributes:
        layers: Layers per octave (nOctaveLayers).
        sigma: Blur of the first layer, pixels.

    Source: measured on OpenCV's detector, whose own packing this reproduces.
    """

    layers: int = 3
    sigma: float = 1.6
    name: str = "sift"
    class_id_is_free: bool = True

    def write(self, keypoints: KeypointArrays, image_size: tuple[int, int]) -> KeypointArrays:
        """Return the keypoints with the octave and layer of their size; see `FieldRule`.

        Sizes below half a pixel, which no detector emits, are raised to it.
        """
        size_px = np.maximum(keypoints.size_px, _SMALLEST_SIZE_PX)
        return replace(keypoints, size_px=size_px, octave=self._packed_octave(size_px, image_size))

    def _packed_octave(
        self, size_px: NDArray[np.float32], image_size: tuple[int, int]
    ) -> NDArray[np.int32]:
        """(N,) int32: octave in the low byte (signed), layer in the second."""
        step = np.rint(self.layers * np.log2(size_px.astype(np.float64) / (2 * self.sigma)))
        octave = np.floor_divide(step - 1, self.layers)
        last = max(np.floor(np.log2(min(image_size))) - 3, -1)
        octave = np.clip(octave, -1, last)
        layer = np.clip(step - octave * self.layers, 0, self.layers + 2)
        packed: NDArray[np.int32] = (octave.astype(np.int32) & 255) | (layer.astype(np.int32) << 8)
        return packed

    @classmethod
    def from_extractor(cls, extractor: Any) -> SiftRule:
        """Read the two settings of a cv2.SIFT object."""
        return cls(layers=int(extractor.getNOctaveLayers()), sigma=float(extractor.getSigma()))


# name: (class of the cv2 object, rule at OpenCV's default settings, rule of an object)
_RULES: dict[str, tuple[type, FieldRule, Callable[[Any], FieldRule]]] = {
    "sift": (cv2.SIFT, SiftRule(), SiftRule.from_extractor),
}


def rule_for(descriptor: Any) -> FieldRule:
    """Find the rule of a descriptor.

    Args:
        descriptor: Its name (OpenCV's default settings), or a cv2 extractor object, whose
            settings are read.

    Raises:
        ValueError: A descriptor without a rule.
    """
    for name, (extractor_class, default_rule, read_rule) in _RULES.items():
        if isinstance(descriptor, str) and descriptor == name:
            return default_rule
        if isinstance(descriptor, extractor_class):
            return read_rule(descriptor)
    accepted = ", ".join(f"{name!r}, a cv2.{entry[0].__name__}" for name, entry in _RULES.items())
    found = repr(descriptor) if isinstance(descriptor, str) else type(descriptor).__name__
    raise ValueError(f"descriptor: expected one of {accepted}, got {found}")
