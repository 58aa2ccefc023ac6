"""Keypoints to and from kornia's frames, COLMAP's rows and plain arrays.

Centres differ: kornia's and OpenCV's pixel centres lie at integers, COLMAP's at halves. Angles
differ: OpenCV's and COLMAP's turn clockwise on screen, kornia's counter-clockwise. Sizes differ:
OpenCV's is a diameter of two sigmas, COLMAP's scale is one sigma, kornia's is half the side of a
patch, however large the patch is meant to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.descriptors import rule_for
from cv_patchpose.histograms import NO_ANGLE_DEG
from cv_patchpose.homography import nearest_similarity
from cv_patchpose.keypoints import (
    KeypointArrays,
    array_from_keypoints,
    arrays_from_keypoints,
    keypoints_from_arrays,
)

__all__ = [
    "COLMAP_PIXEL_CENTER",
    "COLMAP_SCALE_PER_SIZE",
    "KORNIA_SCALE_PER_SIZE",
    "array_from_keypoints",
    "colmap_from_keypoints",
    "keypoints_from_array",
    "keypoints_from_colmap",
    "keypoints_from_laf",
    "laf_from_keypoints",
]

KORNIA_SCALE_PER_SIZE = 6.0
COLMAP_SCALE_PER_SIZE = 0.5
COLMAP_PIXEL_CENTER = 0.5


def laf_from_keypoints(
    keypoints: Sequence[cv2.KeyPoint], *, scale_per_size: float = KORNIA_SCALE_PER_SIZE
) -> NDArray[np.float32]:
    """Build kornia's local affine frames of N keypoints.

    Args:
        keypoints: With characteristic sizes, as SIFT defines them. One without an angle becomes
            upright.
        scale_per_size: Scale of the frame over the keypoint's size. A frame's scale is half the
            side of its patch: 6 gives patches of 12 sizes, which HardNet and its matchers expect
            of a DoG detector; 3 gives SIFT's own window, as in kornia's SIFTFeature.

    Returns:
        (1, N, 2, 3) float32; ``torch.from_numpy`` makes a batch of one image of it.

    Raises:
        TypeError: Not a list or tuple of cv2.KeyPoint.
        ValueError: A keypoint that is not finite, or a factor that is not positive.
    """
    _check_factor(scale_per_size)
    arrays = arrays_from_keypoints(keypoints)
    frames = np.dstack([_shapes(arrays, scale_per_size), arrays.xy_px.astype(np.float64)])
    return frames.astype(np.float32)[None]


def keypoints_from_laf(
    laf: Any,
    image_size: tuple[int, int],
    *,
    scale_per_size: float = KORNIA_SCALE_PER_SIZE,
    descriptor: Any = "sift",
) -> tuple[cv2.KeyPoint, ...]:
    """Build keypoints of kornia's local affine frames.

    A frame that is no similarity becomes the nearest one: its area is kept, its angle is the
    rotation of the polar decomposition, which differs from kornia's, that of the x axis after an
    upright stretch.

    Args:
        laf: (1, N, 2, 3) or (N, 2, 3) of one image; a tensor must be on the CPU and detached.
        image_size: (height, width) of the image, which bounds the pyramid levels.
        scale_per_size: As for :func:`laf_from_keypoints`.
        descriptor: What the keypoints will be described with; see
            :func:`cv_patchpose.descriptors.rule_for`. Decides octave, class_id and the size's unit.

    Returns:
        N keypoints in order, angles in [0, 360), responses 0. class_id is the index of the frame
        where the descriptor does not need it.

    Raises:
        TypeError: Not an array of numbers.
        ValueError: Another shape, a number that is not finite, a frame that is mirrored or has no
            area (kornia fills up with zeros), a centre outside the image, or a descriptor without
            a rule.
    """
    _check_factor(scale_per_size)
    frames = _read_array("laf", laf, "(N, 2, 3) or (1, N, 2, 3)")
    if frames.ndim == 4 and len(frames) == 1:
        frames = frames[0]
    if frames.ndim != 3 or frames.shape[1:] != (2, 3):
        raise ValueError(f"laf: expected (N, 2, 3) or (1, N, 2, 3), got {frames.shape}")
    size_px, angle_deg = _read_shapes("laf", frames[:, :, :2], scale_per_size)
    return _write(frames[:, :, 2], size_px, angle_deg, image_size, descriptor)


def colmap_from_keypoints(
    keypoints: Sequence[cv2.KeyPoint], *, columns: Literal[4, 6] = 6
) -> NDArray[np.float32]:
    """Build COLMAP's rows of N keypoints, as its database stores them.

    Args:
        keypoints: With characteristic sizes, as SIFT defines them. One without an angle becomes
            upright.
        columns: 4 for x, y, scale, orientation; 6 for x, y, a11, a12, a21, a22.

    Returns:
        (N, columns) float32, C-contiguous. The centre of the upper left pixel is (0.5, 0.5), the
        scale one sigma, the orientation clockwise on screen in radians in [0, 2 pi).

    Raises:
        TypeError: Not a list or tuple of cv2.KeyPoint.
        ValueError: A keypoint that is not finite, or another number of columns.

    Source: COLMAP, src/colmap/feature/types.h and types.cc (place of the origin; a shape is scale
        times [[cos, -sin], [sin, cos]]) and sift.cc (what its own detector writes).
    """
    if columns not in (4, 6):
        raise ValueError(f"columns: expected 4 or 6, got {columns!r}")
    arrays = arrays_from_keypoints(keypoints)
    xy = arrays.xy_px.astype(np.float64) + COLMAP_PIXEL_CENTER
    if columns == 6:
        shape = _shapes(arrays, COLMAP_SCALE_PER_SIZE).reshape(-1, 4)
    else:
        scale = COLMAP_SCALE_PER_SIZE * arrays.size_px.astype(np.float64)
        shape = np.column_stack([scale, np.radians(_turns_deg(arrays))])
    return np.ascontiguousarray(np.hstack([xy, shape]), np.float32)


def keypoints_from_colmap(
    rows: Any, image_size: tuple[int, int], *, descriptor: Any = "sift"
) -> tuple[cv2.KeyPoint, ...]:
    """Build keypoints of COLMAP's rows.

    A shape that is no similarity becomes the nearest one: its area is kept, its angle is the
    rotation of the polar decomposition. COLMAP's own summary differs there: the mean length of the
    columns, and the angle of the first.

    Args:
        rows: (N, 4) or (N, 6), columns as in :func:`colmap_from_keypoints`.
        image_size: (height, width) of the image, which bounds the pyramid levels.
        descriptor: As for :func:`keypoints_from_laf`.

    Returns:
        As for :func:`keypoints_from_laf`.

    Raises:
        TypeError: Not an array of numbers.
        ValueError: Another shape, a number that is not finite, a scale or area that is not
            positive, a centre outside the image, or a descriptor without a rule.
    """
    table = _read_array("rows", rows, "(N, 4) or (N, 6)")
    if table.ndim != 2 or table.shape[1] not in (4, 6):
        raise ValueError(f"rows: expected (N, 4) or (N, 6), got {table.shape}")
    if table.shape[1] == 6:
        shapes = table[:, 2:].reshape(-1, 2, 2)
        size_px, angle_deg = _read_shapes("rows", shapes, COLMAP_SCALE_PER_SIZE)
    else:
        _check_positive("rows", "a scale", table[:, 2])
        size_px = table[:, 2] / COLMAP_SCALE_PER_SIZE
        angle_deg = _positive_deg(np.degrees(table[:, 3]))
    return _write(table[:, :2] - COLMAP_PIXEL_CENTER, size_px, angle_deg, image_size, descriptor)


def keypoints_from_array(
    array: Any, image_size: tuple[int, int] | None = None, *, descriptor: Any = None
) -> tuple[cv2.KeyPoint, ...]:
    """Build keypoints of an array.

    Args:
        array: (N, 7), columns as in :func:`array_from_keypoints`.
        image_size: (height, width) of the image; needed with a descriptor.
        descriptor: None to keep octave and class_id as they are; otherwise they are written for
            this descriptor, as in :func:`keypoints_from_laf`, and sizes must be characteristic.

    Returns:
        N keypoints in order. Angles are brought into [0, 360), all but -1, which means none;
        for DAISY, which raises on it, it becomes 0.

    Raises:
        TypeError: Not an array of numbers.
        ValueError: Another shape, a number that is not finite, a size that is not positive, an
            octave or class_id that is no whole number of 32 bits; with a descriptor also a centre
            outside the image, no image size or no rule.
    """
    table = _read_array("array", array, "(N, 7)")
    if table.ndim != 2 or table.shape[1] != 7:
        raise ValueError(f"array: expected (N, 7), got {table.shape}")
    _check_positive("array", "a size", table[:, 2])
    _check_whole(table[:, 5:])
    no_angle = table[:, 3] == NO_ANGLE_DEG
    turned = np.where(no_angle, np.float32(NO_ANGLE_DEG), _positive_deg(table[:, 3]))
    if descriptor is not None:
        if image_size is None:
            raise ValueError("image_size: expected (height, width) with a descriptor, got None")
        return _write(table[:, :2], table[:, 2], turned, image_size, descriptor, table[:, 4])
    real, whole = table.astype(np.float32), table[:, 5:].astype(np.int32)
    return keypoints_from_arrays(
        KeypointArrays(real[:, :2], real[:, 2], turned, real[:, 4], whole[:, 0], whole[:, 1])
    )


def _shapes(arrays: KeypointArrays, scale_per_size: float) -> NDArray[np.float64]:
    """(N, 2, 2) from the unit circle to the image, turned clockwise on screen."""
    turn = np.radians(_turns_deg(arrays))
    scale = scale_per_size * arrays.size_px.astype(np.float64)
    along, across = scale * np.cos(turn), scale * np.sin(turn)
    return np.stack([along, -across, across, along], axis=1).reshape(-1, 2, 2)


def _turns_deg(arrays: KeypointArrays) -> NDArray[np.float64]:
    angle_deg = arrays.angle_deg.astype(np.float64)
    return np.where(angle_deg == NO_ANGLE_DEG, 0.0, angle_deg % 360.0)


def _read_shapes(
    name: str, shapes: NDArray[np.float64], scale_per_size: float
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """(N,) sizes, and angles in [0, 360), of (N, 2, 2) shapes."""
    _check_positive(name, "a determinant", np.linalg.det(shapes))
    scale, angle_deg = nearest_similarity(shapes)
    return scale / scale_per_size, _positive_deg(angle_deg)


def _write(
    xy_px: NDArray[np.float64],
    size_px: NDArray[np.float64],
    angle_deg: NDArray[np.float32],
    image_size: tuple[int, int],
    descriptor: Any,
    response: NDArray[np.float64] | None = None,
) -> tuple[cv2.KeyPoint, ...]:
    count = len(xy_px)
    rule = rule_for(descriptor)
    if np.shape(image_size) != (2,) or min(image_size) < 1:
        raise ValueError(f"image_size: expected (height, width), got {image_size!r}")
    arrays = KeypointArrays(
        xy_px=xy_px.astype(np.float32),
        size_px=size_px.astype(np.float32),
        angle_deg=angle_deg,
        response=np.zeros(count, np.float32) if response is None else response.astype(np.float32),
        octave=np.zeros(count, np.int32),
        class_id=np.full(count, -1, np.int32),
    )
    if rule.class_id_is_free:
        arrays = replace(arrays, class_id=np.arange(count, dtype=np.int32))
    return keypoints_from_arrays(rule.write(arrays, image_size))


def _positive_deg(angle_deg: NDArray[np.float64]) -> NDArray[np.float32]:
    """Angles in [0, 360), also after rounding."""
    turned = (angle_deg % 360.0).astype(np.float32)
    return np.where(turned < 360.0, turned, np.float32(0.0))


def _read_array(name: str, value: Any, expected: str) -> NDArray[np.float64]:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor with gradients
        raise TypeError(f"{name}: expected numbers {expected}, got {error}") from error
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(f"{name}: expected finite numbers, got {array[place]} at {place}")
    return array


def _check_factor(scale_per_size: float) -> None:
    if not 0.0 < scale_per_size < np.inf:
        raise ValueError(
            f"scale_per_size: expected a finite number above 0, got {scale_per_size!r}"
        )


def _check_positive(name: str, what: str, values: NDArray[np.float64]) -> None:
    wrong = np.flatnonzero(values <= 0)
    if len(wrong):
        index = int(wrong[0])
        raise ValueError(f"{name}: expected {what} above 0, got {values[index]} at index {index}")


def _check_whole(values: NDArray[np.float64]) -> None:
    limits = np.iinfo(np.int32)
    right = (values == np.rint(values)) & (values >= limits.min) & (values <= limits.max)
    wrong = np.argwhere(~right)
    if len(wrong):
        index, column = wrong[0].tolist()
        raise ValueError(
            f"array: expected a whole {('octave', 'class_id')[column]} of 32 bits, "
            f"got {values[index, column]} at index {index}"
        )
