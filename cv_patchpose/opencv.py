"""OpenCV's classes by name, wherever its version keeps them."""

from __future__ import annotations

from typing import Any

import cv2


def find_class(name: str) -> Any:
    """Return a class of cv2 or, where OpenCV 5 moved some, of cv2.xfeatures2d; None: not built."""
    rooms = (cv2, getattr(cv2, "xfeatures2d", None))
    return next((getattr(room, name) for room in rooms if hasattr(room, name)), None)


def require_class(name: str) -> Any:
    """Return a class as `find_class` does.

    Raises:
        ImportError: This OpenCV lacks it.
    """
    found = find_class(name)
    if found is None:
        raise ImportError(
            f"OpenCV {cv2.__version__} is built without {name}: "
            "pip install opencv-contrib-python instead of opencv-python"
        )
    return found
