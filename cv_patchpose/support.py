"""Where the pose of a keypoint is read, and what its detector says of its scale beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cv_patchpose.detectors import EXTENT_UNIT, DetectorTraits, detector_traits
from cv_patchpose.field_rules import AkazeRule, FieldRule, KazeRule, OrbRule, SiftRule
from cv_patchpose.keypoints import KeypointArrays
from cv_patchpose.metadata import ModelMetadata
from cv_patchpose.options import AssignerOptions

# Smaller sizes of plain points and corners (1, 3) are no descriptor's support.
_SMALLEST_POINT_SIZE_PX = 6.0
# A corner is a detail: its scale is looked for in a closer window than where scale 1 is.
_FIRST_LOOK = 0.5
# SIFT describes four cells of three sigmas, which are six sizes: the window that is read.
_DESCRIBED_SIZES = 6.0
# Regions and blobs of one scale per image structure: known, but loosely.
_BLOB_SIGMA_OCTAVES = 0.5
_EQUAL_PX = 1e-3
_SAME_SIZE = 1e-4  # relative: sizes are float32
_MOST_LEVELS = 40  # SIFT's octaves, which hold the layer too, are above
_SIFT = SiftRule()


@dataclass(frozen=True)
class Support:
    """Support of N keypoints.

    Attributes:
        window_px: (N,) diameters of the windows that the model reads.
        own_px: (N,) sizes given, as SIFT defines them: twice the sigma.
        size_px: (N,) sizes that scale 1 means, likewise.
        prior_sigma: (N,) octaves, how well `size_px` is known; inf: not at all.
        passes: (N,) how often a pose is read, each time but the first in the window of the size
            that was found the time before, or in a wider one where nothing was to be seen.
    """

    window_px: NDArray[np.float64]
    own_px: NDArray[np.float64]
    size_px: NDArray[np.float64]
    prior_sigma: NDArray[np.float64]
    passes: NDArray[np.int64]


def choose_support(
    keypoints: KeypointArrays,
    metadata: ModelMetadata,
    options: AssignerOptions,
    detector: DetectorTraits | None = None,
    rule: FieldRule = _SIFT,
) -> Support:
    """Choose windows and priors from what the keypoints' detector measured.

    - Keypoints whose scale was measured (SIFT, ORB, AKAZE...): the window is the magnification
      times their size, the prior the model's, or that of the detector's traits.
    - Regions and blobs (MSER, SimpleBlob, Star...): the same window, with a wide prior.
    - Points (FAST, GFTT, clicks): one window, no prior. Where their size is to be written and no
      prior is asked for, it is looked for in two passes, the first an octave below their scale 1.
      What is found does not depend on the size given, which is the detector's or nobody's choice:
      scale 1 is the size with which SIFT describes the window.

    Where the detector is not given, keypoints with an octave or an angle count as measured, others
    of different sizes as regions, others of one size as points: each is judged beside those it
    comes with. Sizes of ORB, AKAZE, BRISK and KAZE have another measure than SIFT's: the former two
    are recognised by their ladders of sizes, at default settings or at those of the descriptor,
    which mostly is the same object; the latter two where they are the descriptor, too.

    An explicit magnification or window holds for all of them.
    """
    own_px = keypoints.size_px.astype(np.float64)
    if detector is None:
        units, sigmas = _recognize(keypoints, rule)
        measured = _have_scale(keypoints) | ~np.isnan(sigmas)
        points = _are_points(own_px, measured)
        own_px /= np.where(measured | points, units, EXTENT_UNIT)
    else:
        own_px /= detector.size_unit
        sigmas = np.full(len(own_px), detector.scale_sigma_octaves, np.float64)  # None: NaN
        measured = np.full(len(own_px), detector.measures in ("pose", "scale"))
        points = np.full(len(own_px), detector.measures == "place")
    size_px = own_px.copy()
    window_px = size_px * (options.magnification or metadata.magnification)
    prior_sigma = _prior_sigmas(measured, points, sigmas, metadata, options)
    passes = np.full(len(size_px), 1 if options.passes == "auto" else options.passes)
    if options.window_px is not None:
        window_px = np.full(len(size_px), float(options.window_px))
        size_px = window_px / metadata.magnification
    elif options.magnification is None and points.any():
        window_px[points] = metadata.point_window_px
        size_px[points] = np.maximum(size_px[points], _SMALLEST_POINT_SIZE_PX)
        if options.assign_scale:
            searched = points & np.isinf(prior_sigma)
            window_px[searched] *= _FIRST_LOOK
            size_px[searched] = window_px[searched] / _DESCRIBED_SIZES
            if options.passes == "auto":
                passes[searched] = 2
    return Support(window_px, own_px, size_px, prior_sigma, passes)


def _recognize(
    keypoints: KeypointArrays, rule: FieldRule
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) units of size and (N,) sigmas of scale, by the fields that some detectors write.

    Others have unit 1, and NaN for the model's sigma.
    """
    size_px, octave, level = (
        keypoints.size_px.astype(np.float64),
        keypoints.octave,
        keypoints.class_id,
    )
    on_ladder = (octave >= 0) & (octave <= _MOST_LEVELS) & (level <= _MOST_LEVELS)
    orb, akaze = (np.zeros(len(size_px), bool) for _ in range(2))
    for one in {OrbRule(), rule}:
        if isinstance(one, OrbRule):
            steps = np.where(on_ladder, octave, 0) - one.first_level
            orb |= _are_near(size_px, one.patch_size * one.scale_factor**steps)
    for one in {AkazeRule(), rule}:
        if isinstance(one, AkazeRule):
            steps = np.where(on_ladder, level, 0) / one.layers
            akaze |= (octave == level // one.layers) & _are_near(size_px, 4.8 * 2.0**steps)
    found = {
        "orb": orb & (level < 0) & (keypoints.angle_deg >= 0),
        "akaze": akaze & (level >= 0),
    }
    if rule.name == "brisk":
        found["brisk"] = ~found["orb"] & (level < 0) & (keypoints.angle_deg > 0)
    if isinstance(rule, KazeRule):
        found["kaze"] = ~found["akaze"] & (level >= 0) & (octave == level // rule.layers)
    units, sigmas = np.ones(len(size_px)), np.full(len(size_px), np.nan)
    for name, which in found.items():
        traits = detector_traits(name)
        units[which & on_ladder] = traits.size_unit
        sigmas[which & on_ladder] = traits.scale_sigma_octaves
    return units, sigmas


def _are_near(size_px: NDArray[np.float64], other_px: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(np.abs(size_px / other_px - 1) < _SAME_SIZE)


def _have_scale(keypoints: KeypointArrays) -> NDArray[np.bool_]:
    """(N,) bool: an octave or an angle was measured; -1 and 0 stand for none.

    But 0 is the first octave where others without an angle have octaves, as HarrisLaplace's do.
    """
    no_angle = keypoints.angle_deg <= 0
    octave = keypoints.octave[no_angle]
    leveled = bool(((octave > 0) & (octave <= _MOST_LEVELS)).any())
    return np.asarray((keypoints.octave != 0) | ~no_angle | leveled)


def _are_points(size_px: NDArray[np.float64], measured: NDArray[np.bool_]) -> NDArray[np.bool_]:
    others = size_px[~measured]
    alike = not len(others) or bool(np.ptp(others) < _EQUAL_PX)
    return ~measured & alike


def _prior_sigmas(
    measured: NDArray[np.bool_],
    points: NDArray[np.bool_],
    sigmas: NDArray[np.float64],
    metadata: ModelMetadata,
    options: AssignerOptions,
) -> NDArray[np.float64]:
    prior = options.scale_prior_octaves
    if prior is None:
        return np.full(len(measured), np.inf)
    if prior != "auto":
        return np.full(len(measured), float(prior))
    if metadata.scale_prior_octaves is None or options.window_px is not None:
        return np.full(len(measured), np.inf)
    own = np.where(np.isnan(sigmas), metadata.scale_prior_octaves, sigmas)
    sigma = np.where(measured, own, _BLOB_SIGMA_OCTAVES)
    return np.where(points, np.inf, sigma)
