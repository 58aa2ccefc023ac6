"""The scripts in benchmarks, as far as they can be tested without measuring."""

from __future__ import annotations

import json
import mmap
import queue
import sys
import threading
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
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


def test_the_family_trains_on_views_of_both_kinds(load, tmp_path, monkeypatch):
    """From the photographs to checkpoints that can be exported."""
    torch = pytest.importorskip("torch")
    from skimage import data

    from cv_patchpose.training.checkpoint import load_checkpoint
    from cv_patchpose.training.device_views import zoom_and_rotation
    from cv_patchpose.training.export import export_checkpoint

    script = load("train_family")
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for name in ("astronaut", "camera", "coffee"):
        cv2.imwrite(str(photographs / f"{name}.png"), cv2.resize(getattr(data, name)(), (240, 200)))
    base = replace(script.BASE, batch_size=16, validation_keypoints=64, synthesis=script.SYNTHESIS)
    monkeypatch.setattr(script, "BASE", base)
    monkeypatch.setattr(
        script, "FAMILY", {"rings-384": script.ring(24, 16), "rings-16": script.ring(16, 16)}
    )
    for name, count in (
        ("GROUPS", 2),
        ("POOL_KEYPOINTS", 192),
        ("FOUND_POOL", 64),
        ("FOUND_BATCH", 16),
    ):
        monkeypatch.setattr(script, name, count)
    family = script.Family(["rings-16"], torch.device("cpu"))
    run = script.Run(photographs, tmp_path / "run", family, workers=1, rotation="gradients")
    before = [value.clone() for value in family.members[1].network.parameters()]
    shown, guidance = [], []

    def recorded(batch):
        guidance.append(float(family.guidance))
        shown.append((batch, prepare(batch)))
        return shown[-1][1]

    prepare = script.prepare
    monkeypatch.setattr(script, "prepare", recorded)
    run.train(minutes=0.03, validate_every=1.0)
    assert family.steps > 2
    assert 0.5 < guidance[0] <= 1
    assert guidance[-1] == 0  # an elder would be left behind
    assert run.supply.arrived >= run.supply.found.filled > 0
    assert (family.losses > 0).all()
    after = family.members[1].network.parameters()
    assert all((old != new).any() for old, new in zip(before, after, strict=True))
    small = str(tmp_path / "run/rings-16")
    wider = script.Member("rings-384", torch.device("cpu"), small)
    patches = torch.randn(3, 1, 24, 48)
    with torch.no_grad():
        same = zip(family.members[1].average(patches), wider.average(patches), strict=True)
        assert all(torch.allclose(one, other, atol=1e-4) for one, other in same)
    with pytest.raises(ValueError, match=r"elder: .*no-such\.pt"):
        script.Family([], torch.device("cpu"), elder=str(tmp_path / "no-such.pt"))
    with pytest.raises(ValueError, match="init: .*another network: .*channels"):
        script.Member("rings-16", torch.device("cpu"), str(tmp_path / "run/rings-384"))
    batch, told = shown[0]
    assert batch["gradients"].shape == (16, 2, 2)
    of_points = zoom_and_rotation(batch["jacobian"])[1]
    assert ((told["turns"] - of_points + 180) % 360 - 180).abs().mean() > 0.5
    state = load_checkpoint(tmp_path / "run/rings-16")
    assert state["keypoints"] == 16 * family.steps
    assert state["train_config"]["synthesis"]["rotation"] == "gradients"
    assert export_checkpoint(tmp_path / "run/rings-16", tmp_path / "small.onnx").is_file()


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_an_elder_is_imitated_as_far_as_asked(load, monkeypatch, guidance):
    """By a teacher that reads fewer rings than the others, and through it by them."""
    torch = pytest.importorskip("torch")
    script = load("train_family")
    small = {"stem_channels": 8, "channels": (8,) * 4, "hidden": 16}
    base = replace(script.BASE, floor=1.0, teacher_weight=10.0)
    wide = replace(script.FAMILY["wide"], **small, floor=1.0, teacher_weight=10.0)
    monkeypatch.setattr(script, "BASE", base)
    monkeypatch.setattr(script, "FAMILY", {"wide": wide, "rings-16": script.ring(16, 16)})
    torch.manual_seed(0)
    elder = script.build_network(script.network_config(script.ring(16, 16))).eval()
    with torch.no_grad():
        elder.orientation.weight *= 30  # decided
    monkeypatch.setattr(script, "_load_elder", lambda path: elder)
    family = script.Family(["rings-16"], torch.device("cpu"), teacher="wide", elder="elder")
    family.guidance.fill_(guidance)
    turns = torch.randint(36, (6, 4))
    columns = (torch.arange(-6, 42) - turns[..., None]) % 36
    circle = torch.randn(6, 1, 1, 24, 36).expand(6, 4, 1, 24, 36)
    exact = circle.gather(-1, columns[:, :, None, None].expand(6, 4, 1, 24, 48))
    pairs = torch.tensor([(a, b) for a in range(4) for b in range(a + 1, 4)])
    rotation = 10.0 * (turns[:, pairs[:, 1]] - turns[:, pairs[:, 0]])
    batch = {
        "patches": exact, "exact_patches": exact, "pairs": pairs, "rotation": rotation,
        "octaves": torch.zeros(6, 6), "known": torch.ones(6, dtype=torch.bool),
        "turns": 10.0 * turns, "moves": torch.zeros(6, 4),
    }  # fmt: skip
    told = script.teach(elder, batch, family.agree).orientation
    for member in family.members:
        member.set_rate(0.02)
    for _ in range(20):
        family.step(batch)
    for member in family.members:
        with torch.no_grad():
            found = script._apply(member.network, exact).orientation.softmax(-1)
        agree = (found.argmax(-1) == told.argmax(-1)).float().mean()
        assert (agree > 0.8) == bool(guidance), (member.name, agree)


