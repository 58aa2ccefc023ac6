"""Matching that reads the size and angle of posed keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.histograms import NO_ANGLE_DEG
from cv_patchpose.keypoints import KeypointArrays, arrays_from_keypoints, keypoints_from_arrays

_FEWEST_FOR_LOGOS = 6  # its five neighbours and the keypoint; it crashes with fewer
_TURN_BINS = 36

_HYPOTHESES = 1024
_CONTROLS = 1024
_CHUNK = 128  # hypotheses compared at once, which bounds memory
_APART_PX = 8.0  # nearer segments are too short to measure a turn or a zoom on
_CHANCE = 0.99


def match_logos(
    keypoints1: Sequence[cv2.KeyPoint],
    keypoints2: Sequence[cv2.KeyPoint],
    words1: Sequence[int] | NDArray[np.integer[Any]],
    words2: Sequence[int] | NDArray[np.integer[Any]],
) -> tuple[cv2.DMatch, ...]:
    """Match keypoints of the same visual word whose neighbours have moved as they have.

    Calls cv2.xfeatures2d.matchLOGOS, which reads angles counter-clockwise while OpenCV's are
    clockwise, loses matches where the turn between the images is near 180 degrees, and crashes
    with fewer than six keypoints; called through here it does none of these. It allows 0.1 rad
    and a factor of 1.1 between neighbours and takes time with the square of the keypoints.

    Args:
        keypoints1: N posed keypoints of image 1; not changed. Those without angle have no matches.
        keypoints2: M posed keypoints of image 2, likewise.
        words1: (N,) visual word of each. Without a vocabulary: range(N).
        words2: (M,) visual word of each. Without a vocabulary: the index of the keypoint of image
            1 with the nearest descriptor.

    Returns:
        Matches from image 1 to image 2, of distance 0; none with fewer than six posed keypoints in
        an image.

    Raises:
        ImportError: OpenCV without its contrib modules.
        TypeError: Not keypoints, or words that are not whole numbers.
        ValueError: A keypoint that is not finite, or not one word per keypoint.

    Source: S. Lowry, H. Andreasson, IEEE Robotics and Automation Letters 2018, LOGOS; OpenCV's.
    """
    if not hasattr(cv2, "xfeatures2d"):
        raise ImportError("match_logos needs OpenCV's contrib: pip install opencv-contrib-python")
    first = arrays_from_keypoints(keypoints1, argument="keypoints1")
    second = arrays_from_keypoints(keypoints2, argument="keypoints2")
    labels1 = _check_words("words1", words1, len(first))
    labels2 = _check_words("words2", words2, len(second))
    index1, index2 = (np.flatnonzero(_are_posed(arrays)) for arrays in (first, second))
    first, second = first.take(index1), second.take(index2)
    labels1, labels2 = labels1[index1], labels2[index2]
    if min(len(first), len(second)) < _FEWEST_FOR_LOGOS:
        return ()
    upright = _turned(second, -_common_turn(first, second, labels1, labels2))
    found = cv2.xfeatures2d.matchLOGOS(
        _counter_clockwise(first), _counter_clockwise(upright), labels1.tolist(), labels2.tolist()
    )
    return tuple(
        cv2.DMatch(int(index1[match.queryIdx]), int(index2[match.trainIdx]), match.distance)
        for match in found
    )


def consistent_matches(
    keypoints1: Sequence[cv2.KeyPoint],
    keypoints2: Sequence[cv2.KeyPoint],
    matches: Sequence[cv2.DMatch],
    *,
    tolerance: float = 0.25,
    min_support: int = 3,
) -> tuple[cv2.DMatch, ...]:
    """Keep the matches whose poses agree with where other matches lie.

    A match of posed keypoints says how its surroundings are turned and zoomed. Two matches support
    each other if the segment between them is turned and zoomed from image 1 to image 2 as both of
    them say. A match is kept if it has support from enough others, and from more than 99 % of
    wrong matches get, which is measured by pairing the same keypoints at random. No model of the
    scene is fitted: it may hold several motions.

    Matches within 8 pixels of each other in either image do not support each other, and further
    matches of the same two places give no further support: duplicates count once.

    At most 1024 matches, those of least distance, support; so the time for N matches is that of
    1024 x (N + 1024) pairs, and the memory that of 128 x (N + 1024).

    Args:
        keypoints1: Posed keypoints of image 1; not changed.
        keypoints2: Posed keypoints of image 2, with sizes that mean the same; not changed.
        matches: N matches from image 1 to image 2. Those of a keypoint without angle say nothing
            of a turn: they are not kept and support none.
        tolerance: Most that a segment may differ from what a match says, as a share of its length:
            0.25 is a turn of 14 degrees or a zoom by 1.25.
        min_support: Fewest supporting matches.

    Returns:
        The matches kept, in their order.

    Raises:
        TypeError: Not keypoints or not matches.
        ValueError: A keypoint that is not finite, a match of keypoints that are not there, or an
            option out of range.

    Source: ours; after the pose votes of D. Lowe, IJCV 2004, section 7.4.
    """
    if not 0.0 < tolerance < 1.0:
        raise ValueError(f"tolerance: expected a number between 0 and 1, got {tolerance!r}")
    if min_support < 1:
        raise ValueError(f"min_support: expected at least 1, got {min_support!r}")
    first = arrays_from_keypoints(keypoints1, argument="keypoints1")
    second = arrays_from_keypoints(keypoints2, argument="keypoints2")
    index = _match_index(matches, len(first), len(second))
    posed = _are_posed(first)[index[:, 0]] & _are_posed(second)[index[:, 1]]
    matches, index = list(compress(matches, posed)), index[posed]
    if len(index) <= min_support:
        return ()
    distance = np.array([match.distance for match in matches])
    pairs = _Pairs(first.take(index[:, 0]), second.take(index[:, 1]))
    chosen = pairs.take(_distinct_places(pairs, distance)[:_HYPOTHESES])
    support = _support(chosen, pairs, tolerance)
    needed = max(min_support, _chance_support(chosen, pairs, tolerance) + 1)
    return tuple(match for match, count in zip(matches, support, strict=True) if count >= needed)


class _Pairs:
    """N matched keypoints as points and similarities of the complex plane."""

    def __init__(self, first: KeypointArrays, second: KeypointArrays) -> None:
        self.first, self.second = first, second
        self.xy1 = first.xy_px.view(np.complex64).ravel()
        self.xy2 = second.xy_px.view(np.complex64).ravel()
        turn_rad = np.deg2rad(second.angle_deg - first.angle_deg)
        self.factor = (second.size_px / first.size_px * np.exp(1j * turn_rad)).astype(np.complex64)

    def __len__(self) -> int:
        return len(self.xy1)

    def take(self, index: NDArray[np.integer[Any]]) -> _Pairs:
        return _Pairs(self.first.take(index), self.second.take(index))

    def shuffled(self, index: NDArray[np.integer[Any]]) -> _Pairs:
        """Pair each first keypoint with the second one of another pair."""
        return _Pairs(self.first, self.second.take(index))


def _support(chosen: _Pairs, pairs: _Pairs, tolerance: float) -> NDArray[np.int64]:
    """Count, for each of N pairs, the chosen ones that agree with it."""
    support = np.zeros(len(pairs), np.int64)
    for start in range(0, len(chosen), _CHUNK):
        part = slice(start, start + _CHUNK)
        segment1 = pairs.xy1 - chosen.xy1[part, None]
        segment2 = pairs.xy2 - chosen.xy2[part, None]
        agree = (np.abs(segment1) > _APART_PX) & (np.abs(segment2) > _APART_PX)
        for factor in (chosen.factor[part, None], pairs.factor):
            expected = segment1 * factor
            agree &= np.abs(segment2 - expected) <= tolerance * np.abs(expected)
        support += agree.sum(axis=0)
    return support


def _chance_support(chosen: _Pairs, pairs: _Pairs, tolerance: float) -> int:
    """Return the support that only one in a hundred wrong matches exceeds."""
    random = np.random.default_rng(0)
    sample = pairs.take(random.permutation(len(pairs))[:_CONTROLS])
    control = sample.shuffled(random.permutation(len(sample)))
    wrong = np.abs(control.xy2 - sample.xy2) > _APART_PX
    if not wrong.any():
        return 0
    support = _support(chosen, control, tolerance)[wrong]
    return int(np.quantile(support, _CHANCE, method="lower"))


def _distinct_places(pairs: _Pairs, distance: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index of the nearest match of each two pixels, nearest first."""
    order = np.argsort(distance, kind="stable")
    pixels = np.rint(np.column_stack([pairs.first.xy_px, pairs.second.xy_px]))[order]
    _, best = np.unique(pixels, axis=0, return_index=True)
    return order[np.sort(best)].astype(np.int64)


