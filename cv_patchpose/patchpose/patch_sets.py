"""All patches of one keypoint: what changes them, how they are cut, and pairs of them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cv_patchpose.histograms import PoseBins
from cv_patchpose.patches import ImagePyramid, SquareGrid, sample_square

Patches: TypeAlias = NDArray[np.uint8]
Chosen: TypeAlias = NDArray[np.bool_]

TARGETS = ("joint", "orientation", "scale")
MAX_OCTAVES = 2.0

_BINS = PoseBins()


@dataclass(frozen=True)
class Keypoint:
    """Where a patch set was cut.

    Attributes:
        image: Path of the image below the folder of images, with forward slashes.
        number: Of the keypoint in its image, from 0.
        xy_px: Place in the image, after it was shrunk, pixels.
        source: "sift" or "harris", the detector that proposed it.
    """

    image: str
    number: int
    xy_px: tuple[float, float]
    source: str


@dataclass(frozen=True)
class PatchSet:
    """The R x S patches of a keypoint, one for each rotation and scale.

    Attributes:
        keypoint: Where they were cut.
        rotation_deg: (R,) float64, degrees clockwise on screen by which the content is turned;
            the first is 0.
        octaves: (S,) float64, ascending, log2 of the factor by which the content is zoomed; one
            of them is 0.
        patches: (R, S, P, P, 3) uint8, RGB.
    """

    keypoint: Keypoint
    rotation_deg: NDArray[np.float64]
    octaves: NDArray[np.float64]
    patches: Patches

    @property
    def identity_scale(self) -> int:
        """Index of scale 1 in `octaves`."""
        return int(np.flatnonzero(self.octaves == 0)[0])

    @property
    def identity(self) -> Patches:
        """(P, P, 3) uint8, the patch at rotation 0 and scale 1."""
        reference: Patches = self.patches[0, self.identity_scale]
        return reference

    def target_mask(self, target: str) -> Chosen:
        """Tell which patches make pairs with the identity patch for a target.

        Args:
            target: "orientation": scale 1 at any rotation; "scale": rotation 0 at any scale, both
                as in the released practice; "joint": all. The identity patch with itself is one
                of them, as it is in the number of pairs that the paper gives.

        Returns:
            (R, S) bool.

        Raises:
            ValueError: Another target.
        """
        mask = np.full(self.patches.shape[:2], target == "joint")
        if target == "orientation":
            mask[:, self.identity_scale] = True
        elif target == "scale":
            mask[0] = True
        elif target != "joint":
            raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
        return mask


@dataclass(frozen=True)
class Pairs:
    """N pairs of patches with the known change between them.

    Attributes:
        reference: (N, P, P, 3) uint8, RGB, patches at rotation 0 and scale 1.
        transformed: (N, P, P, 3) uint8, RGB, the same places turned and zoomed.
        rotation_deg: (N,) float64, degrees clockwise on screen from reference to transformed.
        octaves: (N,) float64, log2 of the zoom from reference to transformed.
    """

    reference: Patches
    transformed: Patches
    rotation_deg: NDArray[np.float64]
    octaves: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number N of pairs."""
        return len(self.rotation_deg)


def keypoint_rng(seed: int, image: str, *purpose: int) -> np.random.Generator:
    """Make the generator of an image's or a keypoint's draws.

    It depends on the image's name and on nothing before it, so that any process may cut any
    keypoint.

    Args:
        seed: Of the dataset.
        image: Name of the image.
        purpose: Numbers that tell the draws of one image apart.
    """
    return np.random.default_rng([seed, zlib.crc32(image.encode()), *purpose])


def draw_changes(
    kind: str, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Choose the rotations and scales of one keypoint.

    Args:
        kind: "A": the bin centres. "B": drawn, beside the identity; see `PatchPoseConfig`.
        rng: Random generator.

    Returns:
        (36,) degrees, the first 0, ascending; and (13,) octaves, ascending, one of them 0.
    """
    if kind == "A":
        return _BINS.orientation_centers_deg, _BINS.scale_centers_octaves
    degrees = rng.choice(np.arange(1, 360), _BINS.orientation - 1, replace=False)
    octaves = rng.uniform(-MAX_OCTAVES, MAX_OCTAVES, _BINS.scale - 1)
    return np.sort([0.0, *degrees]), np.sort([0.0, *octaves])


def cut_patches(
    pyramid: ImagePyramid,
    xy_px: tuple[float, float],
    rotation_deg: ArrayLike,
    octaves: ArrayLike,
    patch_size: int,
) -> Patches:
    """Cut patches of one place, its content turned and zoomed.

    Each is read from the image in one anti-aliased step, at a place between pixels: a window of
    patch_size / 2^octaves pixels, turned against the rotation. (The released practice resizes the
    whole image, cuts at whole pixels, turns the cut and keeps its middle.)

    Args:
        pyramid: Of the color image.
        xy_px: Place, pixels.
        rotation_deg: Degrees clockwise on screen by which the content is turned; any shape that
            broadcasts with `octaves`.
        octaves: log2 of the factor by which the content is zoomed.
        patch_size: P.

    Returns:
        (..., P, P, 3) uint8, RGB, of the shape of the two together.
    """
    turn, zoom = np.broadcast_arrays(np.asarray(rotation_deg), np.exp2(octaves))
    centers = np.broadcast_to(np.asarray(xy_px), (turn.size, 2))
    sampled = sample_square(
        pyramid, centers, (patch_size / zoom).ravel(), -turn.ravel(), SquareGrid(patch_size)
    )
    levels = np.rint(np.moveaxis(sampled, 1, -1) * 255).astype(np.uint8)
    return levels.reshape(*turn.shape, patch_size, patch_size, 3)


def cut_patch_set(
    pyramid: ImagePyramid, keypoint: Keypoint, kind: str, patch_size: int, seed: int
) -> PatchSet:
    """Cut all patches of a keypoint.

    Args:
        pyramid: Of the color image.
        keypoint: Where.
        kind: Of the dataset, see `draw_changes`.
        patch_size: P.
        seed: Of the dataset.
    """
    rng = keypoint_rng(seed, keypoint.image, keypoint.number, 0)
    rotation_deg, octaves = draw_changes(kind, rng)
    patches = cut_patches(pyramid, keypoint.xy_px, rotation_deg[:, None], octaves, patch_size)
    return PatchSet(keypoint, rotation_deg, octaves, patches)
