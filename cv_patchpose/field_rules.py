"""Rules that write a keypoint's pose into the fields one kind of descriptor reads.

Sizes go in as SIFT defines them: characteristic sizes of twice the sigma, whose support window is
six times as wide. Each rule turns them into a size, octave and class_id that give its descriptor
about the same window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.histograms import NO_ANGLE_DEG
from cv_patchpose.keypoints import KeypointArrays

WINDOW = 6.0  # side of the support window over the characteristic size
BRISK_WINDOW = 2.55  # the same over the size BRISK reads and writes
_SMALLEST_SIZE_PX = 0.5  # OpenCV 4 overruns its memory from 0.43 px downwards
_SMALLEST_LEVEL_SIZE_PX = 2.0  # AKAZE and KAZE sample at round(size / 2): below, all in one point

Float64 = NDArray[np.float64]


class FieldRule(Protocol):
    """Writes the fields of a keypoint that depend on its pose for one descriptor."""

    @property
    def name(self) -> str:
        """Of the descriptor, as accepted by `rule_for`."""

    @property
    def class_id_is_free(self) -> bool:
        """Whether the descriptor leaves class_id to the caller."""

    @property
    def keeps_angle(self) -> bool:
        """Whether the descriptor turns with the angle written; if not, `describe` does."""

    @property
    def keeps_scale(self) -> bool:
        """Whether the descriptor grows with the size written; if not, `describe` does."""

    def write(self, keypoints: KeypointArrays, image_size: tuple[int, int]) -> KeypointArrays:
        """Return the keypoints with fields that fit their characteristic size.

        Sizes are held between half a pixel and the longer side of the image. Angles come out in
        [0, 360); -1, which means none, stays where the descriptor bears it, else becomes 0.

        Args:
            keypoints: With characteristic sizes, as SIFT defines them: twice the sigma.
            image_size: (height, width) of the image they are described on.

        Raises:
            ValueError: A centre outside the image, a size that is not positive, or a number that
                is not finite.
        """


@dataclass(frozen=True)
class PlainRule:
    """The descriptor reads size and angle at most; the octave is cleared.

    Attributes:
        size_factor: Size written over the characteristic size.
    """

    name: str
    keeps_angle: bool
    keeps_scale: bool
    size_factor: float = 1.0
    class_id_is_free: bool = True

    def write(self, keypoints: KeypointArrays, image_size: tuple[int, int]) -> KeypointArrays:
        """Return the keypoints with sizes in the descriptor's own measure; see `FieldRule`."""
        posed = _checked(keypoints, image_size)
        size_px = (posed.size_px * self.size_factor).astype(np.float32)
        return replace(posed, size_px=size_px, octave=np.zeros_like(posed.octave))


@dataclass(frozen=True)
class DaisyRule:
    """DAISY raises on negative angles and on centres beyond those of the border pixels.

    Such centres, half a pixel away at most, are moved onto them.
    """

    keeps_angle: bool = True
    keeps_scale: bool = False
    name: str = "daisy"
    class_id_is_free: bool = True

    def write(self, keypoints: KeypointArrays, image_size: tuple[int, int]) -> KeypointArrays:
        """Return the keypoints where DAISY accepts them; see `FieldRule`."""
        posed = _checked(keypoints, image_size)
        last = np.array([image_size[1] - 1, image_size[0] - 1], np.float32)
        return replace(
            posed,
            xy_px=np.minimum(np.maximum(posed.xy_px, 0), last),
            angle_deg=np.maximum(posed.angle_deg, np.float32(0)),
            octave=np.zeros_like(posed.octave),
        )


@dataclass(frozen=True)
class SiftRule:
    """SIFT finds its pyramid level in the octave, packed with the layer.

    Attributes:
        layers: Layers per octave (nOctaveLayers).
        sigma: Blur of the first layer, pixels.
        finer_octaves: How much less blurred the level is than SIFT has it for that size. The window
            stays: its detail tells places apart that look alike from afar.

    Source: measured on OpenCV's detector, whose own packing this reproduces.
    """

    layers: int = 3
    sigma: float = 1.6
    finer_octaves: float = 0.0
    name: str = "sift"
    class_id_is_free: bool = True
    keeps_angle: bool = True
    keeps_scale: bool = True

    def write(self, keypoints: KeypointArrays, image_size: tuple[int, int]) -> KeypointArrays:
        """Return the keypoints with the octave and layer of their size; see `FieldRule`."""
        posed = _checked(keypoints, image_size)
        level_px = posed.size_px * np.float32(2.0**-self.finer_octaves)
        return replace(posed, octave=self._packed_octave(level_px, image_size))

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


@dataclass(frozen=True)
class AffineRule:
    """AffineFeature finds its view in class_id and hands the other fields to its backend.

    The keypoints are written for its first view, which shows the image as it is. OpenCV does not
    tell which backend it has: SIFT is assumed.
    """

    name: str = "affine"
    class_id_is_free: bool = False
    keeps_angle: bool = True
    keeps_scale: bool = True

    def write(self, keypoints: KeypointArrays, image_size: tuple[int, int]) -> KeypointArrays:
        """Return the keypoints as the backend reads them in the first view; see `FieldRule`."""
        posed = SiftRule().write(keypoints, image_size)
        return replace(posed, class_id=np.zeros_like(posed.class_id))


