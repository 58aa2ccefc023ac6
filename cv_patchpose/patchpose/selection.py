"""Which keypoints of an image go into a PatchPose dataset."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, zip_longest
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.detectors import detect
from cv_patchpose.keypoints import arrays_from_keypoints
from cv_patchpose.patches import ImagePyramid, build_pyramid
from cv_patchpose.patchpose.options import PatchPoseConfig
from cv_patchpose.patchpose.patch_sets import (
    Keypoint,
    PatchSet,
    cut_patch_set,
    cut_patches,
    keypoint_rng,
)

SOURCES = ("sift", "harris")

_STRONGEST = 500  # candidates of each detector
_CONTENT_OCTAVES = (-1.0, 0.0, 1.0)


class UnusableImageError(Exception):
    """An image has nothing to offer; the message is the reason that is counted."""


def cut_image(
    image: NDArray[np.uint8], name: str, config: PatchPoseConfig
) -> tuple[list[PatchSet], int]:
    """Cut the patch sets of an image's keypoints.

    Candidates of SIFT and Harris, the strongest 500 of each, are taken in turn and in random
    order, the first from either by chance, until enough of them have the content asked for.

    Args:
        image: (H, W, 3) uint8, BGR.
        name: Of the image; decides its random draws, together with the seed.
        config: Of the dataset.

    Returns:
        At least one and at most keypoints_per_image patch sets, and the number of candidates left
        out for want of content.

    Raises:
        UnusableImageError: The image is too small, or no candidate has enough content.
    """
    image = shrink_image(image, config)
    pyramid = build_pyramid(image, color=True)
    sets: list[PatchSet] = []
    dropped = 0
    for xy_px, source in _candidates(image, name, config):
        if measure_content(pyramid, xy_px, config.patch_size) < config.min_content:
            dropped += 1
            continue
        keypoint = Keypoint(name, len(sets), xy_px, source)
        sets.append(cut_patch_set(pyramid, keypoint, config.kind, config.patch_size, config.seed))
        if len(sets) == config.keypoints_per_image:
            break
    if not sets:
        raise UnusableImageError("no keypoint with content inside the margin")
    return sets, dropped


def shrink_image(image: NDArray[np.uint8], config: PatchPoseConfig) -> NDArray[np.uint8]:
    """Shrink an image to the long side asked for.

    Raises:
        UnusableImageError: It is too small to hold a keypoint.
    """
    factor = config.long_side_px / max(image.shape)
    if factor < 1:
        small: Any = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        image = np.asarray(small, np.uint8)
    if min(image.shape[:2]) <= 2 * config.margin_px:
        raise UnusableImageError(f"not larger than twice the margin of {config.margin_px} px")
    return image


def measure_content(pyramid: ImagePyramid, xy_px: tuple[float, float], patch_size: int) -> float:
    """Measure how much turning and zooming changes a patch.

    Twelve patches, four quarter turns at half, full and double scale, are compared with their mean:
    the root of their variance over the twelve, averaged over pixels and channels. It is 0 where a
    change of pose leaves no trace, on flat ground. Rotations by other angles are not needed to see
    that, and no network either (the released practice takes features trained on ImageNet).

    Args:
        pyramid: Of the color image.
        xy_px: Place, pixels.
        patch_size: P.

    Returns:
        Grey levels of 255.
    """
    upright = cut_patches(pyramid, xy_px, 0.0, _CONTENT_OCTAVES, patch_size).astype(np.float64)
    turned = np.concatenate([np.rot90(upright, turns, axes=(1, 2)) for turns in range(4)])
    return float(np.sqrt(turned.var(axis=0).mean()))


def _candidates(
    image: NDArray[np.uint8], name: str, config: PatchPoseConfig
) -> Iterator[tuple[tuple[float, float], str]]:
    """Places and their detectors, one of each in turn."""
    rng = keypoint_rng(config.seed, name)
    columns = []
    for source in rng.permutation(SOURCES).tolist():
        places = rng.permutation(_places(image, source, config.margin_px))
        columns.append([((float(x), float(y)), source) for x, y in places])
    in_turn = chain.from_iterable(zip_longest(*columns))
    return (candidate for candidate in in_turn if candidate is not None)


def _places(image: NDArray[np.uint8], source: str, margin_px: int) -> NDArray[np.float64]:
    """(N, 2) different places of a detector's keypoints that keep the margin."""
    found = arrays_from_keypoints(detect(image, source, _STRONGEST))
    places = np.unique(found.xy_px.astype(np.float64), axis=0)
    height, width = image.shape[:2]
    room = np.array([width - 1, height - 1]) - margin_px
    return places[((places >= margin_px) & (places <= room)).all(1)]
