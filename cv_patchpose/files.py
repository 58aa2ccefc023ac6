"""Image and result files, read and written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.keypoints import array_from_keypoints

COLUMNS = ("x", "y", "size", "angle", "response", "octave", "class_id")
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TABLE_SUFFIXES = (".npz", ".csv")


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file, upright as its EXIF orientation says.

    An image of other than 8 bits is stretched: its least value becomes 0 and its largest 255.
    Cameras fill 12 of 16 bits, and floats have any range, so the type does not tell the range.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no image, or one with values that are not finite.
    """
    image = _decode(path, _read_bytes(path))
    if image.dtype != np.uint8:
        image = _stretch(path, image)
    if image.ndim == 2:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), np.uint8)
    return image


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: expected an image file, got no such file") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{path}: expected an image file, got a folder") from error


def _decode(path: Path, content: bytes) -> NDArray[Any]:
    """Decode (H, W) or BGR (H, W, 3), in the file's own type."""
    image: Any = None
    reason = ""
    if content:
        try:
            image = cv2.imdecode(
                np.frombuffer(content, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
            )
        except cv2.error as error:  # such as of a size beyond OpenCV's limits
            reason = f" ({getattr(error, 'err', error)})"
    if image is None:
        raise ValueError(f"{path}: expected an image file, got one that cannot be decoded{reason}")
    return np.asarray(image)


def _stretch(path: Path, image: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = float(image.min()), float(image.max())
    if not np.isfinite(high - low):
        raise ValueError(f"{path}: expected finite values, got NaN or infinity")
    levels = np.subtract(image, low, dtype=np.float64) * (255 / ((high - low) or 1))
    return np.asarray(np.rint(levels), np.uint8)


def find_images(folder: Path | str, argument: str = "images") -> list[Path]:
    """List the image files below a folder, sorted.

    Args:
        folder: Searched with its subfolders, links to folders included.
        argument: Name of what the folder was given as, for the messages.

    Raises:
        ValueError: The folder does not exist or holds no image file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{argument}: expected a folder of photographs, got {str(folder)!r}")
    found = sorted(files_below(root, IMAGE_SUFFIXES))
    if not found:
        kinds = ", ".join(IMAGE_SUFFIXES)
        raise ValueError(f"{argument}: expected image files ({kinds}) below {folder}, got none")
    return found


def files_below(
    folder: Path, suffixes: Sequence[str], above: frozenset[Path] = frozenset()
) -> Iterator[Path]:
    """Walk a tree of folders, through links too, but not round in circles.

    Args:
        folder: Where to begin; folders that may not be read are left out.
        suffixes: Of the files wanted, lower case.
        above: Real folders that the walk is in already.
    """
    real = folder.resolve()
    if real in above:
        return
    with contextlib.suppress(PermissionError):
        for path in folder.iterdir():
            if path.is_dir():
                yield from files_below(path, suffixes, above | {real})
            elif path.suffix.lower() in suffixes and path.is_file():
                yield path


def check_output(path: Path, suffixes: Sequence[str], *, inputs: Sequence[Path] = ()) -> None:
    """Check a file that is to be written, before the work and not after it.

    Args:
        path: Of the file.
        suffixes: That it may have, lower case.
        inputs: Files that must not be written over.

    Raises:
        ValueError: Another suffix, no folder to write to, a folder of that name, or an input.
        PermissionError: A folder that may not be written to.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: expected a file in an existing folder, got no such folder")
    if path.is_dir():
        raise ValueError(f"{path}: expected a file, got a folder")
    if path.exists() and any(one.exists() and path.samefile(one) for one in inputs):
        raise ValueError(f"{path}: expected another file than the image, got the same")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) BGR in the format of the file's suffix, whole or not at all.

    Raises:
        ValueError: The format cannot hold a picture of this size.
        OSError: It cannot be written.
    """
    encoded, content = False, np.empty(0, np.uint8)
    with contextlib.suppress(cv2.error):  # OpenCV 4 raises, OpenCV 5 returns False
        encoded, content = cv2.imencode(path.suffix.lower(), picture)
    if not encoded:
        height, width = picture.shape[:2]
        raise ValueError(f"{path}: expected a size the format can hold, got {width} x {height} px")
    write_file(path, content.tobytes())


def write_keypoints(path: Path, keypoints: Sequence[cv2.KeyPoint]) -> None:
    """Write N keypoints as an (N, 7) table with the columns `COLUMNS`, whole or not at all.

    A .npz file holds it as float64 array `keypoints`, beside `columns`; a .csv file has a header.
    """
    table = array_from_keypoints(keypoints)
    buffer = io.BytesIO()
    if path.suffix.lower() == ".npz":
        np.savez_compressed(buffer, keypoints=table, columns=np.array(COLUMNS))
    else:
        np.savetxt(buffer, table, "%.9g", ",", header=",".join(COLUMNS), comments="")
    write_file(path, buffer.getvalue())
