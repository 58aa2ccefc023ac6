"""A detector, learned poses and a descriptor behind the interface of cv2.Feature2D."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from types import NoneType
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.assigner import PatchPoseAssigner
from cv_patchpose.descriptors import create_extractor, rule_for
from cv_patchpose.detectors import create_detector, detector_traits, pixels_for, smallest_side_px
from cv_patchpose.errors import naming
from cv_patchpose.keypoints import arrays_from_keypoints
from cv_patchpose.pyramid import check_unit_range, stretch_contrast
from cv_patchpose.rectified import describe

_MAX_POINTS = 1000  # of the detectors that need a number, by name

Keypoints: TypeAlias = tuple[cv2.KeyPoint, ...]


class PatchPoseFeature2D:
    """Detects keypoints, gives them a learned pose and describes them, as a cv2.Feature2D does.

    Has the methods of cv2.Feature2D with OpenCV's arguments and return types, for use from Python.
    It is no subclass, whose calls from C++ would crash: functions of OpenCV that take a Feature2D
    (cv2.AffineFeature, BOWImgDescriptorExtractor, detail.computeImageFeatures2) refuse it.

    Extractors that read both size and angle run on the image. The others describe patches that
    have been turned and scaled beforehand, see `describe`, and so get the learned pose as well.

    Images are bool, uint8, uint16 or float32; grey, BGR or BGRA; arrays or cv2.UMat. They are
    stretched as for `PatchPoseAssigner.assign`; detectors and extractors see 8 bits of them, known
    detectors in the channels that they read. They are not written to. Masks are uint8 and of the
    image's size; detectors look where they are not 0. Points found beyond the border are left out,
    and images of less than 8 pixels, where some detectors crash, have none.

    Not changed by use. Can be pickled and copied if detector and extractor are given by name.

    Args:
        detector: One of `detectors.DETECTORS`, at OpenCV's settings, with at most 1000 points for
            ORB, GFTT and Harris; or an object with detect(image, mask), such as those of cv2.
        extractor: One of `descriptors.DESCRIPTORS` or `VARIANTS`, or a cv2 extractor object.
        assigner: Gives the poses; None: a `PatchPoseAssigner()`. Its own descriptor is not used.

    Raises:
        TypeError: A detector that is neither a name nor has a detect method, or another thing than
            an assigner.
        ValueError: An unknown name, or an extractor that is not known.
        ImportError: This OpenCV lacks the detector or the extractor.
        ModelError: The model is missing or broken.
    """

    def __init__(
        self, detector: Any, extractor: Any, assigner: PatchPoseAssigner | None = None
    ) -> None:
        self._given = {"detector": detector, "extractor": extractor}
        self._detector = _make_detector(detector)
        self._known_detector = _known_detector(detector)
        with naming({"name": "extractor", "descriptor": "extractor"}):
            named = isinstance(extractor, str)
            self._extractor = create_extractor(extractor) if named else extractor
            rule = rule_for(extractor)
        self._on_image = rule.keeps_angle and rule.keeps_scale
        if not isinstance(assigner, (PatchPoseAssigner, NoneType)):
            raise TypeError(
                f"assigner: expected a PatchPoseAssigner or None, got {type(assigner).__name__}"
            )
        self._assigner = PatchPoseAssigner() if assigner is None else assigner

    @staticmethod
    def create(
        detector: Any, extractor: Any, assigner: PatchPoseAssigner | None = None
    ) -> PatchPoseFeature2D:
        """Do as the constructor does, in OpenCV's way."""
        return PatchPoseFeature2D(detector, extractor, assigner)

    def detect(self, image: Any, mask: Any = None) -> Keypoints | tuple[Keypoints, ...]:
        """Detect keypoints and give them their poses, written for the extractor.

        Args:
            image: An image; None or an empty one has no keypoints. Or a list or tuple of images.
            mask: Where to look; None: everywhere. For several images: a list or tuple, or None.

        Returns:
            Keypoints; for several images, a tuple of them for each.

        Raises:
            TypeError: Not an image.
            ValueError: An image or a mask that cannot be used.
        """
        if not isinstance(image, (list, tuple)):
            return self._detect_one(image, mask)
        masks = [None] * len(image) if mask is None else mask
        _check_count("mask", masks, "one per image", len(image))
        return tuple(self._detect_one(*pair) for pair in zip(image, masks, strict=True))

    def compute(
        self,
        image: Any,
        keypoints: Sequence[Any],
        descriptors: Any = None,
    ) -> tuple[Keypoints, Any] | tuple[tuple[Keypoints, ...], tuple[Any, ...]]:
        """Describe keypoints that have their poses already, as `detect` wrote them.

        Args:
            image: An image, or a list or tuple of images.
            keypoints: Of the image, for several images a list or tuple of them for each; not
                changed.
            descriptors: Not used; OpenCV's output argument.

        Returns:
            The keypoints described and one row for each. Those that the extractor cannot describe
            are left out, as OpenCV does; patches leave none out. The rows are an array, None where
            there are none; a cv2.UMat where the image is one. For several images, a tuple of both.

        Raises:
            TypeError: Not an image or not keypoints.
            ValueError: An image or a keypoint that cannot be used.
        """
        if not isinstance(image, (list, tuple)):
            return self._compute_one(image, keypoints)
        _check_count("keypoints", keypoints, "one list per image", len(image))
        pairs = [self._compute_one(*pair) for pair in zip(image, keypoints, strict=True)]
        return tuple(found for found, _ in pairs), tuple(rows for _, rows in pairs)

    def detectAndCompute(
        self,
        image: Any,
        mask: Any,
        descriptors: Any = None,
        useProvidedKeypoints: bool = False,
    ) -> tuple[Keypoints, Any]:
        """Detect keypoints, give them their poses and describe them.

        Args:
            image: An image; None or an empty one has no keypoints.
            mask: Where to look; None: everywhere.
            descriptors: Not used; OpenCV's output argument.
            useProvidedKeypoints: Must be False: OpenCV's Python has no way to provide them either.

        Returns:
            As `compute`.

        Raises:
            TypeError: Not an image.
            ValueError: An image or a mask that cannot be used, or keypoints to be provided.
        """
        if useProvidedKeypoints:
            raise ValueError("useProvidedKeypoints: expected False; compute() takes keypoints")
        return self._compute_one(image, self._detect_one(image, mask))

    def descriptorSize(self) -> int:
        """Return the number of columns of the descriptors."""
        return int(self._extractor.descriptorSize())

    def descriptorType(self) -> int:
        """Return the type of the descriptors, cv2.CV_32F or cv2.CV_8U."""
        return int(self._extractor.descriptorType())

    def defaultNorm(self) -> int:
        """Return the norm to match the descriptors with, such as cv2.NORM_L2."""
        return int(self._extractor.defaultNorm())

    def getDefaultName(self) -> str:
        """Return the name OpenCV would store it under."""
        return "Feature2D.PatchPose"

    def empty(self) -> bool:
        """Return False: it is always ready."""
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what makes a copy."""
        for name, given in self._given.items():
            if isinstance(given, (cv2.Feature2D, cv2.Algorithm)):
                raise TypeError(
                    f"{name}: expected a name, got a {type(given).__name__} object, which cannot "
                    "be pickled or copied"
                )
        return PatchPoseFeature2D, (*self._given.values(), self._assigner)

    def _detect_one(self, image: Any, mask: Any) -> Keypoints:
        pixels = _to_8_bits(image)
        if pixels is None:
            return ()
        size = pixels.shape[0], pixels.shape[1]
        looked_at = _check_mask(mask, size)
        if self._known_detector is not None:
            if min(size) < smallest_side_px(self._known_detector):
                return ()
            pixels = pixels_for(self._known_detector, pixels)
        found = tuple(self._detector.detect(pixels, looked_at))
        # AffineFeature finds points that lie a little beyond the border.
        found = tuple(compress(found, arrays_from_keypoints(found).inside(size)))
        target = self._given["extractor"] if self._on_image else "sift"
        return self._assigner.assign(image, found, descriptor=target, detector=self._known_detector)

    def _compute_one(self, image: Any, keypoints: Sequence[Any]) -> tuple[Keypoints, Any]:
        pixels = _to_8_bits(image)
        given = tuple(keypoints) if isinstance(keypoints, np.ndarray) else keypoints
        arrays_from_keypoints(given, image_size=None if pixels is None else pixels.shape[:2])
        found: Keypoints = ()
        rows: Any = None
        if pixels is not None and len(given):
            if self._on_image:
                found, rows = self._extractor.compute(pixels, tuple(given))
            else:
                found, rows = describe(image, given, self._extractor)
        rows = rows if len(found) else None
        if isinstance(image, cv2.UMat):
            return tuple(found), cv2.UMat() if rows is None else cv2.UMat(rows)
        return tuple(found), rows


def _known_detector(detector: Any) -> Any:
    """Return the detector if the meaning of its fields is known, else None."""
    try:
        detector_traits(detector)
    except ValueError:
        return None
    return detector


def _make_detector(detector: Any) -> Any:
    if isinstance(detector, str):
        return create_detector(detector, _MAX_POINTS)
    if not callable(getattr(detector, "detect", None)):
        raise TypeError(
            "detector: expected a name or an object with detect(image, mask), "
            f"got {type(detector).__name__}"
        )
    return detector


def _to_8_bits(image: Any) -> NDArray[np.uint8] | None:
    """Return the image as (H, W), BGR or BGRA of 8 bits, None if it is empty."""
    given: Any = image.get() if isinstance(image, cv2.UMat) else image
    if given is None or (isinstance(given, np.ndarray) and given.size == 0):
        return None
    array = stretch_contrast(given)
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return np.asarray(array >> 8, np.uint8)
    check_unit_range(array)
    return np.asarray(np.rint(array * 255), np.uint8)


def _check_mask(mask: Any, size: tuple[int, ...]) -> NDArray[np.uint8] | None:
    array: Any = mask.get() if isinstance(mask, cv2.UMat) else mask
    if array is None:
        return None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"mask: expected an array, cv2.UMat or None, got {type(mask).__name__}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or array.shape != size:
        raise ValueError(
            f"mask: expected {size} uint8 as the image, got {array.shape} {array.dtype}"
        )
    return np.asarray(array)


def _check_count(name: str, values: Any, expected: str, count: int) -> None:
    if not isinstance(values, (list, tuple)) or len(values) != count:
        found = len(values) if isinstance(values, (list, tuple)) else type(values).__name__
        raise ValueError(f"{name}: expected {expected}, {count}, got {found}")
