"""Published descriptors of patches, in the implementation of kornia."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.interface import AffineKeypoints
from cv_patchpose.evaluation.weights import (
    find_weights,
    frames_tensor,
    gray_tensor,
    import_torch,
    load_network,
)
from cv_patchpose.keypoints import KeypointArrays

StateDict = Mapping[str, Any]

_BATCH = 1024
_PATCH_PX = 32
# The side of a patch in characteristic sizes (twice the sigma).
_MAGNIFICATION = 12.0


def _rename_hardtfeat(weights: StateDict) -> StateDict:
    """Bring HardTFeat, whose last layer is a convolution of the whole map, to kornia's TFeat."""
    names = {"features.0": "features.1", "features.3": "features.4", "classifier.1": "descr.0"}
    kept = {
        f"{new}.{part}": weights[f"{old}.{part}"]
        for old, new in names.items()
        for part in ("weight", "bias")
    }
    return kept | {"descr.0.weight": kept["descr.0.weight"].flatten(1)}


@dataclass(frozen=True)
class _Published:
    """A network and how its weights are named.

    Attributes:
        class_name: In kornia.feature.
        file_name: Of the weights.
        rename: Brings them to kornia's names.
        normalize: Whether rows are brought to length 1, which the network does not do itself.
    """

    class_name: str
    file_name: str
    rename: Callable[[StateDict], StateDict] = dict
    normalize: bool = False


_PUBLISHED = {
    "hardnet": _Published("HardNet", "checkpoint_liberty_with_aug.pth"),
    "sosnet": _Published("SOSNet", "sosnet_32x32_liberty.pth"),
    "hardtfeat": _Published("TFeat", "HardTFeat.pth", _rename_hardtfeat, normalize=True),
    "tfeat": _Published("TFeat", "tfeat-liberty.params"),
}
PATCH_DESCRIPTORS = tuple(_PUBLISHED)


class PatchDescriptor:
    """A network that describes 32 x 32 grey patches.

    Patches are sampled by kornia for all methods alike, along the keypoint's affine shape where it
    has one, so that only the pose differs.

    Args:
        name: One of :data:`PATCH_DESCRIPTORS`.
        weights_folder: Folder that holds the file the message names.

    Raises:
        ImportError: torch or kornia is missing.
        ValueError: The weights are missing; names the file.

    Source:
        HardNet and HardTFeat: Mishchuk et al., NeurIPS 2017; SOSNet: Tian et al., CVPR 2019; TFeat:
        Balntas et al., BMVC 2016.
    """

    def __init__(self, name: str, weights_folder: Path | None) -> None:
        self._published = _PUBLISHED[name]
        path = find_weights(weights_folder, self._published.file_name, name)
        self._torch, self._feature = import_torch(name)
        self._network = load_network(self._published.class_name, path, name, self._published.rename)

    def __call__(self, image: NDArray[np.uint8], keypoints: KeypointArrays) -> NDArray[np.float32]:
        """Describe keypoints.

        Args:
            image: (h, w, 3) uint8, BGR.
            keypoints: N keypoints with characteristic sizes; without an angle they are upright.

        Returns:
            (N, 128) float32.
        """
        torch = self._torch
        if not len(keypoints):
            return np.empty((0, 128), np.float32)
        window_px = keypoints.size_px.astype(np.float64) * _MAGNIFICATION
        frames = frames_tensor(torch, keypoints.xy_px, _shapes(keypoints), window_px)
        with torch.inference_mode():
            patches = self._feature.extract_patches_from_pyramid(
                gray_tensor(torch, image), frames, _PATCH_PX
            )[0]
            rows = torch.cat([self._network(batch) for batch in patches.split(_BATCH)])
            if self._published.normalize:
                rows = torch.nn.functional.normalize(rows)
        return np.asarray(rows.numpy(), np.float32)


@lru_cache(maxsize=4)
def load_patch_descriptor(name: str, weights_folder: Path | None) -> PatchDescriptor:
    """Make a descriptor once per process."""
    return PatchDescriptor(name, weights_folder)


def _shapes(keypoints: KeypointArrays) -> NDArray[np.float64]:
    """(N, 2, 2) shapes of determinant 1: the keypoint's own, or its rotation."""
    if isinstance(keypoints, AffineKeypoints):
        return keypoints.shape
    turn = np.radians(np.where(keypoints.angle_deg < 0, 0, keypoints.angle_deg).astype(np.float64))
    cos, sin = np.cos(turn), np.sin(turn)
    return np.stack([cos, -sin, sin, cos], axis=1).reshape(-1, 2, 2)
