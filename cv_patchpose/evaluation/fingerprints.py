"""What a measurement depends on, as one digest: settings, contents of files, code and versions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import cv_patchpose
from cv_patchpose.evaluation.methods import identify_method
from cv_patchpose.evaluation.report import package_versions

_ROOM = Path(cv_patchpose.__file__).parent
_ROOMS_NOT_USED = ("training",)


def fingerprint(value: Any) -> str:
    """Digest dataclasses, numbers, texts, arrays and, in place of paths, what the files hold.

    Args:
        value: Any of these, nested.

    Returns:
        Hexadecimal SHA-256.

    Raises:
        OSError: A file cannot be read.
        TypeError: Something else.
    """
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint_method(method: str, protocol: Any) -> str:
    """Digest all that decides what a method gets on a pair, except the pair.

    The other methods of the protocol do not count. A model counts by what its file holds, not by
    its name.

    Args:
        method: One of the protocol's.
        protocol: A benchmark's.
    """
    weights = _weight_files(protocol.peer_weights)
    name, files = identify_method(method, weights)
    settings = dataclasses.asdict(protocol) | {"methods": name, "peer_weights": None, "kept": None}
    shared = weights if getattr(protocol, "reads_weights", False) else ()
    kind = type(protocol).__name__
    return fingerprint([kind, settings, files, shared, _code(), package_versions()])


def fingerprint_points(options: Any) -> str:
    """Digest what decides the points that are detected on an image, except the image.

    Args:
        options: Of a pipeline.
    """
    weights = _weight_files(options.peer_weights) if options.detects_with_weights else ()
    about = [options.detector, options.points, options.corner_size, weights]
    return fingerprint([*about, _code(), package_versions()])


def fingerprint_poses(method: str, options: Any) -> str:
    """Digest what decides the poses that a method gives points of an image, except these.

    Args:
        method: Its name.
        options: Of a pipeline.
    """
    name, files = identify_method(method, _weight_files(options.peer_weights))
    return fingerprint([name, files, options.scale_prior])


def _weight_files(folder: Path | None) -> tuple[Path, ...]:
    if folder is None or not folder.is_dir():
        return ()
    return tuple(sorted(path for path in folder.iterdir() if path.is_file()))


@lru_cache
def _code() -> str:
    """Digest the package's own files: a commit says less where some are changed."""
    files = [
        path
        for path in sorted(_ROOM.rglob("*"))
        if path.suffix in (".py", ".so", ".pyd")
        and path.relative_to(_ROOM).parts[0] not in _ROOMS_NOT_USED
    ]
    return fingerprint([(path.relative_to(_ROOM).as_posix(), path) for path in files])


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        with value.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"value: expected dataclasses, numbers, texts, arrays or paths, got {value!r}")
