"""The folders of a tree in which scenes are looked for, and their names."""

from __future__ import annotations

import os
from pathlib import Path


def list_folders(root: Path) -> list[Path]:
    """List a folder and those below it, sorted; each once, however many links lead to it."""
    folders: list[Path] = []
    seen: set[str] = set()
    for path, names, _ in os.walk(root, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            names.clear()  # what is below has been seen as well, or a link goes round in circles
            continue
        names.sort()
        seen.add(real)
        folders.append(Path(path))
    return sorted(folders)


def name_folder(folder: Path, root: Path) -> str:
    """Name a folder by its way from the root, the root by its own name."""
    return folder.relative_to(root).as_posix() if folder != root else root.resolve().name
