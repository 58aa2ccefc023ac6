"""Write two photographs to match: one as it is, one turned, zoomed, darker, noisy and compressed.

Usage: python examples/demo_photographs.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from skimage import data

TURN_DEG = 50.0  # clockwise on screen
ZOOM = 0.6


def turned_and_zoomed(image: np.ndarray) -> np.ndarray:
    """Return the whole image turned by TURN_DEG and zoomed by ZOOM, on a larger canvas."""
    height, width = image.shape[:2]
    # cv2 counts angles counter-clockwise.
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -TURN_DEG, ZOOM)
    cosine, sine = np.abs(matrix[0, :2])
    new_width = int(np.ceil(width * cosine + height * sine))
    new_height = int(np.ceil(width * sine + height * cosine))
    matrix[:, 2] += (new_width - width) / 2, (new_height - height) / 2
    blurred = cv2.GaussianBlur(image, (0, 0), 0.5 * np.sqrt(1 / ZOOM**2 - 1))
    return cv2.warpAffine(blurred, matrix, (new_width, new_height))


def taken_again(image: np.ndarray) -> np.ndarray:
    """Return the image a little darker, with other contrast and with sensor noise."""
    noise = np.random.default_rng(0).normal(0.0, 4.0, image.shape)
    return np.clip(0.8 * image + 10.0 + noise, 0, 255).astype(np.uint8)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    photograph = cv2.cvtColor(data.stereo_motorcycle()[0], cv2.COLOR_RGB2BGR)
    inside = turned_and_zoomed(np.ones_like(photograph))  # 0 on the canvas around it
    second = inside * taken_again(turned_and_zoomed(photograph))
    cv2.imwrite(str(folder / "first.jpg"), photograph, [cv2.IMWRITE_JPEG_QUALITY, 92])
    cv2.imwrite(str(folder / "second.jpg"), second, [cv2.IMWRITE_JPEG_QUALITY, 75])
    print(f"{folder}: second.jpg is first.jpg turned by {TURN_DEG:g} degrees, zoomed by {ZOOM:g}")


if __name__ == "__main__":
    main()
