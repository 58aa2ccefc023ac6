"""What is left where a method, an image or a process fails."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from cv_patchpose.cli import main
from cv_patchpose.evaluation import homography_matching
from cv_patchpose.evaluation.homography_matching import MatchingProtocol
from cv_patchpose.evaluation.results import TwoViewResult
from cv_patchpose.evaluation.two_view import summarize

METHOD = """
from cv_patchpose.evaluation.controls import AngleOnly, dominant_gradient_deg

def estimate(image, xy_px, window_px):
    if image.mean() > {brightest}:
        raise RuntimeError("boom")
    return dominant_gradient_deg(image, xy_px, window_px)

def load_method(settings):
    return AngleOnly(estimate, magnification=6.0, window_px=settings.window_px)
"""


@pytest.fixture
def root(photograph, tmp_path):
    """Two sequences of three images each; image 3 of the second is bright."""
    root = tmp_path / "tree"
    image = photograph[:300, :300]
    for name in ("Boston", "Paris"):
        (root / name).mkdir(parents=True)
        for number in (1, 2, 3):
            shown = np.maximum(image, 200) if (name, number) == ("Paris", 3) else image
            cv2.imwrite(str(root / name / f"{number}.png"), shown)
        for number in (2, 3):
            np.savetxt(root / name / f"H_1_{number}", np.eye(3))
    return root


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """A method that fails everywhere, by the name of its file."""
    (tmp_path / "bad.py").write_text(METHOD.format(brightest=-1))
    monkeypatch.chdir(tmp_path)
    return "bad.py"


@pytest.mark.parametrize(
    ("benchmark", "options", "failures"),
    [
        ("homography-matching", ["--max-keypoints", "50"], {"bad.py: Boston", "bad.py: Paris"}),
        ("homography-pose", ["--window-px", "32"], {"bad.py: Boston", "bad.py: Paris"}),
        (
            "patchpose",
            ["--window-px", "16"],
            {f"bad.py: {city}/{n}.png" for city in ("Boston", "Paris") for n in (1, 2, 3)},
        ),
    ],
)
def test_a_failing_method_is_named_and_does_not_lose_the_others(
    root, bad, tmp_path, capsys, benchmark, options, failures
):
    arguments = ["evaluate", benchmark, str(root), "--methods", f"upright,{bad}", *options]
    arguments += ["-o", str(tmp_path / "out.json"), "--report", str(tmp_path / "report")]
    assert main(arguments) == 1
    content = json.loads((tmp_path / "out.json").read_text())
    assert [row["method"] for row in content["rows"]] == ["upright"]
    assert set(content["failures"]) == failures
    assert all(what.endswith("RuntimeError: boom") for what in content["failures"].values())
    printed = capsys.readouterr()
    for name, what in content["failures"].items():
        assert f"not measured: {name}: {what}\n" in printed.err
    assert "earlier" not in printed.out
    assert (tmp_path / "report/report.html").is_file()
    assert main(arguments) == 1  # what was measured is kept
    assert "are from earlier runs" in capsys.readouterr().out


def test_only_what_failed_is_left_out(root, tmp_path):
    method = tmp_path / "dark.py"
    method.write_text(METHOD.format(brightest=180))
    protocol = MatchingProtocol(methods=(str(method), "upright"), max_keypoints=50)
    outcome = homography_matching.run_benchmark(root, protocol)
    assert [row["pairs"] for row in outcome.rows] == [3, 4]
    assert outcome.failures == {f"{method}: Paris": "1 of 2 pairs (1-3): RuntimeError: boom"}


def test_methods_that_all_fail_are_an_error(root, bad):
    protocol = MatchingProtocol(methods=(bad,), max_keypoints=50)
    with pytest.raises(ValueError, match=r"^Boston: .*boom\nParis: .*boom$"):
        homography_matching.run_benchmark(root, protocol)


def test_an_image_that_fails_for_every_method_is_told_once(root):
    (root / "Boston/2.png").write_bytes(b"not a picture")
    protocol = MatchingProtocol(methods=("upright", "detector"), max_keypoints=50)
    outcome = homography_matching.run_benchmark(root, protocol)
    assert set(outcome.failures) == {"Boston"}
    assert [row["pairs"] for row in outcome.rows] == [3, 3]


def test_a_process_that_dies_is_told_and_a_rerun_continues(root, tmp_path, capsys):
    method = tmp_path / "deadly.py"
    deadly = METHOD.replace('raise RuntimeError("boom")', "os._exit(9)")
    method.write_text("import os" + deadly.format(brightest=180))
    arguments = ["evaluate", "homography-pose", str(root), "--methods", f"identity,{method}"]
    arguments += ["--window-px", "32", "--jobs", "2", "-o", str(tmp_path / "out.json")]
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("cv-patchpose: error: jobs: expected 2 processes that finish, got one")
    assert "try fewer --jobs" in error
    assert "a rerun continues" in error
    method.write_text(METHOD.format(brightest=999))
    assert main([*arguments, "--jobs", "1"]) == 0
    assert "of 8 results are from earlier runs" in capsys.readouterr().out


def test_gains_are_over_the_pairs_that_both_methods_measured():
    found, lost = (TwoViewResult("easy", (error,), 9, 9) for error in (0.0, np.inf))
    row = summarize([found, found, lost], "m", [lost, None, lost])
    assert row["maa_10_gain"] == 0.5
    assert row["pairs"] == 3
    assert summarize([found], "m", [None])["maa_10_gain"] is None
