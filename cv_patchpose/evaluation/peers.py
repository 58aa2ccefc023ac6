"""Published estimators of pose the benchmarks compare with; they need the eval extra."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.weights import (
    find_weights,
    frames_tensor,
    gray_tensor,
    import_torch,
    load_network,
)
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
        path = find_weights(weights_folder, "OriNet.pth", "orinet")
        self._torch, _ = import_torch("orinet")
        self._network = load_network("OriNet", path, "orinet")

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


class AffNet:
    """AffNet: a network that gives the affine shape of a 32 x 32 grey patch.

    Args:
        weights_folder: Folder that holds ``AffNet.pth``, and ``OriNet.pth`` if it orients.
        orient: Whether OriNet rotates the shapes, looking at them after they were made round.

    Raises:
        ImportError: torch or kornia is missing.
        ValueError: Weights are missing; names the file.

    Source:
        As :class:`OriNet`.
    """

    def __init__(self, weights_folder: Path | None, *, orient: bool) -> None:
        name = "orinet+affnet" if orient else "affnet"
        path = find_weights(weights_folder, "AffNet.pth", name)
        self._torch, feature = import_torch(name)
        self._steps = [
            load_network("LAFAffNetShapeEstimator", path, name, preserve_orientation=False)
        ]
        if orient:
            path = find_weights(weights_folder, "OriNet.pth", name)
            self._steps.append(
                feature.LAFOrienter(32, angle_detector=load_network("OriNet", path, name))
            )

    def __call__(
        self, image: NDArray[np.uint8], xy_px: NDArray[np.float64], window_px: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Estimate shapes.

        Args:
            image: (h, w, 3) uint8, BGR.
            xy_px: (N, 2) centres, pixels.
            window_px: (N,) sides of the support.

        Returns:
            (N, 2, 2) of determinant 1, from the patch to the image. Unless oriented, the patch's y
            axis points down in the image.
        """
        if not len(xy_px):
            return np.empty((0, 2, 2))
        round_shape = np.broadcast_to(np.eye(2), (len(xy_px), 2, 2))
        gray = gray_tensor(self._torch, image)
        frames = frames_tensor(self._torch, xy_px, round_shape, window_px)
        with self._torch.inference_mode():
            for step in self._steps:
                frames = step(frames, gray)
        linear = frames[0, :, :, :2].numpy().astype(np.float64)
        return np.asarray(linear / np.sqrt(np.linalg.det(linear))[:, None, None])
