"""The accuracy tables of the README and the model cards are those of docs/results."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "accuracy_tables.py"))
ROWS = {
    "polar": {"method": "polar", "mma_3": 0.5349, "correct_matches": 1249.6},
    "upright": {"method": "upright", "mma_3": 0.25, "correct_matches": None},
}


@pytest.mark.parametrize("page", SCRIPT["PAGES"], ids=lambda path: path.name)
def test_pages_show_the_results(page):
    text = page.read_text()
    assert "<!-- table: " in text
    assert SCRIPT["fill"](text, SCRIPT["read_results"]) == text


def test_a_table_has_the_methods_of_its_results():
    page = "before\n<!-- table: corners -->\nold\n<!-- end -->\nafter"
    lines = SCRIPT["fill"](page, lambda name: ROWS).splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    rows = [line for line in lines if line.startswith("|")][2:]
    assert rows == [
        "| fixed size, upright | - | 0.250 | - | 0.250 | - |",
        "| **ours (`polar`)** | - | 0.535 | 1,250 | 0.535 | 1,250 |",
    ]


def test_a_mark_without_a_table_is_an_error():
    with pytest.raises(KeyError):
        SCRIPT["fill"]("<!-- table: nothing -->\n<!-- end -->", lambda name: ROWS)
