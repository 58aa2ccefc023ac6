"""Write two photographs to match: one as it is, one as if taken again from another place.

The second is turned, zoomed, seen at a slant, darker, noisy and compressed.

Usage: python examples/demo_photographs.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from skimage import data

TURN_DEG = 50.0  # clockwise on screen
ZOOM = 0.8
SLANT = 1.8  # foreshortening along the photograph's width
PERSPECTIVE = 3e-4  # per pixel: what lies to the right is further away


def seen_from_elsewhere(image: np.ndarray) -> np.ndarray:
    """Return the whole image as seen by a turned camera from the side, on a larger canvas."""
    height, width = image.shape[:2]
    cosine, sine = np.cos(np.radians(TURN_DEG)), np.sin(np.radians(TURN_DEG))
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [PERSPECTIVE, 0, 1]])
    to_center = np.array([[1, 0, (1 - width) / 2], [0, 1, (1 - height) / 2], [0, 0, 1]])
    view = turn @ np.diag([ZOOM / SLANT, ZOOM, 1]) @ to_center
    corners = np.float32([[0, 0], [width, 0], [width, height], [0, height]])
    mapped = cv2.perspectiveTransform(corners[None], view)[0]
    low, high = mapped.min(0), mapped.max(0)
    view = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1]]) @ view
    shrink = ZOOM / np.sqrt(SLANT)
    blurred = cv2.GaussianBlur(image, (0, 0), 0.5 * np.sqrt(1 / shrink**2 - 1))
    return cv2.warpPerspective(blurred, view, np.ceil(high - low).astype(int).tolist())


def taken_again(image: np.ndarray) -> np.ndarray:
    """Return the image a little darker, with other contrast and with sensor noise."""
    noise = np.random.default_rng(0).normal(0.0, 4.0, image.shape)
    return np.clip(0.8 * image + 10.0 + noise, 0, 255).astype(np.uint8)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    photograph = cv2.cvtColor(data.stereo_motorcycle()[0], cv2.COLOR_RGB2BGR)
    inside = seen_from_elsewhere(np.ones_like(photograph))  # 0 on the canvas around it
    second = inside * taken_again(seen_from_elsewhere(photograph))
    cv2.imwrite(str(folder / "first.jpg"), photograph, [cv2.IMWRITE_JPEG_QUALITY, 92])
    cv2.imwrite(str(folder / "second.jpg"), second, [cv2.IMWRITE_JPEG_QUALITY, 75])
    print(
        f"{folder}: second.jpg is first.jpg turned by {TURN_DEG:g} degrees, zoomed by {ZOOM:g}, "
        "seen at a slant, darker and noisy"
    )


if __name__ == "__main__":
    main()
