"""Files of a PatchPose dataset: the index, and shards of patch sets.

A shard is a zip archive: `shard.json`, which describes its keypoints, and for each of them a PNG
of its R x S patches, a row for each rotation and a column for each scale. PNG is lossless, any
viewer shows it, and the zip's checksums find damage. Of the 3,072 bytes of a patch of 32 pixels it
leaves 1,800, against 2,460 of numpy's compressed arrays, in less time; lossless WebP, 1,270, takes
nine times as long.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cv_patchpose.files import write_file
from cv_patchpose.patchpose.options import PatchPoseConfig
from cv_patchpose.patchpose.patch_sets import Keypoint, Patches, PatchSet

INDEX_NAME = "index.json"
FORMAT = "cv_patchpose PatchPose"
VERSION = 1

_DESCRIPTION = "shard.json"
# Looking for runs only is faster than looking for matches, and smaller on patches. Higher levels
# cost a third more time for 2 % of the size.
_PNG_OPTIONS = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
)
_DAMAGES = (
    *(zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError, cv2.error),
    RuntimeError,  # of zipfile, where damage looks like a password
)


@dataclass(frozen=True)
class Index:
    """What a dataset is made of, and with.

    Attributes:
        config: Options.
        images: Sizes of the image files in bytes, by name.
        opencv: Version, whose detectors decide where the keypoints are.
    """

    config: PatchPoseConfig
    images: dict[str, int]
    opencv: str = cv2.__version__

    def to_json(self) -> str:
        """Write as text, the same for the same dataset."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"

    @property
    def fingerprint(self) -> str:
        """Hash that the dataset's shards carry."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@dataclass(frozen=True)
class ShardContent:
    """What came of the images of a shard.

    Attributes:
        sets: Patch sets of their keypoints.
        skipped: Reasons why images have none, by name.
        dropped: Number of candidate keypoints left out for want of content.
    """

    sets: list[PatchSet]
    skipped: dict[str, str]
    dropped: int


@dataclass(frozen=True)
class ShardSummary:
    """Numbers of a shard.

    Attributes:
        keypoints: Patch sets in it.
        pairs: Patches in it.
        skipped: Reasons why images have no patch set, by name.
        dropped: Number of candidate keypoints left out for want of content.
    """

    keypoints: int
    pairs: int
    skipped: dict[str, str]
    dropped: int


def is_dataset(root: Path) -> bool:
    """Tell a dataset, by its index, from other folders."""
    return (root / INDEX_NAME).is_file()


def read_index(root: Path) -> Index:
    """Read a dataset's index.

    Raises:
        ValueError: No index, one of something else, or one of another version.
    """
    path = root / INDEX_NAME
    if not path.is_file():
        raise ValueError(f"{root}: expected a dataset with {INDEX_NAME}, got none; make one with "
                         "cv-patchpose generate")  # fmt: skip
    try:
        document = json.loads(path.read_bytes())
        form, version = document.pop("format"), document.pop("version")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the index of a PatchPose dataset, got a file of "
                         "something else") from error  # fmt: skip
    if (form, version) != (FORMAT, VERSION):
        raise ValueError(
            f"{path}: expected {FORMAT}, version {VERSION}, got {form}, version {version}; "
            "generate it again, or read it with the version of cv_patchpose that made it"
        )
    try:
        return Index(**(document | {"config": PatchPoseConfig(**document["config"])}))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected an index that is whole, got {error}") from error


def write_shard(path: Path, content: ShardContent, fingerprint: str) -> None:
    """Write a shard whole or not at all; the same content gives the same bytes.

    Args:
        path: Of the file.
        content: Patch sets and what was skipped.
        fingerprint: Of the dataset's index.
    """
    description = {
        "dataset": fingerprint,
        "keypoints": [_describe(patch_set) for patch_set in content.sets],
        "skipped": content.skipped,
        "dropped": content.dropped,
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        # A ZipInfo made of a name alone has a fixed date.
        archive.writestr(zipfile.ZipInfo(_DESCRIPTION), json.dumps(description))
        for number, patch_set in enumerate(content.sets):
            archive.writestr(zipfile.ZipInfo(_picture_name(number)), _encode(patch_set.patches))
    write_file(path, buffer.getvalue())


def read_shard(path: Path, fingerprint: str) -> ShardContent:
    """Read a shard.

    Args:
        path: Of the file.
        fingerprint: Of the dataset's index.

    Raises:
        ValueError: It is missing, truncated or damaged, or belongs to another dataset.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            description = _read_description(archive, fingerprint)
            sets = [
                _restore(entry, archive.read(_picture_name(number)))
                for number, entry in enumerate(description["keypoints"])
            ]
    except (*_DAMAGES, FileNotFoundError) as error:
        raise _damage(path, error) from error
    return ShardContent(sets, description["skipped"], description["dropped"])


