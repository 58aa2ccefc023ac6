"""The commit of the checkout that the package is run from."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_MATTERING = ("cv_patchpose", "cpp", "models/*.onnx")  # to results and to training


def current_commit() -> str | None:
    """Name the commit, None without a checkout.

    It is "-dirty" where code or models differ from the commit, whatever pages or results do.
    """
    if not (_ROOT / ".git").exists() or not shutil.which("git"):
        return None
    git = ["git", "-C", str(_ROOT)]
    done = subprocess.run(
        [*git, "describe", "--always"], capture_output=True, text=True, check=False
    )
    if not (commit := done.stdout.strip()):
        return None
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *_MATTERING], check=False)
    return f"{commit}-dirty" if changed.returncode else commit
