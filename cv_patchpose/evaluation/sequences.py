"""Image sequences in HPatches layout, opened as they are or with image 2 rotated and zoomed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.evaluation.folders import list_folders, name_folder
from cv_patchpose.files import IMAGE_SUFFIXES, read_image
from cv_patchpose.homography import project

_LEAST_SIDE_PX = 16
_MOST_ZOOM = 8  # beyond it an image is a blur, or larger than OpenCV warps


@dataclass(frozen=True, eq=False)
class Target:
    """A later image of a sequence.

    Attributes:
        path: Image file.
        homography: (3, 3), from the sequence's image 1 to this image.
    """

    path: Path
    homography: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ImageSequence:
    """Image 1 of a scene and the images it is compared with.

    Attributes:
        name: Folder, relative to the root that was searched.
        first: File of image 1.
        targets: Images 2, 3, ... in order.
    """

    name: str
    first: Path
    targets: tuple[Target, ...]


@dataclass(frozen=True, eq=False)
class PlanarPair:
    """Image 1 of a sequence and one of its targets.

    Attributes:
        sequence: Name.
        pair: Name of the pair within the sequence.
        first: File of image 1.
        target: The other image.
    """

    sequence: str
    pair: str
    first: Path
    target: Target

    @property
    def name(self) -> str:
        """Of sequence and pair."""
        return f"{self.sequence}/{self.pair}"


@dataclass(frozen=True, eq=False)
class View:
    """An image and where its photograph lies in it.

    Attributes:
        image: (h, w, 3) uint8, BGR.
        from_photo: (3, 3), from the photograph's pixels to the image's.
        photo_size: Width and height of the photograph, pixels.
    """

    image: NDArray[np.uint8]
    from_photo: NDArray[np.float64]
    photo_size: tuple[int, int]

    @property
    def is_turned(self) -> bool:
        """Whether the image is more than the bare photograph."""
        return not np.array_equal(self.from_photo, np.eye(3))

    def shows(self, xy_px: NDArray[np.float64], margin_px: float = 0.0) -> NDArray[np.bool_]:
        """Find the points with photograph around them.

        Args:
            xy_px: (N, 2) points of the image, pixels.
            margin_px: Least distance to the photograph's border, pixels of the image.

        Returns:
            (N,) bool.
        """
        to_photo = np.asarray(np.linalg.inv(self.from_photo), np.float64)
        margin = margin_px * math.sqrt(abs(np.linalg.det(to_photo[:2, :2])))
        xy = project(to_photo, xy_px)
        limit = np.asarray(self.photo_size) - 1.0 - margin
        return np.asarray(np.all((xy >= margin) & (xy <= limit), axis=1))


def find_sequences(root: Path) -> tuple[list[ImageSequence], dict[str, str]]:
    """Find every folder under a root that holds images 1, 2, ... and files H_1_2, ...

    Args:
        root: Folder, searched recursively.

    Returns:
        The sequences in order of name, and what is wrong with each folder or pair that could not
        be read, by its name.

    Raises:
        ValueError: ``root`` is no folder or holds no sequence.
    """
    if not root.is_dir():
        raise ValueError(f"root: expected a folder, got {root}")
    sequences: list[ImageSequence] = []
    failures: dict[str, str] = {}
    for folder in list_folders(root):
        images = _numbered_images(folder)
        listed = sorted(path for path in folder.glob("H_1_*") if path.name[4:].isdecimal())
        if not listed and not (1 in images and len(images) > 1):
            continue
        name = name_folder(folder, root)
        try:
            sequence, wrong = _read_sequence(name, folder, images, listed)
        except (ValueError, OSError) as error:
            failures[name] = str(error)
            continue
        sequences.append(sequence)
        failures |= wrong
    if not sequences and not failures:
        raise ValueError(
            f"root: expected folders with images 1.*, 2.*, ... and files H_1_2, ..., "
            f"got none under {root}"
        )
    return sequences, failures


def _numbered_images(folder: Path) -> dict[int, list[Path]]:
    images: dict[int, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.stem.isdecimal() and path.stem[0] != "0":
            images.setdefault(int(path.stem), []).append(path)
    return images


def _read_sequence(
    name: str, folder: Path, images: dict[int, list[Path]], listed: list[Path]
) -> tuple[ImageSequence, dict[str, str]]:
    """Return a sequence and, by the name of the pair, what is wrong with the others of it."""
    numbers = sorted({*images, *(int(path.name[4:]) for path in listed)} - {1})
    if not numbers:
        raise ValueError(f"{folder}: expected an image 2.* or further ones, got only image 1")
    homographies = {number: folder / f"H_1_{number}" for number in numbers}
    first = _only_image(1, images, homographies[numbers[0]])
    targets: list[Target] = []
    failures: dict[str, str] = {}
    for number, path in homographies.items():
        try:
            targets.append(Target(_only_image(number, images, path), read_homography(path)))
        except (ValueError, OSError) as error:
            failures[f"{name}/1-{number}"] = str(error)
    if not targets:
        raise ValueError(next(iter(failures.values())))  # the others are mostly the same
    return ImageSequence(name, first, tuple(targets)), failures


def _only_image(number: int, images: dict[int, list[Path]], homography: Path) -> Path:
    found = images.get(number, [])
    if not found:
        raise ValueError(
            f"{homography}: expected an image {number}.* beside it, its number without zeros in "
            f"front and one of {', '.join(IMAGE_SUFFIXES)} behind, got none"
        )
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ValueError(f"{homography.parent}: expected one image {number}.*, got {names}")
    return found[0]


def list_pairs(sequences: list[ImageSequence], quick: bool) -> list[PlanarPair]:
    """Return the pairs of all sequences, or every third of them."""
    pairs = [
        PlanarPair(
            sequence.name, f"{sequence.first.stem}-{target.path.stem}", sequence.first, target
        )
        for sequence in sequences
        for target in sequence.targets
    ]
    return pairs[::3] if quick else pairs


def sequence_of(pair: PlanarPair) -> str:
    """Name the sequence: one bad image fails in many pairs."""
    return pair.sequence


def read_homography(path: Path) -> NDArray[np.float64]:
    """Read a 3 x 3 matrix of text.

    Args:
        path: File with nine numbers in three lines.

    Returns:
        (3, 3) float64.

    Raises:
        ValueError: The file is missing or holds no invertible 3 x 3 matrix; names it.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a homography file, got none")
    try:
        lines = [line.partition("#")[0].split() for line in path.read_text().splitlines()]
        rows = [[float(word) for word in line] for line in lines if line]
    except ValueError as error:
        raise ValueError(f"{path}: expected a 3 x 3 matrix as text, got {error}") from error
    counts = [len(row) for row in rows]
    if counts != [3, 3, 3]:
        got = f"lines of {', '.join(map(str, counts))}" if counts else "an empty file"
        raise ValueError(
            f"{path}: expected a 3 x 3 matrix, three lines of three numbers, got {got}"
        )
    homography = np.array(rows, np.float64)
    if not np.isfinite(homography).all():
        raise ValueError(f"{path}: expected finite numbers, got {homography.tolist()}")
    if np.linalg.matrix_rank(homography) < 3:
        raise ValueError(f"{path}: expected an invertible matrix, got a singular one")
    return homography


