"""Points and their change of scale and orientation under a homography."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def project(homography: NDArray[np.float64], xy_px: NDArray[np.float64]) -> Points:
    """Map points by a homography.

    Args:
        homography: (3, 3), from image 1 to image 2.
        xy_px: (N, 2) points of image 1, pixels.

    Returns:
        (N, 2) points of image 2, pixels.
    """
    mapped = xy_px @ homography[:, :2].T + homography[:, 2]
    return np.asarray(mapped[:, :2] / mapped[:, 2:])


def local_jacobian(homography: NDArray[np.float64], xy_px: NDArray[np.float64]) -> Points:
    """Differentiate a homography at points.

    Args:
        homography: (3, 3), from image 1 to image 2.
        xy_px: (N, 2) points of image 1, pixels.

    Returns:
        (N, 2, 2), derivative of the image-2 point by the image-1 point.
    """
    depth = xy_px @ homography[2, :2] + homography[2, 2]
    projected = project(homography, xy_px)
    numerator = homography[:2, :2] - projected[:, :, None] * homography[2, :2]
    return np.asarray(numerator / depth[:, None, None])


def nearest_similarity(
    jacobian: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read the change of scale and orientation from 2 x 2 maps.

    The scale is the square root of the determinant, the orientation the rotation of the polar
    decomposition, which in the plane is atan2(J21 - J12, J11 + J22).

    Args:
        jacobian: (..., 2, 2), for example of :func:`local_jacobian`.

    Returns:
        Scale (...), size in image 2 over size in image 1; and angle (...), degrees clockwise on
        screen in (-180, 180].
    """
    scale = np.sqrt(np.abs(np.linalg.det(jacobian)))
    turn = np.arctan2(
        jacobian[..., 1, 0] - jacobian[..., 0, 1], jacobian[..., 0, 0] + jacobian[..., 1, 1]
    )
    return scale, np.degrees(turn)


def global_change(homography: NDArray[np.float64]) -> tuple[float, float]:
    """Read one change of scale and orientation from the homography's first column.

    Args:
        homography: (3, 3), from image 1 to image 2.

    Returns:
        Scale and angle in degrees clockwise on screen, as in :func:`nearest_similarity`.

    Source:
        Lee, Jeong and Cho, "Self-Supervised Learning of Image Scale and Orientation",
        BMVC 2021, eq. 10.
    """
    column = homography[:2, 0] / homography[2, 2]
    return float(np.hypot(*column)), float(np.degrees(np.arctan2(column[1], column[0])))
