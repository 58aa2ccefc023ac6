"""The page of real pairs: it hides no loss and says how it was measured."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = ("real_pairs", "real_pairs_page", "real_pairs_tables")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import real_pairs

    yield real_pairs
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def page(script):
    return sys.modules["real_pairs_page"]


@pytest.fixture
def tables(script):
    return sys.modules["real_pairs_tables"]


def matching(method, mma_3, correct):
    return {"method": method, "mma_3": mma_3, "correct_matches": correct}


def two_view(method, gain, error):
    row = {"method": method, "maa_10": 0.9 + gain}
    return row | {"maa_10_gain": gain, "maa_10_gain_error": error}


def test_a_variant_or_the_papers_network_does_not_win_for_polar(page, tables):
    rows = [matching("polar", 0.5, 240), matching("polar-large", 0.7, 300)]
    rows += [matching("resnet18", 0.6, 200), matching("detector", 0.4, 250)]
    assert page.verdict(rows, tables.MATCHING) == (
        "`polar` is behind: MMA@3 0.500 against resnet18 0.600; "
        "correct matches 240 against detector 250.\n"
    )


def test_what_looks_the_same_is_level(page, tables):
    rows = [matching("polar", 0.5001, 240), matching("upright", 0.4999, 239)]
    assert page.verdict(rows, tables.MATCHING) == (
        "`polar` is ahead of all in correct matches; it is level in MMA@3 with upright.\n"
    )
    rows = [matching("polar", 0.5, 240), matching("upright", 0.4, 200)]
    ahead = "`polar` is ahead of all in MMA@3 and correct matches.\n"
    assert page.verdict(rows, tables.MATCHING) == ahead


def test_gains_come_with_their_standard_errors(page, tables):
    rows = [two_view("polar", 0.0, 0.0), two_view("polar:2", 0.03, 0.001)]
    rows += [two_view("orinet", 0.02, 0.01), two_view("detector", 0.004, 0.007)]
    rows += [two_view("affnet", -0.0072, 0.0068), two_view("upright", -0.7, 0.04)]
    assert page.verdict(rows, tables.TWO_VIEW) == (
        "mAA(10), 0.900: `polar` is behind orinet (0.020 ± 0.010); no difference beyond the "
        "standard error: detector (+0.004 ± 0.007), affnet (-0.007 ± 0.007); `polar` is ahead of "
        "upright (0.700 ± 0.040).\n"
    )


def test_all_that_look_best_are_bold_and_zeros_are_not(page):
    columns = {"a": ("a", ".2f"), "b": ("b", ".0f")}
    rows = [{"method": "m", "a": 0.501, "b": 0.2}, {"method": "n", "a": 0.499, "b": 0.0}]
    table = page.format_table(rows, columns)
    assert table[2:4] == ["| m | **0.50** | 0 |", "| n | **0.50** | 0 |"]


def test_two_views_have_sift_as_users_run_it(tables):
    views = [table for table in tables.tables() if not table.planar]
    assert all("detector-all" in table.methods for table in views if "SIFT" in table.title)
    assert all(table.methods[0] == tables.JUDGED for table in views)


def test_the_page_of_the_results_tells_how_they_were_measured(script, page, tables):
    results = ROOT / "docs/results/real-pairs"
    every = [(n, rotated) for n in range(len(tables.tables())) for rotated in (False, True)]
    measured = {
        (number, rotated): script.read_result(
            results / f"{tables.tables()[number].name(rotated)}.json"
        )
        for number, rotated in every
    }
    text = page.format_page(measured, 29.0, script.KEEP_MEMORY)
    assert not re.search(r"\b(peers|turned|as taken)\b", text.replace("-turned", ""))
    commits = {result["environment"]["commit"] for result in measured.values()}
    assert all(commit in text for commit in commits)
    commands = re.findall(r"```sh\n(.*)\n```", text)
    assert len(commands) == len(measured)
    assert all("--peer-weights WEIGHTS" in c and "--methods" in c for c in commands)
    for alt, name in re.findall(r"!\[(.*)\]\((.*)\)", text):
        assert alt.endswith(".")
        assert name not in alt
    assert "MALLOC_MMAP_MAX_=0" in text
    assert "smallest angle, not the strongest" in text
    pairs = measured[2, False]["rows"][0]["pairs"]
    assert sum(page.STRECHA.values()) == pairs
    assert f"{pairs} pairs: 15 easy, 28 medium, 52 hard" in text


def test_times_come_with_the_processes_and_threads_of_their_run(page):
    told = page.describe_times({"jobs": 3, "threads": 4, "cpus": 2}, {})
    assert "3 processes at once, 4 threads each" in told


def test_a_result_is_not_measured_again(script, tmp_path, monkeypatch):
    def run(command, **_):
        output = Path(command[command.index("-o") + 1])
        row = {"method": "polar", "seconds_pose": 0.001, "maa_10_gain_error": 0.0}
        output.write_text(json.dumps({"rows": [row], "environment": {}}))
        calls.append(command)

    calls = []
    monkeypatch.setattr(script.subprocess, "run", run)
    options = script.argparse.Namespace(
        pairs="P", scenes="S", weights="W", methods=("polar",), results=tmp_path,
        jobs=3, quick=False, page_only=False,
    )  # fmt: skip
    _, seconds = script.measure_all(options, [(2, True)])
    assert calls[0][calls[0].index("--jobs") + 1] == "3"
    assert script.measure_all(options, [(2, True)])[1] == seconds
    assert len(calls) == 1
