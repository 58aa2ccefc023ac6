"""Gradients around points, and how they turn between views that are slanted against each other.

Under a similarity everything turns by one angle. Else no rotation maps the one view to the other:
that of `homography.nearest_similarity` is nearest to the map of the points, that of
:func:`rotation_of_gradients` to the map of the gradients, which descriptors are made of.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.grids import SquareGrid
from cv_patchpose.homography import nearest_similarity
from cv_patchpose.patches import build_pyramid, sample_patches

SIFT_SIGMA = 3.0  # sizes of the keypoint: of SIFT's descriptor, which stops at 1.25 of it
REACH = 2.5  # sigmas from the centre to the border of what is measured
_GRID = SquareGrid(size=24)
_LEAST = 1e-9  # keeps flat patches from having no moments


def gradient_moments(
    image: NDArray[np.uint8], xy_px: NDArray[np.float64], sigma_px: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Measure the second moments of the gradients around N points of an image.

    Args:
        image: (H, W) or BGR (H, W, 3) uint8.
        xy_px: (N, 2) points.
        sigma_px: (N,) standard deviations of the Gaussians by which gradients count.

    Returns:
        (N, 2, 2), of no unit; of a flat patch, the same in all directions.

    Source: the structure tensor of Foerstner and Guelch, ISPRS 1987.
    """
    upright = np.zeros(len(xy_px))
    patches = sample_patches(
        build_pyramid(image), xy_px, 2 * REACH * sigma_px, upright, _GRID, num_threads=1
    )[:, 0].astype(np.float64)
    offset = (np.arange(_GRID.size) - (_GRID.size - 1) / 2) * (2 * REACH / _GRID.size)
    weight = np.exp(-(offset**2 + offset[:, None] ** 2) / 2)
    down, right = np.gradient(patches, axis=(1, 2))
    gradient = np.stack((right, down), -1)
    moments = np.einsum("nhwi,nhwj,hw->nij", gradient, gradient, weight)
    return np.asarray(moments + _LEAST * np.eye(2))


def rotation_of_gradients(
    first: NDArray[np.float64], second: NDArray[np.float64], moments: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Find the rotation that turns the gradients of one view best onto those of another.

    Gradients are mapped by the inverse transposed of what maps points: those across a straight
    edge turn as the edge does. The squared differences are least for the rotation in the polar
    decomposition of the cross moment.

    Args:
        first: (..., 2, 2) map from the image to view 1 at the point.
        second: (..., 2, 2) likewise to view 2.
        moments: (..., 2, 2) second moments of the image's gradients around the point.

    Returns:
        (...) degrees clockwise on screen in (-180, 180].

    Source: ours, by the orthogonal Procrustes problem, Schoenemann, Psychometrika 1966.
    """
    back1, back2 = np.linalg.inv(first), np.linalg.inv(second)
    return nearest_similarity(back2.swapaxes(-1, -2) @ moments @ back1)[1]
