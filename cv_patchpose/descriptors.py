"""OpenCV's descriptors by name: which fields of a keypoint they read, and how to make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2

from cv_patchpose.field_rules import (
    BRISK_WINDOW,
    WINDOW,
    AffineRule,
    AkazeRule,
    DaisyRule,
    FieldRule,
    KazeRule,
    OrbRule,
    PlainRule,
    SiftRule,
)
from cv_patchpose.opencv import find_class, require_class

__all__ = ["DESCRIPTORS", "VARIANTS", "FieldRule", "SiftRule", "create_extractor", "rule_for"]

# What VGG, BoostDesc, BEBLID and TEBLID call scale_factor, for sizes as SIFT defines them.
_SIFT_SCALE_FACTOR = 6.75


@dataclass(frozen=True)
class _Descriptor:
    """What is known of one descriptor.

    Attributes:
        class_name: Of the cv2 class; OpenCV 5 moved some from cv2 to cv2.xfeatures2d.
        create: Makes, from that class, the extractor that reads most of a pose.
        read_rule: Reads the rule of an extractor from its settings.
        rule: Of what `create` makes.
    """

    class_name: str
    create: Callable[[Any], Any]
    read_rule: Callable[[Any], FieldRule]
    rule: FieldRule


def rule_for(descriptor: Any) -> FieldRule:
    """Find the rule of a descriptor.

    An extractor's settings are read where OpenCV tells them. It does not tell the scale_factor of
    TEBLID, taken to be 6.75 as for SIFT keypoints; the views and the backend of AffineFeature,
    taken to be its default ones and SIFT at its default settings; and custom sampling patterns,
    taken to be as wide as the usual ones.

    Args:
        descriptor: One of `DESCRIPTORS` or `VARIANTS`, set as `create_extractor` does, or a cv2
            extractor object.

    Raises:
        ValueError: A descriptor without a rule, or an extractor whose settings admit none.
    """
    name = _name_of(descriptor)
    entry = _TABLE[name]
    return entry.rule if isinstance(descriptor, str) else entry.read_rule(descriptor)


def create_extractor(name: str) -> Any:
    """Make the cv2 extractor of a name, with settings that read as much of the pose as they can.

    BRIEF and DAISY use the angle, which they do not by default. VGG, BoostDesc, BEBLID and TEBLID
    take sizes as SIFT defines them. AffineFeature has a SIFT backend and the untilted view only.

    Args:
        name: One of `DESCRIPTORS` or `VARIANTS`.

    Raises:
        ValueError: An unknown name.
        ImportError: This OpenCV lacks the descriptor.
    """
    if not isinstance(name, str) or name not in _TABLE:
        raise ValueError(f"name: expected one of {', '.join(_TABLE)}, got {name!r}")
    entry = _TABLE[name]
    return entry.create(require_class(entry.class_name))


def _name_of(descriptor: Any) -> str:
    """Return the name of a name or cv2 extractor object; ValueError if it has none."""
    if isinstance(descriptor, str) and descriptor in _TABLE:
        return descriptor
    for name, entry in _TABLE.items():
        extractor_class = find_class(entry.class_name)
        if extractor_class is not None and isinstance(descriptor, extractor_class):
            return name
    found = repr(descriptor) if isinstance(descriptor, str) else type(descriptor).__name__
    raise ValueError(
        f"descriptor: expected one of {', '.join(_TABLE)} or its cv2 object, got {found}"
    )


def _create_default(extractor_class: Any) -> Any:
    return extractor_class.create()


def _create_oriented(extractor_class: Any) -> Any:
    return extractor_class.create(use_orientation=True)


def _create_for_sift_sizes(extractor_class: Any) -> Any:
    return extractor_class.create(scale_factor=_SIFT_SCALE_FACTOR)


def _create_affine(extractor_class: Any) -> Any:
    affine = extractor_class.create(cv2.SIFT.create())
    affine.setViewParams([1.0], [0.0])  # each further view warps the image, for nothing
    return affine


def _read_sift(sift: Any) -> FieldRule:
    return SiftRule(layers=int(sift.getNOctaveLayers()), sigma=float(sift.getSigma()))


def _read_affine(affine: Any) -> FieldRule:
    """Check that the backend can be SIFT: others would take its octave for a huge one of theirs."""
    kind = affine.descriptorSize(), affine.descriptorType()
    if kind not in ((128, cv2.CV_32F), (128, cv2.CV_8U)):
        raise ValueError(
            "descriptor: expected a cv2.AffineFeature with a SIFT backend, of 128 numbers, "
            f"got one of {kind[0]}"
        )
    return AffineRule()


def _read_orb(orb: Any) -> FieldRule:
    return OrbRule(
        patch_size=int(orb.getPatchSize()),
        scale_factor=float(orb.getScaleFactor()),
        first_level=int(orb.getFirstLevel()),
    )


def _read_brisk(brisk: Any) -> FieldRule:
    return replace(_BRISK, size_factor=_BRISK.size_factor / float(brisk.getPatternScale()))


def _read_akaze(akaze: Any) -> FieldRule:
    binary = akaze.getDescriptorType() in (_AKAZE_MLDB_UPRIGHT, _AKAZE_MLDB)
    return AkazeRule(
        octaves=int(akaze.getNOctaves()),
        layers=int(akaze.getNOctaveLayers()),
        size_factor=0.6 if binary else 0.5,
        keeps_angle=akaze.getDescriptorType() in (_AKAZE_KAZE, _AKAZE_MLDB),
    )


def _read_kaze(kaze: Any) -> FieldRule:
    return KazeRule(octaves=int(kaze.getNOctaves()), layers=int(kaze.getNOctaveLayers()))


def _read_brief(brief: Any) -> FieldRule:
    return replace(_BRIEF, keeps_angle=bool(brief.getUseOrientation()))


def _read_freak(freak: Any) -> FieldRule:
    factor = _FREAK.size_factor * _FREAK_PATTERN_SCALE / float(freak.getPatternScale())
    return replace(_FREAK, keeps_scale=bool(freak.getScaleNormalized()), size_factor=factor)


def _read_latch(latch: Any) -> FieldRule:
    return replace(_LATCH, keeps_angle=bool(latch.getRotationInvariance()))


def _read_lucid(_: Any) -> FieldRule:
    return _LUCID


def _read_daisy(daisy: Any) -> FieldRule:
    return DaisyRule(keeps_angle=bool(daisy.getUseOrientation()))


def _read_warped(rule: PlainRule) -> Callable[[Any], FieldRule]:
    """Return how to read VGG, BoostDesc and BEBLID, which warp a window of scale_factor x size."""

    def read(extractor: Any) -> FieldRule:
        posed = getattr(extractor, "getUseScaleOrientation", lambda: True)()
        factor = _SIFT_SCALE_FACTOR / float(extractor.getScaleFactor())
        return replace(rule, keeps_angle=bool(posed), keeps_scale=bool(posed), size_factor=factor)

    return read


def _read_teblid(_: Any) -> FieldRule:
    return _TEBLID


# cv2.AKAZE_DESCRIPTOR_..., which moved in OpenCV 5.
_AKAZE_KAZE, _AKAZE_MLDB_UPRIGHT, _AKAZE_MLDB = 3, 4, 5
_FREAK_PATTERN_SCALE = 22.0

# The window of FREAK measures 4.6 times the size written.
_BRISK = PlainRule("brisk", keeps_angle=False, keeps_scale=True, size_factor=WINDOW / BRISK_WINDOW)
_FREAK = PlainRule("freak", keeps_angle=False, keeps_scale=True, size_factor=WINDOW / 4.6)
_BRIEF = PlainRule("brief", keeps_angle=True, keeps_scale=False)
_LATCH = PlainRule("latch", keeps_angle=True, keeps_scale=False)
_LUCID = PlainRule("lucid", keeps_angle=False, keeps_scale=False)
_VGG = PlainRule("vgg", keeps_angle=True, keeps_scale=True)
_BOOST = PlainRule("boostdesc", keeps_angle=True, keeps_scale=True)
_BEBLID = PlainRule("beblid", keeps_angle=True, keeps_scale=True)
_TEBLID = PlainRule("teblid", keeps_angle=True, keeps_scale=True)

_TABLE = {
    "sift": _Descriptor("SIFT", _create_default, _read_sift, SiftRule()),
    "orb": _Descriptor("ORB", _create_default, _read_orb, OrbRule()),
    "brisk": _Descriptor("BRISK", _create_default, _read_brisk, _BRISK),
    "akaze": _Descriptor("AKAZE", _create_default, _read_akaze, AkazeRule()),
    "kaze": _Descriptor("KAZE", _create_default, _read_kaze, KazeRule()),
    "brief": _Descriptor("BriefDescriptorExtractor", _create_oriented, _read_brief, _BRIEF),
    "freak": _Descriptor("FREAK", _create_default, _read_freak, _FREAK),
    "latch": _Descriptor("LATCH", _create_default, _read_latch, _LATCH),
    "lucid": _Descriptor("LUCID", _create_default, _read_lucid, _LUCID),
    "daisy": _Descriptor("DAISY", _create_oriented, _read_daisy, DaisyRule()),
    "vgg": _Descriptor("VGG", _create_for_sift_sizes, _read_warped(_VGG), _VGG),
    "boostdesc": _Descriptor("BoostDesc", _create_for_sift_sizes, _read_warped(_BOOST), _BOOST),
    "beblid": _Descriptor("BEBLID", _create_for_sift_sizes, _read_warped(_BEBLID), _BEBLID),
    "teblid": _Descriptor("TEBLID", _create_for_sift_sizes, _read_teblid, _TEBLID),
    "affine": _Descriptor("AffineFeature", _create_affine, _read_affine, AffineRule()),
}

DESCRIPTORS = tuple(_TABLE)

# Other ways to write the fields of a descriptor. "sift-fine" reads the windows of SIFT from a level
# that is blurred half as much: on real pairs as many matches are right, and fewer wrong. Both
# images must be described so; rows of plain SIFT are others.
_TABLE["sift-fine"] = replace(_TABLE["sift"], rule=SiftRule(finer_octaves=1.0, name="sift-fine"))
VARIANTS = ("sift-fine",)
