"""Poses and matches as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.matching import Matches
from cv_patchpose.pyramid import read_pixels

Picture: TypeAlias = NDArray[np.uint8]

_SHIFT = 4  # fractional bits of the places handed to OpenCV
_POSE_COLOR = (80, 220, 60)
_INK, _PAPER = (38, 34, 32), (255, 255, 255)
_SHARED_COLOR = (190, 190, 190)
_FAINT_INK = (130, 122, 118)
_FONT = cv2.FONT_HERSHEY_DUPLEX
_CELL_HEIGHT_PX, _CELL_WIDTH_PX = 480, 720
_CAPTION_PX, _GAP_PX = 56, 16
_SHORTEST_LINE_PX = 6.0
_LARGEST_LETTERS = 0.8  # of OpenCV's font scale


def draw_poses(image: Any, keypoints: Sequence[cv2.KeyPoint]) -> Picture:
    """Draw each keypoint as a circle of its size with a line in its direction.

    Args:
        image: (H, W), (H, W, 1), BGR or BGRA, uint8; not changed.
        keypoints: Those without angle are drawn without line. Of small ones it leaves the circle.

    Returns:
        (H, W, 3) uint8, BGR.
    """
    picture = _as_color(image)
    for keypoint in keypoints:
        center = np.array(keypoint.pt)
        radius = max(keypoint.size / 2, 1.0)
        _draw_circle(picture, center, radius, _INK, 3)
        _draw_circle(picture, center, radius, _POSE_COLOR, 1)
        if keypoint.angle >= 0:
            angle = np.radians(keypoint.angle)
            end = center + max(radius, _SHORTEST_LINE_PX) * np.array([np.cos(angle), np.sin(angle)])
            _draw_line(picture, center, end, _POSE_COLOR)
    return picture


def draw_matches_before_after(
    image1: Any,
    image2: Any,
    before: Matches,
    after: Matches,
    *,
    titles: tuple[str, str] = ("The detector's own pose", "Pose by cv_patchpose"),
    counted: str = "inliers",
) -> Picture:
    """Draw the matches of two ways to pose the same keypoints, one row below the other.

    Each row has a caption with the counts and the two images side by side. Lines join the inliers
    that the other row lacks, coloured by their place in image 1; those of both rows are grey dots.

    Args:
        image1: (H, W) or BGR, uint8; not changed.
        image2: (H, W) or BGR, uint8; not changed.
        before: Matches of the upper row.
        after: Matches of the lower row.
        titles: Of the two rows, plain ASCII.
        counted: What the matches marked as inliers are called, plain ASCII.

    Returns:
        (H', W', 3) uint8, BGR.
    """
    blank, corners, zooms = _side_by_side(_soften(image1), _soften(image2))
    width = blank.shape[1]
    captions = [
        _write_caption(title, matches, other, counted)
        for title, matches, other in zip(titles, (before, after), (after, before), strict=True)
    ]
    widest = max(_text_width("   ".join(caption), _LARGEST_LETTERS) for caption in captions)
    scale = _LARGEST_LETTERS * min(1.0, width / widest)
    rows = []
    for caption, matches, other in zip(captions, (before, after), (after, before), strict=True):
        images = blank.copy()
        _draw_inliers(images, matches, other, corners, zooms)
        rows += [_draw_caption(caption, width, scale), images]
    rows.append(np.full((_GAP_PX, width, 3), _PAPER, np.uint8))
    picture = np.concatenate(rows)
    return cv2.copyMakeBorder(
        picture, 0, 0, _GAP_PX, _GAP_PX, cv2.BORDER_CONSTANT, value=_PAPER
    ).astype(np.uint8)


def _as_color(image: Any) -> Picture:
    pixels = read_pixels(image)
    if pixels.dtype != np.uint8:
        raise ValueError(f"image: expected uint8, got {pixels.dtype}")
    if pixels.ndim == 2:
        return np.ascontiguousarray(np.repeat(pixels[..., None], 3, axis=2))
    return pixels[..., :3].copy()


def _soften(image: Any) -> Picture:
    """Pale, darker copy on which coloured lines stand out."""
    color = _as_color(image)
    gray = color.mean(axis=2, keepdims=True)
    return np.asarray(0.75 * (0.35 * color + 0.65 * gray), np.uint8)


def _side_by_side(
    first: Picture, second: Picture
) -> tuple[Picture, NDArray[np.float64], tuple[float, float]]:
    """Fit two images into cells; return them, their (2, 2) corners (x, y) and their zooms."""
    fitted, zooms = [], []
    for image in (first, second):
        height, width = image.shape[:2]
        zoom = min(_CELL_HEIGHT_PX / height, _CELL_WIDTH_PX / width)
        size = (max(round(width * zoom), 1), max(round(height * zoom), 1))
        way = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
        fitted.append(np.asarray(cv2.resize(image, size, interpolation=way), np.uint8))
        zooms.append(zoom)
    height = max(image.shape[0] for image in fitted)
    width = fitted[0].shape[1] + _GAP_PX + fitted[1].shape[1]
    canvas = np.full((height, width, 3), _PAPER, np.uint8)
    corners = np.zeros((2, 2))
    corners[1, 0] = fitted[0].shape[1] + _GAP_PX
    for image, corner in zip(fitted, corners, strict=True):
        corner[1] = (height - image.shape[0]) // 2
        x, y = corner.astype(int)
        canvas[y : y + image.shape[0], x : x + image.shape[1]] = image
    return canvas, corners, (zooms[0], zooms[1])


def _draw_inliers(
    canvas: Picture,
    matches: Matches,
    other: Matches,
    corners: NDArray[np.float64],
    zooms: tuple[float, float],
) -> None:
    gained = _gained(matches, other)
    for xy_px, zoom, corner in zip((matches.xy1_px, matches.xy2_px), zooms, corners, strict=True):
        for place in _in_cell(xy_px[matches.inlier & ~gained], zoom, corner):
            _draw_circle(canvas, place, 2.0, _SHARED_COLOR, -1)
    start = _in_cell(matches.xy1_px[gained], zooms[0], corners[0])
    end = _in_cell(matches.xy2_px[gained], zooms[1], corners[1])
    if not len(start):
        return
    colors = _rainbow(start[:, 0] + 0.5 * start[:, 1])
    lines = canvas.copy()
    for a, b, color in zip(start, end, colors, strict=True):
        _draw_line(lines, a, b, color)
    strength = float(np.clip(12.0 / np.sqrt(len(start)), 0.3, 0.85))
    canvas[:] = cv2.addWeighted(lines, strength, canvas, 1 - strength, 0)
    for a, b, color in zip(start, end, colors, strict=True):
        _draw_circle(canvas, a, 2.0, color, -1)
        _draw_circle(canvas, b, 2.0, color, -1)


def _gained(matches: Matches, other: Matches) -> NDArray[np.bool_]:
    """(M,) bool: inliers that the other matches do not have, or not as such."""
    both = [np.column_stack([m.xy1_px, m.xy2_px]) for m in (matches, other)]
    known = set(map(tuple, both[1][other.inlier].tolist()))
    new = [tuple(place) not in known for place in both[0].tolist()]
    return matches.inlier & np.array(new, np.bool_)


def _in_cell(
    xy_px: NDArray[np.float32], zoom: float, corner: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Take pixel places of an image to the canvas; pixel centres lie at integers in both."""
    return np.asarray((xy_px + 0.5) * zoom - 0.5 + corner, np.float64)