def test_an_elder_is_a_network_of_rings(load, monkeypatch):
    torch = pytest.importorskip("torch")
    script = load("train_family")
    monkeypatch.setattr(script, "load_checkpoint", lambda path: {})
    shape = script.network_config(script.FAMILY["wide"])
    monkeypatch.setattr(script, "shape_of", lambda state: shape)
    with pytest.raises(ValueError, match=r"elder: expected rings .* network polar .*: some\.pt"):
        script.Family([], torch.device("cpu"), elder="some.pt")


def test_a_network_of_fewer_rings_is_given_its_own_grid(load):
    """What is cut out of the patches of the others is what its grid would have sampled."""
    torch = pytest.importorskip("torch")
    from skimage import data

    from cv_patchpose.patches import build_pyramid, sample_patches

    script = load("train_family")
    pyramid = build_pyramid(data.camera())
    wide, rings = (script.network_config(c) for c in (script.FAMILY["wide"], script.ring(64)))
    place = np.array([[200.0, 180.0]]), np.full(1, 90.0), np.zeros(1)
    expected, given = (
        torch.from_numpy(sample_patches(pyramid, *place, shape.grid)) for shape in (wide, rings)
    )
    cut, log_prior = script._cut_patches(wide, None, (given, None))
    assert torch.allclose(cut, expected, atol=1e-5)
    assert log_prior.shape == (1, 13)


def test_the_family_is_fed_keypoints_found_again(load):
    """A quarter of each batch as long as there are some, each drawn a few times at most."""
    torch = pytest.importorskip("torch")
    script = load("train_family")
    shapes = {"patches": (4, 1, 24, 48), "scale_sigma": (4,), "jacobian": (4, 2, 2)}
    count, share = script.BASE.batch_size, script.BASE.batch_size // 4

    def keypoints(number, value):
        return {name: torch.full((number, *shape), value) for name, shape in shapes.items()}

    supply = script.Supply.__new__(script.Supply)
    supply.made, supply.found = script.DevicePool(8), script.DevicePool(share)
    supply.made.put(keypoints(8, 1.0))
    supply.device, supply._queue = torch.device("cpu"), queue.Queue()
    supply.used = supply.arrived = supply.found_left = 0
    supply.synthesis = script.SYNTHESIS
    supply._queue.put(keypoints(share, 2.0))
    batches = iter(supply)
    supply.views = SimpleNamespace(make=lambda groups: keypoints(8, 1.0))
    found = [int((next(batches)["scale_sigma"][:, 0] == 2).sum()) for _ in range(6)]
    assert found == [share] * script.FOUND_REUSE + [0] * (6 - script.FOUND_REUSE)
    assert len(next(batches)["patches"]) == count
    supply._queue.put(OSError("a worker's"))
    with pytest.raises(OSError, match="a worker's"):
        next(batches)