def _match_index(matches: Sequence[cv2.DMatch], count1: int, count2: int) -> NDArray[np.int64]:
    """(N, 2) indices of keypoints, checked."""
    if not isinstance(matches, (list, tuple)) or not all(
        isinstance(m, cv2.DMatch) for m in matches
    ):
        raise TypeError("matches: expected a list or tuple of cv2.DMatch")
    index = np.array([(m.queryIdx, m.trainIdx) for m in matches], np.int64).reshape(-1, 2)
    wrong = ((index < 0) | (index >= (count1, count2))).any(axis=1)
    if wrong.any():
        query, train = index[wrong][0].tolist()
        raise ValueError(
            f"matches: expected indices below {count1} and {count2}, got {query} and {train}"
        )
    return index


def _are_posed(keypoints: KeypointArrays) -> NDArray[np.bool_]:
    """Tell which have an angle, (N,): `assign` gives none to those of blank patches."""
    return np.asarray(keypoints.angle_deg != NO_ANGLE_DEG)


def _check_words(name: str, words: Any, count: int) -> NDArray[np.int32]:
    array = np.asarray(words)
    if array.shape != (count,):
        raise ValueError(f"{name}: expected one word per keypoint, ({count},), got {array.shape}")
    if count and array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected whole numbers, got {array.dtype}")
    return array.astype(np.int32)


