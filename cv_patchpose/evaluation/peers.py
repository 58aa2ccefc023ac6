"""Published estimators the benchmarks compare with; they need the eval extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.patches import SquareGrid, build_pyramid, sample_square

_GRID = SquareGrid(size=32)
_BATCH = 1024


class OriNet:
    """OriNet: a network that gives the orientation of a 32 x 32 grey patch.

    Args:
        weights_folder: Folder that holds ``OriNet.pth``.

    Raises:
        ImportError: torch or kornia is missing.
        ValueError: The weights are missing; names the file.

    Source:
        Mishkin, Radenovic and Matas, "Repeatability is not enough", ECCV 2018, in the
        implementation of kornia.
    """

    def __init__(self, weights_folder: Path | None) -> None:
        if weights_folder is None:
            raise ValueError("peer_weights: expected a folder with OriNet.pth for orinet, got none")
        path = weights_folder / "OriNet.pth"
        if not path.is_file():
            raise ValueError(f"peer_weights: expected a file {path}, got none")
        try:
            import torch
            from kornia.feature import OriNet as KorniaOriNet
        except ImportError as error:
            raise ImportError("orinet needs: pip install 'cv-patchpose[eval]'") from error
        self._torch = torch
        self._network: Any = KorniaOriNet(pretrained=False)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        self._network.load_state_dict(checkpoint["state_dict"])
        self._network.eval()

    def __call__(
        self, image: NDArray[np.uint8], xy_px: NDArray[np.float64], window_px: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Estimate orientations.

        Args:
            image: (h, w, 3) uint8, BGR.
            xy_px: (N, 2) centres, pixels.
            window_px: (N,) sides of the support.

        Returns:
            (N,) degrees clockwise on screen in [0, 360).
        """
        patches = sample_square(build_pyramid(image), xy_px, window_px, np.zeros(len(xy_px)), _GRID)
        with self._torch.inference_mode():
            angles = [
                self._network(self._torch.from_numpy(patches[start : start + _BATCH])).numpy()
                for start in range(0, len(patches), _BATCH)
            ]
        counter_clockwise = np.concatenate([np.empty(0, np.float32), *angles])
        return np.asarray(-np.degrees(counter_clockwise.astype(np.float64)) % 360.0)