def read_photograph(path: Path) -> NDArray[np.uint8]:
    """Read an image in which there can be points.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no image, or smaller than any detector takes; names it.
    """
    image = read_image(path)
    height, width = image.shape[:2]
    if min(height, width) < _LEAST_SIDE_PX:
        raise ValueError(
            f"{path}: expected an image of at least {_LEAST_SIDE_PX} x {_LEAST_SIDE_PX} px, "
            f"got {width} x {height}"
        )
    return image


def require_view(rotate: float, zoom: float) -> None:
    """Refuse a rotation or zoom of which there is no image, by their options' names."""
    if not math.isfinite(rotate):
        raise ValueError(f"rotate: expected a finite number of degrees, got {rotate}")
    if not 1 / _MOST_ZOOM <= zoom <= _MOST_ZOOM:
        raise ValueError(f"zoom: expected a factor from 1/{_MOST_ZOOM} to {_MOST_ZOOM}, got {zoom}")


def turn_image(image: NDArray[np.uint8], rotate_deg: float = 0.0, zoom: float = 1.0) -> View:
    """Rotate an image about its centre and zoom it, on a canvas that holds all of it.

    Shrinking blurs first, so that a photograph's own blur of half a pixel stays half a pixel.
    The canvas around the photograph is black.

    Args:
        image: (h, w, 3) uint8.
        rotate_deg: Degrees clockwise on screen.
        zoom: Factor on lengths.

    Returns:
        The view; without rotation and zoom it is the image itself.
    """
    height, width = image.shape[:2]
    if rotate_deg % 360.0 == 0.0 and zoom == 1.0:
        return View(image, np.eye(3), (width, height))
    if zoom < 1.0:
        blur_px = 0.5 * math.sqrt(zoom**-2 - 1.0)
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), blur_px), np.uint8)
    turn = math.radians(rotate_deg)
    linear = zoom * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    canvas = np.ceil(np.abs(linear) @ (width, height) - 1e-6).astype(int)
    from_photo = np.eye(3)
    from_photo[:2, :2] = linear
    from_photo[:2, 2] = (canvas - 1) / 2 - linear @ ((width - 1) / 2, (height - 1) / 2)
    size = (int(canvas[0]), int(canvas[1]))
    turned = cv2.warpAffine(image, from_photo[:2], size, flags=cv2.INTER_CUBIC)
    return View(np.asarray(turned, np.uint8), from_photo, (width, height))
