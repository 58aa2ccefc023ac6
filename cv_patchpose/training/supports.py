"""What SIFT's descriptor sees of keypoints in the views that a network learns from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.estimator import PoseEstimator
from cv_patchpose.grids import PolarGrid, SquareGrid
from cv_patchpose.histograms import find_modes, log_scale_prior
from cv_patchpose.patches import ImagePyramid, sample_patches
from cv_patchpose.training.placement import Placement

BIN_SIZES = 1.5  # sides of SIFT's four by four cells, in sizes of the keypoint
REACH_BINS = 3.5  # how far the corner of the outermost cells can turn, and what blends into them
GRID = SquareGrid(size=21)


class Supports:
    """Cuts the supports of descriptors, at the sizes that a model finds.

    Sizes are never found exactly: what a descriptor makes of an angle it makes of it at such a
    size.

    Args:
        model: name of a bundled model or path of an ONNX file.
        magnification: the windows of keypoints over their sizes, as they are placed.

    Raises:
        ModelError: no such model.
        ValueError: a model of colour patches.
    """

    def __init__(self, model: str, magnification: float) -> None:
        # One thread: the producers of views, which ask, are threads already.
        self._estimator = PoseEstimator(model, num_threads=1)
        if self._estimator.metadata.color:
            raise ValueError(f"sizes: expected a model of grey patches, got {model!r}")
        self._magnification = magnification

    def cut(self, pyramids: Sequence[ImagePyramid], placed: Placement) -> NDArray[np.float32]:
        """Cut upright supports of B keypoints out of V views.

        Args:
            pyramids: of the views, grey.
            placed: where the keypoints are seen.

        Returns:
            (B, V, P, P), 2 * `REACH_BINS` cells wide.
        """
        patches = []
        for view, pyramid in enumerate(pyramids):
            xy_px = placed.xy_px[:, view]
            size_px = placed.window_px[:, view] / self._magnification
            size_px = size_px * self._scale(pyramid, xy_px, size_px, placed.scale_sigma)
            patches.append(_sample(pyramid, xy_px, 2 * REACH_BINS * BIN_SIZES * size_px, GRID))
        return np.stack(patches, 1)[:, :, 0].astype(np.float32)

    def _scale(
        self,
        pyramid: ImagePyramid,
        xy_px: NDArray[np.float64],
        size_px: NDArray[np.float64],
        sigma: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Find the factors on the sizes of B keypoints."""
        metadata = self._estimator.metadata
        window_px = metadata.magnification * size_px
        patches = _sample(pyramid, xy_px, window_px, metadata.grid, metadata.standardize)
        offset = metadata.scale_offset_octaves
        histograms = self._estimator.histograms(
            patches, log_scale_prior(sigma, metadata.bins, offset)
        )
        poses = find_modes(
            histograms, metadata.bins, scale_prior_sigma=sigma, scale_offset_octaves=offset
        )
        return poses.scale


def _sample(
    pyramid: ImagePyramid,
    xy_px: NDArray[np.float64],
    window_px: NDArray[np.float64],
    grid: PolarGrid | SquareGrid,
    standardize: bool = False,
) -> NDArray[np.float32]:
    upright = np.zeros(len(xy_px))
    return sample_patches(
        pyramid, xy_px, window_px, upright, grid, standardize=standardize, num_threads=1
    )
