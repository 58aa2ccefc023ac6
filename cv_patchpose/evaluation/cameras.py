"""Calibrated cameras: x = K (R X + t)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
_ROTATION_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class RelativePose:
    """The change from camera 1's coordinates to camera 2's: X2 = R X1 + t.

    Attributes:
        rotation: (3, 3) R.
        translation: (3,) t, of any length.
    """

    rotation: Float64
    translation: Float64


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera.

    Attributes:
        intrinsics: (3, 3) K, upper triangular, pixels; pixel centres are integers.
        rotation: (3, 3) R, from the world to the camera: x right, y down, z ahead.
        translation: (3,) t.
    """

    intrinsics: Float64
    rotation: Float64
    translation: Float64

    @property
    def focal_px(self) -> float:
        """Mean focal length."""
        return float(self.intrinsics[0, 0] + self.intrinsics[1, 1]) / 2

    def normalise(self, xy_px: Float64) -> Float64:
        """Bring (N, 2) pixels to (N, 2) coordinates on the plane z = 1."""
        rays = np.linalg.solve(self.intrinsics, np.vstack([xy_px.T, np.ones(len(xy_px))]))
        return np.ascontiguousarray((rays[:2] / rays[2]).T)

    def turn(self, from_photo: Float64) -> Camera:
        """Return the camera whose photograph is this one's, mapped.

        An affine map of the image is another K and a rotation about the optical axis.

        Args:
            from_photo: (3, 3) affine, from this camera's pixels to the new ones.
        """
        _, upper, *_ = cv2.RQDecomp3x3(from_photo @ self.intrinsics @ self.rotation)
        intrinsics = np.asarray(upper, np.float64) / upper[2][2]
        turn = np.linalg.solve(intrinsics, from_photo @ self.intrinsics)
        return Camera(intrinsics, turn @ self.rotation, turn @ self.translation)


def read_camera(where: str, matrices: Mapping[str, Any], translation: str = "t") -> Camera:
    """Make a camera of matrices from a file.

    Args:
        where: The file and entry, for messages.
        matrices: Holds K (3, 3), R (3, 3) and the translation, three numbers.
        translation: Under which name.

    Raises:
        ValueError: One is missing, of another size or not what it should be; names it.
    """
    k, r = (_read(where, matrices, name, (3, 3)) for name in ("K", "R"))
    t = _read(where, matrices, translation, (3,))
    if not (k[0, 0] > 0 and k[1, 1] > 0 and np.allclose(k[[1, 2, 2], [0, 0, 1]], 0) and k[2, 2]):
        raise ValueError(f"{where}: K: expected an upper triangular matrix, got {k.tolist()}")
    right_angled = np.allclose(r @ r.T, np.eye(3), atol=_ROTATION_TOLERANCE)
    if not right_angled or np.linalg.det(r) < 0:
        raise ValueError(f"{where}: R: expected a rotation matrix, got {r.tolist()}")
    return Camera(k / k[2, 2], r, t)


def relative_pose(camera1: Camera, camera2: Camera) -> RelativePose:
    """Return the change from one camera's coordinates to another's."""
    rotation = camera2.rotation @ camera1.rotation.T
    return RelativePose(rotation, camera2.translation - rotation @ camera1.translation)


def viewing_angle_deg(camera1: Camera, camera2: Camera) -> float:
    """Angle between the optical axes, which a rotation about them does not change; [0, 180]."""
    return _angle_deg(camera1.rotation[2], camera2.rotation[2])


def pose_error_deg(estimated: RelativePose, true: RelativePose) -> float:
    """Larger one of the errors in rotation and in the direction of translation.

    The sign of the translation, which an essential matrix leaves open, does not count, as in the
    Image Matching Challenge.

    Returns:
        Degrees in [0, 180].
    """
    turn = estimated.rotation @ true.rotation.T
    rotation_deg = float(np.degrees(np.linalg.norm(cv2.Rodrigues(turn)[0])))
    translation_deg = _angle_deg(estimated.translation, true.translation)
    return max(rotation_deg, min(translation_deg, 180.0 - translation_deg))


def _angle_deg(first: Float64, second: Float64) -> float:
    across, along = np.linalg.norm(np.cross(first, second)), first @ second
    return float(np.degrees(np.arctan2(across, along)))


def _read(where: str, matrices: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Float64:
    if name not in matrices:
        raise ValueError(f"{where}: expected {name}, got only {', '.join(matrices) or 'nothing'}")
    try:
        found = np.asarray(matrices[name], np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {name}: expected numbers of shape {shape}, {error}") from error
    if found.squeeze().shape != shape:  # IMC2021 has translations of shape (3, 1)
        raise ValueError(f"{where}: {name}: expected shape {shape}, got {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"{where}: {name}: expected finite numbers, got {found.tolist()}")
    return found.reshape(shape)
