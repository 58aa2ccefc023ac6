"""Published networks of kornia with weights from a folder; they need the eval extra."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_FOREIGN = (
    *(RuntimeError, KeyError, AttributeError, TypeError, ValueError),
    *(EOFError, pickle.UnpicklingError),
)


# Where the authors publish them, as kornia's own code and the repositories have it.
_SOURCES = {
    "AffNet.pth": "https://github.com/ducha-aiki/affnet/raw/master/pretrained/AffNet.pth",
    "HardTFeat.pth": "https://github.com/ducha-aiki/affnet/raw/master/HardTFeat.pth",
    "OriNet.pth": "https://github.com/ducha-aiki/affnet/raw/master/pretrained/OriNet.pth",
    "checkpoint_liberty_with_aug.pth": "https://github.com/DagnyT/hardnet/raw/master/pretrained/"
    "train_liberty_with_aug/checkpoint_liberty_with_aug.pth",
    "keynet_pytorch.pth": "https://github.com/axelBarroso/Key.Net-Pytorch/raw/main/model/weights/"
    "keynet_pytorch.pth",
    "sosnet_32x32_liberty.pth": "https://github.com/yuruntian/SOSNet/raw/master/sosnet-weights/"
    "sosnet_32x32_liberty.pth",
    "tfeat-liberty.params": "https://github.com/vbalnt/tfeat/raw/master/pretrained-models/"
    "tfeat-liberty.params",
}


def import_torch(needed_by: str) -> tuple[ModuleType, ModuleType]:
    """Import torch, with the threads OpenCV has, and kornia.feature.

    Args:
        needed_by: For the message.

    Raises:
        ImportError: One of them is missing; says how to get them.
    """
    try:
        import kornia.feature as feature
        import torch
    except ImportError as error:
        raise ImportError(f"{needed_by} needs: pip install 'cv-patchpose[eval]'") from error
    # A worker's share of the processors is set for OpenCV; torch would take all of them.
    torch.set_num_threads(max(1, cv2.getNumThreads()))
    return torch, feature


def find_weights(folder: Path | None, file_name: str, needed_by: str) -> Path:
    """Find a weights file.

    Raises:
        ValueError: No folder was given or the file is not in it; names it and where it is from.
    """
    source = f"download it from {_SOURCES[file_name]}"
    if folder is None:
        raise ValueError(
            f"peer_weights: expected a folder with {file_name} for {needed_by}, got none; {source}"
        )
    if not (folder / file_name).is_file():
        raise ValueError(
            f"peer_weights: expected a file {folder / file_name} for {needed_by}, got none; "
            f"{source}"
        )
    return folder / file_name


def load_network(
    class_name: str,
    path: Path,
    needed_by: str,
    rename: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    **options: Any,
) -> Any:
    """Make a network of kornia.feature and fill it with weights.

    Args:
        class_name: Of the network.
        path: Weights file: a state dict, alone or under "state_dict".
        needed_by: For messages.
        rename: Brings the state dict to kornia's names.
        options: Of the network's constructor.

    Raises:
        ImportError: torch or kornia is missing.
        ValueError: The file holds other weights or none; names it.
    """
    torch, feature = import_torch(needed_by)
    network = getattr(feature, class_name)(pretrained=False, **options)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(rename(content.get("state_dict", content)))
    except _FOREIGN as error:  # what they say is of pickles and layers
        raise ValueError(
            f"peer_weights: expected weights of {needed_by} in {path}, got a broken file or "
            f"weights of something else; download it from {_SOURCES[path.name]}"
        ) from error
    return network.eval()


def gray_tensor(torch: ModuleType, image: NDArray[np.uint8]) -> Any:
    """Make a (1, 1, h, w) tensor in [0, 1] of a BGR image."""
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return torch.from_numpy(gray.astype(np.float32) / 255)[None, None]


def frames_tensor(
    torch: ModuleType, xy_px: NDArray[Any], shape: NDArray[Any], window_px: NDArray[Any]
) -> Any:
    """Make (1, N, 2, 3) frames of kornia: a patch reaches half a window from the centre.

    Args:
        torch: The module.
        xy_px: (N, 2) centres.
        shape: (N, 2, 2) of determinant 1.
        window_px: (N,) sides of the patches.
    """
    linear = shape * (window_px / 2)[:, None, None]
    frames = np.concatenate([linear, xy_px[:, :, None]], axis=2)
    return torch.from_numpy(frames.astype(np.float32))[None]
