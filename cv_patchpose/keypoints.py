"""OpenCV keypoints as arrays, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_COINCIDENCE_PX = 1e-3
_PART = 4096  # keypoints built at once


@dataclass(frozen=True)
class KeypointArrays:
    """Fields of N keypoints, as OpenCV defines them.

    Attributes:
        xy_px: (N, 2) float32, centres; the centre of pixel (0, 0) is (0, 0).
        size_px: (N,) float32, diameters.
        angle_deg: (N,) float32, clockwise on screen, in [0, 360); -1: none.
        response: (N,) float32.
        octave: (N,) int32.
        class_id: (N,) int32.
    """

    xy_px: NDArray[np.float32]
    size_px: NDArray[np.float32]
    angle_deg: NDArray[np.float32]
    response: NDArray[np.float32]
    octave: NDArray[np.int32]
    class_id: NDArray[np.int32]

    def __len__(self) -> int:
        """Return the number N of keypoints."""
        return len(self.xy_px)

    def take(self, index: NDArray[np.integer[Any]]) -> KeypointArrays:
        """Return the keypoints of an (M,) index, in its order; an index may come twice."""
        return replace(self, **{name: value[index] for name, value in vars(self).items()})

    def inside(self, image_size: tuple[int, int]) -> NDArray[np.bool_]:
        """Tell which centres lie on the pixels of a (height, width) image, (N,)."""
        height, width = image_size
        inside = (self.xy_px >= -0.5) & (self.xy_px <= (width - 0.5, height - 0.5))
        return np.asarray(inside[:, 0] & inside[:, 1])

    def check(
        self, image_size: tuple[int, int] | None = None, *, argument: str = "keypoints"
    ) -> None:
        """Raise ValueError for the first keypoint that cannot be used.

        Args:
            image_size: (height, width) of the image that centres must lie on; None: of any.
            argument: Name of what the keypoints were given as, for the messages.
        """
        size_px = self.size_px
        _check(argument, np.isfinite(size_px) & (size_px > 0), "finite sizes above 0", size_px)
        _check(argument, np.isfinite(self.angle_deg), "finite angles", self.angle_deg)
        _check(argument, np.isfinite(self.response), "finite responses", self.response)
        finite = np.isfinite(self.xy_px)
        _check(argument, finite[:, 0] & finite[:, 1], "finite centres", self.xy_px)
        if image_size is not None:
            height, width = image_size
            expected = f"centres on the {width} x {height} image"
            hint = "; leave out what lies beyond its border"
            _check(argument, self.inside(image_size), expected, self.xy_px, hint)

    def distinct_index(self) -> NDArray[np.int64]:
        """Return the (M,) ascending index of the first keypoint of each centre and size.

        Detectors emit a keypoint once per orientation; without their angle these coincide.
        Centres and sizes are compared after rounding to 0.001 px.
        """
        place = self._places()
        order = np.lexsort(place.T)  # stable: the first of equals stays first
        moved = np.diff(place[order], axis=0, prepend=np.nan) != 0
        return np.sort(order[moved.any(1)]).astype(np.int64)

    def strongest_index(self, count: int) -> NDArray[np.int64]:
        """Return the (M,) index of the `count` places of largest response, strongest first.

        Keypoints of one place, as in `distinct_index`, count once and stay together.
        """
        _, place = np.unique(self._places(), axis=0, return_inverse=True)
        place = place.ravel()
        strength = np.full(len(self), -np.inf)
        np.maximum.at(strength, place, self.response)
        order = np.lexsort([place, -strength[place]])
        rank = np.cumsum(np.diff(place[order], prepend=-1) != 0)
        return order[rank <= count].astype(np.int64)

    def _places(self) -> NDArray[np.float64]:
        """(N, 3) whole numbers, equal for keypoints of one centre and size."""
        place = np.column_stack([self.xy_px, self.size_px]).astype(np.float64)
        return np.rint(place / _COINCIDENCE_PX)


def arrays_from_keypoints(
    keypoints: Sequence[cv2.KeyPoint],
    *,
    image_size: tuple[int, int] | None = None,
    argument: str = "keypoints",
) -> KeypointArrays:
    """Read and check keypoints.

    Args:
        keypoints: List or tuple of N cv2.KeyPoint; not changed.
        image_size: (height, width) of the image; centres must then lie on it, that is within
            [-0.5, width - 0.5] and [-0.5, height - 0.5].
        argument: Name of what the keypoints were given as, for the messages.

    Raises:
        TypeError: Not a list or tuple of cv2.KeyPoint.
        ValueError: A number that is not finite, a centre outside the image, a size that is not
            positive.
    """
    if not isinstance(keypoints, (list, tuple)):
        raise TypeError(
            f"{argument}: expected a list or tuple of cv2.KeyPoint, got {type(keypoints).__name__}"
        )
    _check_types(argument, keypoints)
    arrays = KeypointArrays(
        xy_px=np.asarray(cv2.KeyPoint.convert(keypoints), np.float32).reshape(-1, 2),
        size_px=_read_field(keypoints, "size", np.float32),
        angle_deg=_read_field(keypoints, "angle", np.float32),
        response=_read_field(keypoints, "response", np.float32),
        octave=_read_field(keypoints, "octave", np.int32),
        class_id=_read_field(keypoints, "class_id", np.int32),
    )
    arrays.check(image_size, argument=argument)
    return arrays


def keypoints_from_arrays(arrays: KeypointArrays) -> tuple[cv2.KeyPoint, ...]:
    """Build N cv2.KeyPoint."""
    columns = (
        arrays.xy_px[:, 0], arrays.xy_px[:, 1], arrays.size_px, arrays.angle_deg,
        arrays.response, arrays.octave, arrays.class_id,
    )  # fmt: skip
    # By parts: the fields as objects of Python take several times the memory of the keypoints.
    parts = (slice(i, i + _PART) for i in range(0, len(arrays), _PART))
    return tuple(
        chain.from_iterable(
            map(cv2.KeyPoint, *(c[part].tolist() for c in columns)) for part in parts
        )
    )


def array_from_keypoints(keypoints: Sequence[cv2.KeyPoint]) -> NDArray[np.float64]:
    """Build an array of N keypoints.

    Returns:
        (N, 7) float64, which holds every field exactly: x, y, size, angle, response, octave,
        class_id.

    Raises:
        TypeError: Not a list or tuple of cv2.KeyPoint.
        ValueError: A keypoint that is not finite.
    """
    fields = vars(arrays_from_keypoints(keypoints)).values()
    return np.column_stack([np.asarray(field, np.float64) for field in fields])


def _check_types(argument: str, keypoints: Sequence[cv2.KeyPoint]) -> None:
    if set(map(type, keypoints)) <= {cv2.KeyPoint}:
        return
    for index, keypoint in enumerate(keypoints):
        if not isinstance(keypoint, cv2.KeyPoint):
            raise TypeError(
                f"{argument}: expected a list or tuple of cv2.KeyPoint, "
                f"got {type(keypoint).__name__} at index {index}"
            )


def _read_field(keypoints: Sequence[cv2.KeyPoint], name: str, dtype: Any) -> NDArray[Any]:
    """Return one field of N keypoints, (N,)."""
    return np.fromiter(map(attrgetter(name), keypoints), dtype, len(keypoints))


def _check(
    argument: str,
    right: NDArray[np.bool_],
    expected: str,
    values: NDArray[np.float32],
    hint: str = "",
) -> None:
    """Raise ValueError for the first of N keypoints that is not right; `values` is (N, ...)."""
    wrong = np.flatnonzero(~right)
    if len(wrong):
        index = int(wrong[0])
        found = values[index] if values.ndim == 1 else tuple(values[index].tolist())
        raise ValueError(f"{argument}: expected {expected}, got {found} at index {index}{hint}")
