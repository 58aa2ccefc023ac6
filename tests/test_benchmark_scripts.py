"""The scripts in benchmarks, as far as they can be tested without measuring."""

from __future__ import annotations

import json
import mmap
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


def test_the_family_takes_a_step_together(load):
    torch = pytest.importorskip("torch")
    script = load("train_family")
    views, count = script.SYNTHESIS.views, 2
    patches = {
        name: torch.randn(views * count, 1, grid.rows, grid.columns + 2 * grid.halo)
        for name, grid in (("first", script.FIRST), ("second", script.SECOND))
    }
    pairs = torch.tensor([(one, other) for one in range(views) for other in range(one)])
    changes = torch.zeros(count, len(pairs))
    batch = patches | {
        "prior": torch.zeros(views * count, 13),
        "rotation": changes,
        "octaves": changes,
        "pairs": pairs,
    }
    family = script.Family(["rings-32", "separable"], torch.device("cpu"))
    family.step(batch)
    assert family.losses.shape == (3, 2)
    assert (family.losses > 0).all()


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


def test_a_table_of_stages_shows_what_they_leave(load):
    tables = load("cost_tables")
    time = {"median_ms": 1500.0, "iqr_ms": 340.0, "cpu_ms": 2000.0}
    times = {"assign": time}
    times |= {
        stage: {"median_ms": 100.0, "iqr_ms": 1.0, "cpu_ms": 200.0} for stage in tables.STAGES
    }
    row = {"group": "stages", "threads": 1, "keypoints": 256, "times": times}
    lines = tables.format_group([row], None).splitlines()
    assert lines[2] == "| ms: median (IQR); CPU time | 256, 1 thread |"
    assert lines[4] == "| assign | 1,500 (340); 2,000 |"
    assert lines[-1] == "| the rest of assign | 900; 800 |"


def test_targets_are_of_the_last_commits_runs(load):
    tables = load("cost_tables")

    def run(commit, threads, ratio, **more):
        times = {name: {"ratio_to_first": ratio} for name, *_ in tables.ASSIGN}
        environment = {"commit": commit, "threads": threads}
        return {"model": "polar", "keypoints": 2048, "times": times, "environment": environment} | {
            key: {name: {"ratio_to_first": value} for name in times} for key, value in more.items()
        }

    runs = [run("old", 1, 0.9), run("new", 1, 0.4, times_warm_heap=0.45), run("new", 2, 0.3)]
    report = json.loads(tables.COST.read_text())
    lines = tables.format_targets(report, runs).splitlines()
    assert lines[2].endswith("2,048 keypoints | 0.5 | 0.40 | 0.30 |")
    assert lines[4].endswith("2,048 keypoints, warm heap | 0.5 | 0.45 | - |")
    page = f"before\n{tables.BEGIN.format('x')}\nold\n{tables.END.format('x')}\nafter\n"
    assert "old" not in tables.fill(page, "x", "new")
    assert tables.fill(page, "x", "new").endswith("\nafter\n")


def test_calls_are_timed_with_their_page_faults(load):
    def touch():
        with mmap.mmap(-1, 1000 * mmap.PAGESIZE) as memory:
            for page in range(1000):
                memory[page * mmap.PAGESIZE] = 1

    times = load("timing").time_interleaved({"touch": touch}, 3)
    assert times["touch"]["minor_faults"] > 10
    assert times["touch"]["system_ms"] >= 0


def test_assign_is_timed_with_a_warm_heap_too(load, monkeypatch, capsys):
    script = load("bench_assign")

    def run(command, env, **_):
        assert command[-3:] == ["--model", "polar", "--once"]
        assert env["MALLOC_MMAP_THRESHOLD_"] == "1000000000"
        return type("Done", (), {"stdout": '{"times": {"warm": 1}}'})

    monkeypatch.setattr(script, "measure", lambda options: {"times": {"as is": 1}})
    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["bench_assign.py", "--model", "polar"])
    script.main()
    assert json.loads(capsys.readouterr().out) == {
        "times": {"as is": 1},
        "times_warm_heap": {"warm": 1},
    }


def test_results_of_any_benchmark_are_shown(load, tmp_path, monkeypatch, capsys):
    script = load("show")
    times = {"first": {"median_ms": 1500.0, "ratio_to_first": 1.0}}
    times |= {"second": {"median_ms": 300.0, "ratio_to_first": 0.2}}
    environment = {"cpus": 2, "times": {}}
    reports = (
        {"benchmark": "a", "keypoints": 2048, "times": times, "times_warm_heap": times},
        {"benchmark": "b", "rows": [{"group": "network", "threads": 1, "times": times}]},
        {"benchmark": "c", "results": {"A, 32 px": {"pairs": 7, "times": times}}},
    )
    files = [tmp_path / f"{report['benchmark']}.json" for report in reports]
    for file, report in zip(files, reports, strict=True):
        file.write_text(json.dumps(report | {"environment": environment}))
    monkeypatch.setattr(sys, "argv", ["show.py", *map(str, files)])
    script.main()
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line and line[0] != " "] == [
        "a: keypoints: 2,048",
        "a: keypoints: 2,048, warm heap",
        "b: network, threads: 1",
        "c: results, A, 32 px, pairs: 7",
    ]
    assert shown.count("  second      300.00             0.2\n") == 4
