"""The page of the paper: of all runs, and of those that are there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

PEERS = (
    *("identity", "sift-at-point", "orinet", "affnet", "orinet+affnet"),
    *("polar", "polar-large"),
)


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import paper_page

    yield paper_page
    for name in ("paper_page", "paper_runs"):
        sys.modules.pop(name, None)


def content(page, runs, accuracy):
    """What paper.py collects, each figure of a model being the one given."""
    models = {model for model, parts in page.MODELS.items() if set(parts) <= set(runs)}

    def outcome(names):
        columns = [c + suffix for c in page.COLUMNS for suffix in ("", "_argmax")]
        columns += [f"recall_{what}@{k}" for what in page.RECALL for k in (1, 2, 3, 4)]
        points = {"orientation_points": 1000, "scale_points": 300}
        return {
            "rows": [
                {"method": name, **dict.fromkeys(columns, accuracy(name)), **points}
                for name in names
            ]
        }

    whole = [*PEERS, *(m for m in page.MODELS if m in models and not m.startswith("leak"))]
    truths = [f"hpatches-{truth}" for truth in ("global", "normalized", "local")]
    titles = ("patchpose-A", "patchpose-B", *truths, "pairs")
    results = {title: outcome(whole) for title in titles}
    for model in (m for m in models if m.startswith("leak")):
        results |= {f"{model}-{kind}": outcome([model]) for kind in "AB"}
    facts = {"keypoints": 900, "budget_keypoints": 1000, "minutes": 1.5, "device": "a GPU"}
    facts |= {"versions": {"torch": "2", "opencv": "5"}}
    described = {
        name: {"group": page.RUNS[name].group, "options": page.RUNS[name].options, **facts}
        for name in runs
    }
    environment = {"cpu": "a processor", "cpus": 2, "opencv": "5", "commit": "abc"}
    return {"runs": described, "results": results, "environment": environment}


def test_the_page_answers_by_the_figures(page):
    accuracies = {"resnet18-36-13": 60.0, "resnet18-72-17": 20.0, "leak-pairs": 52.5}
    accuracies |= {"paper": 97.9, "polar-clean": 53.0}
    text = page.format_page(content(page, page.RUNS, lambda name: accuracies.get(name, 50.0)))
    text = text.replace("\n", " ")
    assert "ResNet-18, orientation: yes; ResNet-18, scale: yes; polar, orientation: no" in text
    assert "ResNet-18, orientation, 36 to 72 bins: 60.0 to 20.0" in text
    assert "what the leak is worth | +2.5 +2.5 | +2.5 +2.5" in text
    assert "PatchPose, fullest bin, 10 degrees | -47.9 | -47.9 | +0.0 | -47.9 | -47.9" in text
    assert "polar, clean views: overlap - the paper's loss | +3.0 | +3.0" in text
    assert "polar, loss overlap: spoilt views - clean views | -3.0 | -3.0" in text
    assert "900 of 1,000, cut off" in text
    assert "Not there" not in text


@pytest.mark.parametrize("lacking", ["paper", "resnet18-72-17", "polar-clean", "leak-image"])
def test_the_page_is_made_of_the_runs_that_are_there(page, lacking):
    runs = [name for name in page.RUNS if name not in page.MODELS[lacking]]
    text = page.format_page(content(page, runs, lambda name: 50.0))
    assert f"Not there, and left out of the tables: {lacking}." in text


def test_one_run_makes_a_page(page):
    assert "## Table 3" in page.format_page(content(page, ["polar-clean"], lambda name: 50.0))