def _common_turn(
    first: KeypointArrays,
    second: KeypointArrays,
    words1: NDArray[np.int32],
    words2: NDArray[np.int32],
) -> float:
    """Return the turn from image 1 to image 2 that most keypoints of one word show, degrees."""
    shared = np.intersect1d(words1, words2)
    counts1, counts2 = (
        _word_turns(arrays.angle_deg, words, shared)
        for arrays, words in ((first, words1), (second, words2))
    )
    votes = [(counts1 * np.roll(counts2, -turn, axis=1)).sum() for turn in range(_TURN_BINS)]
    return float(np.argmax(votes)) * 360.0 / _TURN_BINS


def _word_turns(
    angle_deg: NDArray[np.float32], words: NDArray[np.int32], shared: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Count the angles of each shared word's keypoints, (W, bins)."""
    known = np.isin(words, shared)
    counts = np.zeros((len(shared), _TURN_BINS))
    turn = np.rint(angle_deg[known] * (_TURN_BINS / 360.0)).astype(np.int64) % _TURN_BINS
    np.add.at(counts, (np.searchsorted(shared, words[known]), turn), 1)
    return counts


def _turned(keypoints: KeypointArrays, turn_deg: float) -> KeypointArrays:
    """Turn keypoints clockwise about the origin."""
    turn = np.exp(1j * np.deg2rad(turn_deg))
    xy = (keypoints.xy_px.view(np.complex64) * turn).astype(np.complex64)
    angle_deg = np.mod(keypoints.angle_deg + np.float32(turn_deg), np.float32(360.0))
    return replace(keypoints, xy_px=xy.view(np.float32), angle_deg=angle_deg)


def _counter_clockwise(keypoints: KeypointArrays) -> tuple[cv2.KeyPoint, ...]:
    return keypoints_from_arrays(replace(keypoints, angle_deg=360.0 - keypoints.angle_deg))
