"""OpenCV's detectors by name, and their strongest points."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.field_rules import BRISK_WINDOW, WINDOW, AkazeRule
from cv_patchpose.histograms import NO_ANGLE_DEG
from cv_patchpose.keypoints import KeypointArrays, arrays_from_keypoints, keypoints_from_arrays
from cv_patchpose.opencv import find_class, require_class
from cv_patchpose.pyramid import Image, convert_channels

Measures: TypeAlias = Literal["pose", "scale", "extent", "place"]


@dataclass(frozen=True)
class DetectorTraits:
    """What the fields of a detector's keypoints mean.

    Attributes:
        class_name: Of the cv2 class; OpenCV 5 moved some from cv2 to cv2.xfeatures2d. For a
            detector of another library, any name.
        measures: "pose": scale and angle; "scale": that alone; "extent": the size of a region or
            blob; "place": nothing but the centre. Angles of all but the first are -1, 0 or, from
            MSD and TBMR, radians of something else.
        size_unit: Sizes over the characteristic ones of SIFT, twice the sigma, for one support
            window: the inverse of what `field_rules` does for the descriptor of that name.
        scale_sigma_octaves: How well the scale is known, standard deviation; None: as the model
            has it for SIFT.
    """

    class_name: str
    measures: Measures
    size_unit: float = 1.0
    scale_sigma_octaves: float | None = None


# A disc answers most to a Laplacian whose sigma is its radius over the root of 2.
EXTENT_UNIT = 2**0.5

# Whose scales are levels far apart: on real pairs, two of one level agree better than the learned
# scales do, and are kept.
LEVEL_SIGMA_OCTAVES = 0.03

_TRAITS = {
    "sift": DetectorTraits("SIFT", "pose"),
    "orb": DetectorTraits("ORB", "pose", WINDOW, LEVEL_SIGMA_OCTAVES),
    "akaze": DetectorTraits("AKAZE", "pose", AkazeRule().size_factor, LEVEL_SIGMA_OCTAVES),
    "kaze": DetectorTraits("KAZE", "scale", 0.5, LEVEL_SIGMA_OCTAVES),
    "brisk": DetectorTraits("BRISK", "pose", WINDOW / BRISK_WINDOW, LEVEL_SIGMA_OCTAVES),
    "fast": DetectorTraits("FastFeatureDetector", "place"),
    "agast": DetectorTraits("AgastFeatureDetector", "place"),
    "gftt": DetectorTraits("GFTTDetector", "place"),
    "harris": DetectorTraits("GFTTDetector", "place"),
    "mser": DetectorTraits("MSER", "extent", EXTENT_UNIT),
    "blob": DetectorTraits("SimpleBlobDetector", "extent", EXTENT_UNIT),
    "star": DetectorTraits("StarDetector", "extent", EXTENT_UNIT),
    "msd": DetectorTraits("MSDDetector", "scale", EXTENT_UNIT),
    "harrislaplace": DetectorTraits("HarrisLaplaceFeatureDetector", "scale"),
    "tbmr": DetectorTraits("TBMR", "extent", EXTENT_UNIT),
}
DETECTORS = tuple(_TRAITS)

# Sides of an image below which OpenCV's detectors fail, some of them (Star, MSD, TBMR) by a crash.
_SMALLEST_SIDE_PX = 8
_SMALLEST_SIDE_OF_PX = {"MSDDetector": 24}

# Harris responses spread over more decades than the smaller eigenvalue.
_HARRIS_QUALITY = 1e-5


def detector_traits(detector: Any) -> DetectorTraits:
    """Find what a detector's keypoints mean.

    Args:
        detector: One of `DETECTORS`, a cv2 detector object, or the traits themselves of a detector
            that is not OpenCV's.

    Raises:
        ValueError: An unknown detector.
    """
    if isinstance(detector, DetectorTraits):
        return detector
    if isinstance(detector, str) and detector in _TRAITS:
        return _TRAITS[detector]
    for traits in _TRAITS.values():
        detector_class = find_class(traits.class_name)
        if detector_class is not None and isinstance(detector, detector_class):
            return traits
    found = repr(detector) if isinstance(detector, str) else type(detector).__name__
    raise ValueError(
        f"detector: expected one of {', '.join(DETECTORS)} or its cv2 object, got {found}"
    )


def detect(image: Any, detector: str, max_points: int) -> tuple[cv2.KeyPoint, ...]:
    """Detect the strongest points of an image, each with all its orientations.

    Args:
        image: (H, W), BGR or BGRA, uint8.
        detector: One of `DETECTORS`, at OpenCV's default settings; "harris" is GFTT with Harris'
            response.
        max_points: Most points; a point with several orientations counts once. Detectors that
            write no response (MSER, SimpleBlob, TBMR) give an even choice of theirs.

    Returns:
        Keypoints, strongest point first. The angle is -1 where the detector measures none,
        whatever it writes.

    Raises:
        ValueError: An unknown detector, a non-positive number of points, or an image that is too
            small for the detector.
        ImportError: This OpenCV lacks the detector.
    """
    if max_points < 1:
        raise ValueError(f"max_points: expected at least 1, got {max_points}")
    least, (height, width) = smallest_side_px(detector), image.shape[:2]
    if min(height, width) < least:
        raise ValueError(
            f"image: expected sides of at least {least} px for {detector}, got {width} x {height}"
        )
    pixels = pixels_for(detector, image)
    found = arrays_from_keypoints(create_detector(detector, max_points).detect(pixels, None))
    if detector_traits(detector).measures != "pose":
        found = replace(found, angle_deg=np.full(len(found), NO_ANGLE_DEG, np.float32))
    return keypoints_from_arrays(found.take(strongest_index(found, max_points)))


def smallest_side_px(detector: Any) -> int:
    """Return how long the sides of an image must be for a detector not to fail.

    Args:
        detector: One of `DETECTORS` or a cv2 detector object.

    Raises:
        ValueError: An unknown detector.
    """
    return _SMALLEST_SIDE_OF_PX.get(detector_traits(detector).class_name, _SMALLEST_SIDE_PX)


def pixels_for(detector: Any, image: Image) -> Image:
    """Return an image as a detector can read it: MSER in colour, the others in grey.

    HarrisLaplace would take the bytes of BGR for those of a grey image, MSER those of BGRA for BGR.

    Args:
        detector: One of `DETECTORS` or a cv2 detector object.
        image: (H, W), BGR or BGRA, uint8.

    Returns:
        (H, W), or BGR for MSER.

    Raises:
        ValueError: An unknown detector.
    """
    if detector_traits(detector).class_name != "MSER":
        return convert_channels(image, color=False)
    return cv2.cvtColor(image, cv2.COLOR_BGRA2BGR) if image.shape[2:] == (4,) else image


def strongest_index(keypoints: KeypointArrays, count: int) -> NDArray[np.int64]:
    """Return the (M,) index of the strongest places, as `KeypointArrays.strongest_index` does.

    Where all responses are the same, places are taken at even steps of the detector's order: it
    runs through the image or through the regions, and any end of it is one part of those.
    """
    if len(keypoints) and np.ptp(keypoints.response) == 0:
        distinct = keypoints.distinct_index()
        if len(distinct) > count:
            return distinct[np.arange(count) * len(distinct) // count]
    return keypoints.strongest_index(count)


def create_detector(name: str, max_points: int) -> Any:
    """Make the cv2 detector of a name, at OpenCV's default settings.

    Args:
        name: One of `DETECTORS`; "harris" is GFTT with Harris' response.
        max_points: For the detectors that need a number (ORB, GFTT).

    Raises:
        ValueError: An unknown detector.
        ImportError: This OpenCV lacks the detector.
    """
    class_name = detector_traits(name).class_name
    options: dict[str, dict[str, Any]] = {
        "orb": {"nfeatures": max_points},
        "gftt": {"maxCorners": max_points},
        "harris": {
            "maxCorners": max_points,
            "useHarrisDetector": True,
            "qualityLevel": _HARRIS_QUALITY,
        },
    }
    return require_class(class_name).create(**options.get(name, {}))
