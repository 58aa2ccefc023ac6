"""Which images a dataset is made of, their splits, and the shards they are written to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cv_patchpose.files import find_images
from cv_patchpose.patchpose.options import PatchPoseConfig
from cv_patchpose.patchpose.patch_sets import Chosen, PatchSet, keypoint_rng

LAYOUTS = ("auto", "folder", "spair")
SPLITS = ("train", "val", "test")
SPLIT_RULES = ("image", "pairs")

_SPAIR_FOLDER = "JPEGImages"
_SPAIR_NAME = "SPair-71k"  # what its archive unpacks to


@dataclass(frozen=True)
class Shard:
    """Images whose patch sets are written as one file.

    Attributes:
        name: Of the file.
        split: Of the images, where the split is by image.
        images: Their names.
    """

    name: str
    split: str
    images: tuple[str, ...]


def list_images(root: Path, layout: str = "auto") -> list[str]:
    """List the images of a dataset.

    Args:
        root: Folder of images.
        layout: "folder": every image file below the folder. "spair": SPair-71k, the images are
            those in JPEGImages/<class>/; its annotations, segmentations and lists of pairs may be
            missing and are not read, for pairs are made of one image here; the root may also be
            the folder that SPair-71k was unpacked in. "auto": "spair" where there is a folder
            JPEGImages, otherwise "folder".

    Returns:
        Paths below the root, with forward slashes, sorted.

    Raises:
        ValueError: An unknown layout, no such folder, or fewer than 3 images: one for each split.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    below = [root / _SPAIR_FOLDER, root / _SPAIR_NAME / _SPAIR_FOLDER]
    spair = next((folder for folder in below if folder.is_dir()), None)
    if layout == "spair" and spair is None:
        raise ValueError(
            f"layout: expected a folder {_SPAIR_FOLDER} in {root} as in SPair-71k, got none; give "
            "the folder that holds it, or layout folder for any tree of images"
        )
    searched = root if spair is None or layout == "folder" else spair
    names = sorted(path.relative_to(root).as_posix() for path in find_images(searched))
    if len(names) < len(SPLITS):
        raise ValueError(f"images: expected at least 3, one for each split, got {len(names)}")
    return names


def plan_shards(images: Sequence[str], config: PatchPoseConfig) -> list[Shard]:
    """Divide images into splits, by seed, and these into shards.

    Args:
        images: Names, in the order of :func:`list_images`; at least 3.
        config: Of the dataset.

    Returns:
        Shards of shuffled images, each within one split; every split gets at least one.
    """
    order = [images[i] for i in np.random.default_rng(config.seed).permutation(len(images))]
    held = max(1, min(round(config.held_out * len(images)), (len(images) - 1) // 2))
    parts = {"train": order[2 * held :], "val": order[held : 2 * held], "test": order[:held]}
    step = config.images_per_shard
    return [
        Shard(f"{split}-{first // step:05d}.zip", split, tuple(part[first : first + step]))
        for split, part in parts.items()
        for first in range(0, len(part), step)
    ]


def pair_split_mask(patch_set: PatchSet, split: str, config: PatchPoseConfig) -> Chosen:
    """Tell which pairs of a keypoint belong to a split where all pairs are shuffled.

    This is the released practice: every keypoint has pairs in all splits, so that val and test show
    what was trained on. Each pair falls into val or test with the chance `held_out`.

    Args:
        patch_set: Of the keypoint.
        split: One of `SPLITS`.
        config: Of the dataset.

    Returns:
        (R, S) bool.
    """
    keypoint = patch_set.keypoint
    rng = keypoint_rng(config.seed, keypoint.image, keypoint.number, 1)
    drawn = rng.random(patch_set.patches.shape[:2])
    place = (drawn < 2 * config.held_out).astype(int) + (drawn < config.held_out)
    return np.asarray(place == SPLITS.index(split))