@dataclass(frozen=True)
class OrbRule:
    """ORB reads its pyramid level from the octave, and no size.

    The size written is the diameter of the window, as ORB's detector defines it, but not rounded
    to a level.

    Attributes:
        patch_size: Side of the window on its level, pixels.
        scale_factor: Between levels; 1: all of them are the image itself.
        first_level: Level that holds the image itself.
    """

    patch_size: int = 31
    scale_factor: float = 1.2
    first_level: int = 0
    name: str = "orb"
    class_id_is_free: bool = True
    keeps_angle: bool = True

    @property
    def keeps_scale(self) -> bool:
        """Whether the levels differ in size; see `FieldRule`."""
        return self.scale_factor > 1

    def write(self, keypoints: KeypointArrays, image_size: tuple[int, int]) -> KeypointArrays:
        """Return the keypoints with the octave of their size; see `FieldRule`."""
        posed = _checked(keypoints, image_size)
        window_px = WINDOW * posed.size_px.astype(np.float64)
        # Beyond, a side of the level falls below 8 pixels, and soon to none.
        last = np.floor(self._steps(min(image_size) / 8)) + self.first_level
        octave = np.rint(self._steps(window_px / self.patch_size)) + self.first_level
        octave = np.clip(octave, 0, np.maximum(last, 0)).astype(np.int32)
        return replace(posed, size_px=window_px.astype(np.float32), octave=octave)

    def _steps(self, ratio: Float64 | float) -> Float64:
        if not self.keeps_scale:
            return np.zeros_like(ratio, np.float64)
        return np.asarray(np.log(ratio) / np.log(self.scale_factor))


@dataclass(frozen=True)
class AkazeRule:
    """AKAZE finds its level in class_id and, in the octave, how often that is halved.

    Attributes:
        octaves: Of the scale space (nOctaves), fewer on small images.
        layers: Levels per octave (nOctaveLayers).
        size_factor: Size written over the characteristic size; its binary descriptor has a window
            of 10, its KAZE descriptor one of 12 times the size written.
    """

    octaves: int = 4
    layers: int = 4
    size_factor: float = 0.6
    keeps_angle: bool = True
    keeps_scale: bool = True
    name: str = "akaze"
    class_id_is_free: bool = False

    def write(self, keypoints: KeypointArrays, image_size: tuple[int, int]) -> KeypointArrays:
        """Return the keypoints with the level of their size; see `FieldRule`."""
        posed = _checked(keypoints, image_size)
        size_px = np.maximum(posed.size_px * self.size_factor, _SMALLEST_LEVEL_SIZE_PX)
        last = self.layers * self._octaves_on(image_size) - 1
        level = np.clip(np.rint(self.layers * np.log2(size_px / 4.8)), 0, last).astype(np.int32)
        return replace(
            posed, size_px=size_px.astype(np.float32), octave=level // self.layers, class_id=level
        )

    def _octaves_on(self, image_size: tuple[int, int]) -> int:
        """Count the octaves AKAZE builds: after the first, none below 80 x 40 pixels."""
        height, width = image_size
        halvings = range(1, self.octaves)
        return 1 + sum(width >> i >= 80 and height >> i >= 40 for i in halvings)


@dataclass(frozen=True)
class KazeRule:
    """KAZE finds its level in class_id, and measures the angle itself.

    Level 0 is left out: its derivatives exist only during detection, and compute() makes NaN of it.

    Attributes:
        octaves: Of the scale space (nOctaves).
        layers: Levels per octave (nOctaveLayers).
    """

    octaves: int = 4
    layers: int = 4
    name: str = "kaze"
    class_id_is_free: bool = False
    keeps_angle: bool = False
    keeps_scale: bool = True

    def write(self, keypoints: KeypointArrays, image_size: tuple[int, int]) -> KeypointArrays:
        """Return the keypoints with the level of their size; see `FieldRule`."""
        posed = _checked(keypoints, image_size)
        size_px = np.maximum(posed.size_px / 2, np.float32(_SMALLEST_LEVEL_SIZE_PX))
        last = self.layers * self.octaves - 1
        level = np.clip(np.rint(self.layers * np.log2(size_px / 3.2)), 1, last).astype(np.int32)
        return replace(posed, size_px=size_px, octave=level // self.layers, class_id=level)


def _checked(keypoints: KeypointArrays, image_size: tuple[int, int]) -> KeypointArrays:
    """Return the keypoints with sizes and angles within bounds; ValueError for senseless ones."""
    keypoints.check(image_size)
    angle_deg = keypoints.angle_deg
    turned = np.where(angle_deg == NO_ANGLE_DEG, angle_deg, angle_deg % np.float32(360))
    # The remainder of a tiny negative angle rounds to 360.
    turned[turned >= 360] = 0
    longest = max(*image_size, _SMALLEST_SIZE_PX)
    return replace(
        keypoints,
        size_px=np.clip(keypoints.size_px, np.float32(_SMALLEST_SIZE_PX), np.float32(longest)),
        angle_deg=turned.astype(np.float32),
    )
