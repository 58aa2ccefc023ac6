"""Key.Net, a learned detector, in the implementation of kornia."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.weights import (
    find_weights,
    gray_tensor,
    import_torch,
    load_network,
)
from cv_patchpose.interop import KORNIA_SCALE_PER_SIZE
from cv_patchpose.keypoints import KeypointArrays


class KeyNet:
    """Key.Net: corners of a learned response, at the scales of a pyramid.

    Args:
        weights_folder: Folder that holds ``keynet_pytorch.pth``.

    Raises:
        ImportError: torch or kornia is missing.
        ValueError: The weights are missing; names the file.

    Source:
        Barroso-Laguna, Riba, Ponsa and Mikolajczyk, "Key.Net: Keypoint Detection by Handcrafted and
        Learned CNN Filters", ICCV 2019, https://doi.org/10.1109/ICCV.2019.00593.
    """

    def __init__(self, weights_folder: Path | None) -> None:
        path = find_weights(weights_folder, "keynet_pytorch.pth", "keynet")
        self._response = load_network("KeyNet", path, "keynet")

    def detect(self, image: NDArray[np.uint8], max_points: int) -> KeypointArrays:
        """Detect the strongest points, strongest first.

        Args:
            image: (h, w, 3) uint8, BGR.
            max_points: Most points.

        Returns:
            Points without angle. Sizes are those that give HardNet the patches kornia gives it.
        """
        torch, feature = import_torch("keynet")
        detector: Any = feature.KeyNetDetector(pretrained=False, num_features=max_points)
        detector.model = self._response
        with torch.inference_mode():
            frames, response = detector(gray_tensor(torch, image))
        filled = feature.laf_is_filled(frames)[0].numpy()
        frames, response = frames[0].numpy()[filled], response[0].numpy()[filled]
        count = len(frames)
        return KeypointArrays(
            xy_px=np.asarray(frames[:, :, 2], np.float32),
            size_px=np.asarray(frames[:, 0, 0] / KORNIA_SCALE_PER_SIZE, np.float32),
            angle_deg=np.full(count, -1, np.float32),
            response=np.asarray(response, np.float32),
            octave=np.zeros(count, np.int32),
            class_id=np.full(count, -1, np.int32),
        )


@lru_cache(maxsize=1)
def load_keynet(weights_folder: Path | None) -> KeyNet:
    """Make the detector once per process."""
    return KeyNet(weights_folder)