def summarize_shard(path: Path, fingerprint: str) -> ShardSummary:
    """Read the numbers of a shard, and not its patches.

    Args:
        path: Of the file.
        fingerprint: Of the dataset's index.

    Raises:
        ValueError: It is missing, truncated, or belongs to another dataset.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            description = _read_description(archive, fingerprint)
        entries = description["keypoints"]
        pairs = sum(len(e["rotation_deg"]) * len(e["octaves"]) for e in entries)
        return ShardSummary(len(entries), pairs, description["skipped"], description["dropped"])
    except (*_DAMAGES, FileNotFoundError) as error:
        raise _damage(path, error) from error


def is_whole(path: Path, fingerprint: str) -> bool:
    """Tell whether a shard is there and undamaged; unlike `summarize_shard` this reads all of it.

    Args:
        path: Of the file.
        fingerprint: Of the dataset's index.
    """
    try:
        summary = summarize_shard(path, fingerprint)
        with zipfile.ZipFile(path) as archive:
            complete = len(archive.namelist()) == 1 + summary.keypoints
            return complete and archive.testzip() is None
    except _DAMAGES:
        return False


def _damage(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: expected a whole shard of this dataset, got {error}; run the cv-patchpose "
        "generate command of the dataset again, it writes what is missing or damaged"
    )


def _read_description(archive: zipfile.ZipFile, fingerprint: str) -> dict[str, Any]:
    description: dict[str, Any] = json.loads(archive.read(_DESCRIPTION))
    if description["dataset"] != fingerprint:
        raise ValueError("one of another dataset")
    return description


def _describe(patch_set: PatchSet) -> dict[str, Any]:
    return {
        **asdict(patch_set.keypoint),
        "rotation_deg": patch_set.rotation_deg.tolist(),
        "octaves": patch_set.octaves.tolist(),
    }


def _restore(entry: dict[str, Any], picture: bytes) -> PatchSet:
    rotation_deg = np.array(entry.pop("rotation_deg"), np.float64)
    octaves = np.array(entry.pop("octaves"), np.float64)
    keypoint = Keypoint(**(entry | {"xy_px": tuple(entry["xy_px"])}))
    patches = _decode(picture, len(rotation_deg), len(octaves))
    return PatchSet(keypoint, rotation_deg, octaves, patches)


def _picture_name(number: int) -> str:
    return f"{number:04d}.png"


def _encode(patches: Patches) -> bytes:
    rows, columns, size = patches.shape[:3]
    mosaic = patches.swapaxes(1, 2).reshape(rows * size, columns * size, 3)
    encoded = cv2.imencode(".png", cv2.cvtColor(mosaic, cv2.COLOR_RGB2BGR), _PNG_OPTIONS)[1]
    return encoded.tobytes()


def _decode(picture: bytes, rows: int, columns: int) -> Patches:
    mosaic: Any = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    if mosaic is None:
        raise ValueError("a picture that cannot be decoded")
    size = len(mosaic) // rows
    mosaic = cv2.cvtColor(mosaic, cv2.COLOR_BGR2RGB).reshape(rows, size, columns, size, 3)
    return np.ascontiguousarray(mosaic.swapaxes(1, 2))