def test_what_ends_a_worker_ends_the_training(load):
    script = load("train_family")
    supply = script.Supply.__new__(script.Supply)
    supply._queue, supply._stop = queue.Queue(), threading.Event()

    def fails():
        raise ValueError("no such photograph")
        yield

    supply._collect(fails())
    with pytest.raises(ValueError, match="no such photograph"):
        supply._receive()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--init", "rings-384="], "expected MEMBER=CHECKPOINT"),
        (["--init", "rings-64=a", "--members", "rings-32"], "--init: expected each of"),
        (["--workers", "-1"], "--workers, --side-streams: expected"),
        (["--minutes", "0"], "--minutes, --validate-every: expected"),
    ],
)
def test_the_family_refuses_options(load, monkeypatch, capsys, tmp_path, words, message):
    pytest.importorskip("torch")
    script = load("train_family")
    monkeypatch.setattr(
        sys, "argv", ["train_family.py", "photographs", str(tmp_path / "r"), *words]
    )
    with pytest.raises(SystemExit):
        script.main()
    assert message in capsys.readouterr().err


def test_limits_are_told_by_what_is_large_about_a_pair(load, tmp_path, monkeypatch):
    """And the warped images are those that the homographies say: their poses agree."""
    limits = load("limits")
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (60, 80), np.uint8), (320, 240))
    scene = tmp_path / "pairs/scene"
    scene.mkdir(parents=True)
    for number in range(1, 5):
        # Another appearance: of the photographs nothing agrees.
        shown = image if number == 1 else rng.permutation(image.ravel()).reshape(image.shape)
        cv2.imwrite(str(scene / f"{number}.png"), shown)
    center = np.array([[1, 0, 160], [0, 1, 120], [0, 0, 1.0]])
    for number, linear in ((2, np.eye(2)), (3, np.diag([1.3, 0.8])), (4, 1.5 * np.eye(2))):
        matrix = np.eye(3)
        matrix[:2, :2] = linear
        np.savetxt(scene / f"H_1_{number}", center @ matrix @ np.linalg.inv(center))
    monkeypatch.setattr(limits, "RESULTS", tmp_path / "limits.json")
    monkeypatch.setattr(sys, "argv", ["limits.py", str(tmp_path / "pairs"), "--jobs", "1"])
    limits.main()
    rows = json.loads((tmp_path / "limits.json").read_text())["rows"]
    assert [(row["method"], row["pairs"]) for row in rows] == [(g, 1) for g in limits.KINDS]
    assert all(row["aligned_orientation_within_5_deg"] < 30 for row in rows)
    same = rows[0]
    assert same["warped_orientation_within_5_deg"] > 95
    assert same["orientation_within_5_deg"] < 30
    pair = limits.list_pairs(limits.find_sequences(tmp_path / "pairs")[0], quick=False)[2]
    expected = cv2.warpPerspective(image, pair.target.homography, (320, 240))
    inner = slice(20, -20)
    difference = cv2.absdiff(limits.warp(pair)[inner, inner, 0], expected[inner, inner])
    assert difference.mean() < 4


@pytest.mark.parametrize(("zoom", "turn_deg"), [(1.0, 0.0), (1.7, 83.0), (0.4, -141.0)])
def test_windows_laid_over_each_other_tell_zoom_and_rotation(load, zoom, turn_deg):
    from skimage import data

    from cv_patchpose.patches import build_pyramid, sample_patches

    limits = load("limits")
    pyramid = build_pyramid(data.camera())
    xy_px = np.array([[200.0, 180.0], [260.0, 140.0], [230.0, 300.0]])

    def edges(window_px, angle_deg):
        places = xy_px, np.full(3, window_px), np.full(3, angle_deg), limits.GRID
        return limits.describe_edges(sample_patches(pyramid, *places, standardize=True)[:, 0])

    # Seen zoomed, the same pixels reach over less of the scene.
    octaves, found_deg = limits.align(edges(120.0, 0.0), edges(120.0 / zoom, -turn_deg))
    np.testing.assert_allclose(octaves, np.log2(zoom), atol=0.06)
    np.testing.assert_allclose((found_deg - turn_deg + 180) % 360, 180, atol=2)


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
