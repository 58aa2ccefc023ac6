"""Geometry of two views, estimated from matches and compared with the truth."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.cameras import Camera, RelativePose, relative_pose
from cv_patchpose.homography import project

_HOMOGRAPHY_PX = 3.0
_ESSENTIAL_PX = 0.5
_CONFIDENCE = 0.99999
_ITERATIONS = 10_000
_FEWEST = {"homography": 4, "essential": 5}


def estimate_homography(
    xy1_px: NDArray[np.float64], xy2_px: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Fit a homography to matches, most of which may be wrong.

    Args:
        xy1_px: (M, 2) places in image 1.
        xy2_px: (M, 2) places in image 2.

    Returns:
        (3, 3) from image 1 to image 2, or None where nothing fits.

    Source: D. Barath et al., MAGSAC++, CVPR 2020, doi:10.1109/CVPR42600.2020.00138; OpenCV's, with
        a threshold of 3 pixels.
    """
    if len(xy1_px) < _FEWEST["homography"]:
        return None
    found = None
    with contextlib.suppress(cv2.error):  # raised where nothing fits
        found, _ = cv2.findHomography(
            xy1_px, xy2_px, cv2.USAC_MAGSAC, _HOMOGRAPHY_PX,
            maxIters=_ITERATIONS, confidence=_CONFIDENCE,
        )  # fmt: skip
    return None if found is None else np.asarray(found, np.float64)


def corner_error_px(
    estimated: NDArray[np.float64] | None,
    homography: NDArray[np.float64],
    image_size: tuple[int, int],
) -> float:
    """Mean distance of image 1's corners under a homography from where they should lie.

    Args:
        estimated: (3, 3), or None.
        homography: (3, 3), the true one.
        image_size: (height, width) of image 1.

    Returns:
        Pixels of image 2; inf without an estimate.
    """
    if estimated is None:
        return math.inf
    right, bottom = image_size[1] - 1.0, image_size[0] - 1.0
    corners = np.array([[0.0, 0.0], [right, 0.0], [right, bottom], [0.0, bottom]])
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = project(estimated, corners) - project(homography, corners)
    error = float(np.linalg.norm(offset, axis=1).mean())
    return error if math.isfinite(error) else math.inf


def epipolar_error_px(
    xy1_px: NDArray[np.float64], xy2_px: NDArray[np.float64], camera1: Camera, camera2: Camera
) -> NDArray[np.float64]:
    """Distance of matches from each other's epipolar lines under the true cameras.

    Args:
        xy1_px: (M, 2) places in image 1.
        xy2_px: (M, 2) places in image 2.
        camera1: The camera of image 1.
        camera2: Likewise.

    Returns:
        (M,) pixels, the larger one of the two images.
    """
    true = relative_pose(camera1, camera2)
    essential = np.cross(np.eye(3), true.translation) @ true.rotation
    inverse1, inverse2 = (np.linalg.inv(camera.intrinsics) for camera in (camera1, camera2))
    fundamental = inverse2.T @ essential @ inverse1
    points1, points2 = (np.column_stack([xy, np.ones(len(xy))]) for xy in (xy1_px, xy2_px))
    lines1, lines2 = points2 @ fundamental, points1 @ fundamental.T
    offset = np.abs(np.sum(points2 * lines2, axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):  # an epipole lies on no line
        return np.asarray(
            np.maximum(*(offset / np.hypot(each[:, 0], each[:, 1]) for each in (lines1, lines2)))
        )


@dataclass(frozen=True, eq=False)
class PoseFit:
    """A relative pose that fits matches.

    Attributes:
        pose: From camera 1 to camera 2; its translation has length 1.
        inlier: (M,) bool, matches that agree and lie in front of both cameras.
    """

    pose: RelativePose
    inlier: NDArray[np.bool_]


def estimate_relative_pose(
    xy1_px: NDArray[np.float64], xy2_px: NDArray[np.float64], camera1: Camera, camera2: Camera
) -> PoseFit | None:
    """Find the relative pose of two calibrated cameras by the essential matrix.

    Points are brought to normalised coordinates by each camera's intrinsics, and the threshold of
    half a pixel is divided by the mean focal length.

    Args:
        xy1_px: (M, 2) places in image 1.
        xy2_px: (M, 2) places in image 2.
        camera1: Its intrinsics are used.
        camera2: Likewise.

    Returns:
        The fit, or None where nothing fits.

    Source: D. Nister, PAMI 2004, doi:10.1109/TPAMI.2004.17, by OpenCV's USAC_ACCURATE: Graph-Cut
        RANSAC, D. Barath, J. Matas, CVPR 2018, doi:10.1109/CVPR.2018.00704.
    """
    if len(xy1_px) < _FEWEST["essential"]:
        return None
    normalised1, normalised2 = camera1.normalise(xy1_px), camera2.normalise(xy2_px)
    threshold = 2 * _ESSENTIAL_PX / (camera1.focal_px + camera2.focal_px)
    eye = np.eye(3)
    essential: Any = None
    # Of one set of matches OpenCV's MAGSAC finds fewer poses than this.
    with contextlib.suppress(cv2.error):  # raised where nothing fits
        essential, mask = cv2.findEssentialMat(
            normalised1, normalised2, eye, cv2.USAC_ACCURATE, _CONFIDENCE, threshold, _ITERATIONS
        )
    if essential is None or essential.shape[0] < 3:
        return None
    # Unless told otherwise OpenCV drops points further off than 50 baselines, as most of a far
    # scene's are, and then takes any of the four poses.
    _, rotation, translation, mask, _ = cv2.recoverPose(
        E=essential[:3], points1=normalised1, points2=normalised2, cameraMatrix=eye,
        distanceThresh=math.inf, mask=mask.copy(),
    )  # fmt: skip
    pose = RelativePose(
        np.asarray(rotation, np.float64), np.asarray(translation, np.float64).ravel()
    )
    return PoseFit(pose, mask.ravel() > 0)