def _rainbow(values: NDArray[np.float64]) -> list[tuple[int, ...]]:
    """BGR colours by rank."""
    rank = values.argsort().argsort() / max(len(values) - 1, 1)
    level = np.asarray(20 + 215 * rank, np.uint8)[:, None]
    return [tuple(color) for color in cv2.applyColorMap(level, cv2.COLORMAP_TURBO)[:, 0].tolist()]


def _write_caption(
    title: str, matches: Matches, other: Matches, counted: str
) -> tuple[str, str, str]:
    """Return the title, the details and the inliers."""
    first, second = matches.keypoints
    gained = int(_gained(matches, other).sum())
    return (
        title,
        f"{first} + {second} keypoints, {len(matches)} matches,",
        f"{int(matches.inlier.sum())} {counted}, {gained} of them only here",
    )


def _draw_caption(caption: tuple[str, str, str], width: int, scale: float) -> Picture:
    title, details, inliers = caption
    strip = np.full((_CAPTION_PX, width, 3), _PAPER, np.uint8)
    baseline = _CAPTION_PX - 18
    cv2.putText(strip, title, (0, baseline), _FONT, scale, _INK, 1, cv2.LINE_AA)
    left = width - _text_width(inliers, scale)
    cv2.putText(strip, inliers, (left, baseline), _FONT, scale, _INK, 1, cv2.LINE_AA)
    left -= _text_width(details + " ", scale)
    cv2.putText(strip, details, (left, baseline), _FONT, scale, _FAINT_INK, 1, cv2.LINE_AA)
    return strip


def _text_width(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, _FONT, scale, 1)[0][0])


def _draw_line(
    canvas: Picture, start: NDArray[Any], end: NDArray[Any], color: tuple[int, ...]
) -> None:
    cv2.line(canvas, _fixed(start), _fixed(end), color, 1, cv2.LINE_AA, _SHIFT)


def _draw_circle(
    canvas: Picture, center: NDArray[Any], radius: float, color: tuple[int, ...], thickness: int
) -> None:
    radius_fixed = round(radius * 2**_SHIFT)
    cv2.circle(canvas, _fixed(center), radius_fixed, color, thickness, cv2.LINE_AA, _SHIFT)


def _fixed(place: NDArray[Any]) -> tuple[int, int]:
    x, y = np.rint(np.asarray(place) * 2**_SHIFT).astype(int).tolist()
    return x, y
