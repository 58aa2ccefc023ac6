"""Pickling of OpenCV's keypoints and matches."""

from __future__ import annotations

import copyreg
from typing import Any

import cv2


def make_keypoints_picklable() -> None:
    """Let cv2.KeyPoint and cv2.DMatch be pickled, copied and sent to other processes.

    OpenCV's own cannot be. This changes them for the whole process, for good, and so is done only
    on request; calling it again does nothing more. What has been pickled is read without it.
    """
    copyreg.pickle(cv2.KeyPoint, _reduce_keypoint)
    copyreg.pickle(cv2.DMatch, _reduce_match)


def _reduce_keypoint(keypoint: cv2.KeyPoint) -> tuple[Any, ...]:
    k = keypoint
    return cv2.KeyPoint, (*k.pt, k.size, k.angle, k.response, k.octave, k.class_id)


def _reduce_match(match: cv2.DMatch) -> tuple[Any, ...]:
    return cv2.DMatch, (match.queryIdx, match.trainIdx, match.imgIdx, match.distance)
