"""The scripts in benchmarks, as far as they can be tested without measuring."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def load(monkeypatch):
    """Import a script, and forget it and what it imports from its folder afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield import_module
    for name in set(sys.modules) - before:
        if (ROOT / "benchmarks" / f"{name}.py").exists():
            del sys.modules[name]


def test_the_curve_is_drawn_again_without_measuring(load, tmp_path, monkeypatch):
    curve = load("curve")
    (tmp_path / "results").mkdir()
    row = {"model": "polar", "us_per_keypoint": 15.0, "ratio_to_sift": 0.2}
    rows = [row | dict.fromkeys(curve.COLUMNS, 0.5)]
    (tmp_path / "results/curve.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(curve, "DOCS", tmp_path)
    monkeypatch.setattr(curve, "RESULTS", tmp_path / "results/curve.json")
    monkeypatch.setattr(sys, "argv", ["curve.py", "--redraw"])
    curve.main()
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert set(curve.DRAWN) <= set(curve.COLUMNS)
