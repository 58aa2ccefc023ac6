"""The report: a page that stands alone, plots, pictures of pairs, and tables."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from cv_patchpose.cli import main
from cv_patchpose.evaluation.page import render_page
from cv_patchpose.evaluation.plots import draw_plots
from cv_patchpose.evaluation.report import format_csv, list_figures, strip_folders
from cv_patchpose.evaluation.report_folder import short_names
from cv_patchpose.evaluation.results import TwoViewResult
from cv_patchpose.evaluation.samples import Sample
from cv_patchpose.evaluation.sequences import turn_image
from cv_patchpose.evaluation.two_view import summarize

METHODS = ("upright", "identity", "detector")
VOID = ("meta", "img", "br")


@pytest.fixture(scope="module")
def root(photograph, tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    for name, turn_deg in (("flat", 0.0), ("turned", 40.0)):
        (root / name).mkdir()
        view = turn_image(photograph[:300, :300], turn_deg)
        cv2.imwrite(str(root / name / "1.png"), photograph[:300, :300])
        cv2.imwrite(str(root / name / "2.png"), view.image)
        np.savetxt(root / name / "H_1_2", view.from_photo)
    return root


class Page(HTMLParser):
    """Elements with their attributes, the text, and whether tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text += text

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    def pictures(self):
        contents = [source.partition("base64,")[2] for source in self.attributes("src")]
        return [
            cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)
            for content in contents
        ]


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def report(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "deep/report"
    output = ["--report", str(folder), "-o", str(folder / "out.json")]
    options = ["--methods", ",".join(METHODS), "--max-keypoints", "100"]
    assert main(["evaluate", "homography-matching", str(root), *options, *output]) == 0
    return folder


def test_the_page_is_whole_and_needs_nothing_else(report):
    text = (report / "report.html").read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    page = Page(text)
    assert all(source.startswith("data:image/") for source in page.attributes("src"))
    assert all((report / target).is_file() for target in page.attributes("href"))
    for method in METHODS:
        assert method in page.text
    for word in (
        "homography-matching",
        "max_keypoints",
        "Most gained",
        "turned, pair 1-2",
        "verify",
    ):
        assert word in page.text
    pictures = page.pictures()
    assert len(pictures) == 3 + 1  # curves, cost, errors; of pairs only that with different results
    assert all(picture is not None and picture.std() > 5 for picture in pictures)


def test_tables_hold_the_rows_and_every_pair(report):
    content = json.loads((report / "report.json").read_text())
    assert content == json.loads((report / "out.json").read_text())
    rows = read_csv(report / "rows.csv")
    assert [row["method"] for row in rows] == list(METHODS)
    assert float(rows[1]["mma_3"]) == content["rows"][1]["mma_3"]
    pairs = read_csv(report / "pairs.csv")
    assert list(pairs[0])[:3] == ["sequence", "pair", "method"]
    assert {"mma_3", "correct_matches", "corner_error_px", "seconds_pose"} <= set(pairs[0])
    found = {(pair["sequence"], pair["pair"], pair["method"]) for pair in pairs}
    assert found == {(name, "1-2", m) for name in ("flat", "turned") for m in METHODS}
    own = [float(pair["mma_3"]) for pair in pairs if pair["method"] == "detector"]
    assert np.mean(own) == pytest.approx(content["rows"][2]["mma_3"])


def test_a_report_of_kept_results_says_so(root, report):
    cache = ["--cache", str(report / ".cv-patchpose-cache"), "--max-keypoints", "100"]
    folder = report / "second"
    arguments = ["homography-matching", str(root), "--methods", "upright", *cache]
    assert main(["evaluate", *arguments, "--report", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert "2 of them were measured by earlier runs" in text
    assert "they need a benchmark of pairs and two methods" in text
    assert "earlier runs" not in (report / "report.html").read_text()


@pytest.mark.parametrize(
    ("benchmark", "columns", "plots"),
    [
        ("homography-pose", {"orientation_within_5_deg", "scale_points"}, ["1-2", "scale"]),
        ("patchpose", {"orientation_within_5_deg", "scale_points"}, ["orientation", "scale"]),
    ],
)
def test_benchmarks_of_poses_have_reports_too(root, tmp_path, benchmark, columns, plots):
    options = ["--methods", "identity,gradient-histogram", "--report", str(tmp_path)]
    if benchmark == "patchpose":
        options += ["--images", "2"]
    assert main(["evaluate", benchmark, str(root), *options]) in (0, 1)
    assert columns <= set(read_csv(tmp_path / "pairs.csv")[0])
    page = Page((tmp_path / "report.html").read_text())
    assert all(plot in page.text for plot in plots)


def test_a_report_in_place_of_a_file_is_refused(root, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["homography-pose", str(root), "--methods", "identity"]
    assert main(["evaluate", *arguments, "--report", str(tmp_path / "file")]) == 2
    assert "report: expected a folder, got the file" in capsys.readouterr().err


def test_two_views_are_plotted_by_difficulty():
    samples = [
        Sample("s", f"{n}", method, TwoViewResult(kind, (error, np.inf), 9, 5, 20, times))
        for n, (kind, error) in enumerate([("easy", 1.0), ("hard", 8.0)])
        for method, times in (("upright", {"pose": 0.0}), ("polar", {"pose": 0.1}))
    ]
    rows = [summarize([s.result for s in samples], method) for method in ("upright", "polar")]
    plots = draw_plots(rows, samples, {"upright": "upright", "polar": "polar"})
    titles = [plot.title for plot in plots]
    assert titles[:2] == ["Accuracy against cost", "Relative pose by difficulty"]
    assert titles[2] == "Error of the relative pose, cumulative"
    for plot in plots:
        assert cv2.imdecode(np.frombuffer(plot.png, np.uint8), cv2.IMREAD_COLOR).std() > 5
    (first, *_), header = list_figures(samples), format_csv(list_figures(samples)).splitlines()[0]
    assert header.startswith("sequence,pair,method,difficulty,error_deg,maa_5,maa_10")
    assert first["error_deg"] == np.inf


def test_what_quick_leaves_is_told_and_folders_are_not(root, toy_model, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(root / "turned", tree / "turned")
    shutil.copytree(root / "turned", tree / "broken")
    (tree / "broken/H_1_2").unlink()
    methods = f"upright,{toy_model},detector"
    arguments = ["homography-matching", str(tree), "--methods", methods, "--quick"]
    arguments += ["--peer-weights", str(tmp_path / "weights"), "--report", str(tmp_path / "out")]
    assert main(["evaluate", *arguments]) == 1
    content = json.loads((tmp_path / "out/report.json").read_text())
    assert content["protocol"]["max_keypoints"] == 500
    assert content["protocol"]["peer_weights"] == "weights"
    assert content["failures"] == {"broken": "broken/H_1_2: expected a homography file, got none"}
    page = Page((tmp_path / "out/report.html").read_text())
    assert str(tmp_path) not in page.text
    assert toy_model.name in page.text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/data/a b/s/2.png: expected x, got /home/me/y.npy", "s/2.png: expected x, got y.npy"),
        ("download it from https://a.org/b/c.pth, 1/8 to 8", None),
    ],
)
def test_of_paths_what_is_below_the_root_is_left(text, left):
    assert strip_folders(text, Path("/data/a b")) == (left or text)


def test_gains_are_explained_and_their_errors_not_praised():
    rows = [
        {"method": "a", "maa_10": 0.5, "maa_10_gain": 0.0, "maa_10_gain_error": 0.0, "mma_3": 0.0},
        {
            "method": "b",
            "maa_10": 0.50001,
            "maa_10_gain": 0.1,
            "maa_10_gain_error": 0.2,
            "mma_3": 0.0,
        },
    ]
    content = {"benchmark": "b", "protocol": {"root": ""}, "rows": rows}
    content |= {"failures": {}, "environment": {}}
    text = render_page(content, {"a": "<a>", "b": "b"}, [], None, (0, 2))
    assert "minus that of the first method, &lt;a&gt;" in text
    assert "its standard error" in text
    assert re.findall(r'class="best">(.*?)<', text) == ["0.500", "0.500"]


def test_absent_values_are_empty_cells():
    assert format_csv([{"a": 1, "b": None}, {"a": "x,y", "c": 0.5}]) == ('a,b,c\n1,,\n"x,y",,0.5\n')


def test_files_are_called_by_their_names_where_these_differ():
    names = short_names(["polar", "runs/a/model.onnx:2", "runs/b/other.onnx"])
    assert list(names.values()) == ["polar", "model.onnx:2", "other.onnx"]
    same = ["runs/a/model.onnx", "runs/b/model.onnx"]
    assert short_names(same) == dict(zip(same, same, strict=True))


def test_what_names_hold_is_no_markup():
    content = {
        "benchmark": "b",
        "protocol": {"root": "<i>&"},
        "rows": [{"method": "<b>", "mma_1": 0.25, "note": None}],
        "failures": {"<u>": "'broken' & \"gone\""},
        "environment": {},
    }
    page = Page(render_page(content, {"<b>": "<b>"}, [], None, (0, 1)))
    assert not {"i", "b", "u"} & {tag for tag, _ in page.elements}
    for text in ("<i>&", "<b>", "<u>", "'broken' & \"gone\"", "0.250", "-"):
        assert text in page.text
