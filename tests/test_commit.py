"""The commit that results and checkpoints name."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from cv_patchpose import commit


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_a_commit_is_dirty_where_code_or_models_are(tmp_path, monkeypatch):
    (tmp_path / "cv_patchpose").mkdir()
    for name in ("README.md", "cv_patchpose/code.py"):
        (tmp_path / name).write_text("before")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    monkeypatch.setattr(commit, "_ROOT", tmp_path)
    clean = commit.current_commit()
    (tmp_path / "README.md").write_text("after")
    assert commit.current_commit() == clean
    (tmp_path / "cv_patchpose/code.py").write_text("after")
    assert commit.current_commit() == f"{clean}-dirty"
