"""The command: what it writes, what it prints, and how it fails."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data

from cv_patchpose import PatchPoseAssigner, cli
from cv_patchpose.cli import main
from cv_patchpose.detectors import detect
from cv_patchpose.files import COLUMNS, write_file, write_picture

VERBS = ("assign", "match", "export", "train", "evaluate", "info")


@pytest.fixture
def images(tmp_path, photograph):
    """Write a photograph and the same, turned."""
    paths = tmp_path / "first.png", tmp_path / "second.png"
    cv2.imwrite(str(paths[0]), photograph)
    cv2.imwrite(str(paths[1]), np.rot90(photograph))
    return paths


def run(*arguments):
    return main([str(argument) for argument in arguments])


def fails(capsys, *arguments):
    """Run a command that must fail; return its message."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("cv-patchpose: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


class TestHelp:
    def test_all_verbs_are_listed(self, capsys):
        with pytest.raises(SystemExit) as caught:
            run("--help")
        assert caught.value.code == 0
        printed = capsys.readouterr().out
        assert all(re.search(rf"^    {verb} ", printed, re.M) for verb in VERBS)

    @pytest.mark.parametrize("verb", ["assign", "match", "export", "train", "info"])
    def test_each_has_its_own(self, capsys, verb):
        with pytest.raises(SystemExit) as caught:
            run(verb, "--help")
        assert caught.value.code == 0
        assert f"cv-patchpose {verb}" in capsys.readouterr().out

    def test_detector_and_descriptor_are_told_with_their_defaults(self, capsys):
        with pytest.raises(SystemExit):
            run("assign", "--help")
        assert capsys.readouterr().out.count("(sift)") == 2

    @pytest.mark.parametrize("verb", ["assign", "match", "export", "train", "generate"])
    def test_usage_says_what_kind_of_value_an_option_takes(self, capsys, monkeypatch, verb):
        if verb in ("train", "generate"):
            pytest.importorskip("tqdm")
        monkeypatch.setenv("COLUMNS", "1000")
        with pytest.raises(SystemExit):
            run(verb, "--help")
        printed = capsys.readouterr().out
        named = re.findall(r"--([a-z0-9-]+) ([A-Z0-9_-]+)", printed.partition("\n\n")[0])
        own = {option for option, kind in named if kind.lower().replace("_", "-") == option}
        assert own <= {"output", "model", "minutes", "picture", "recipe"}
        if verb in ("assign", "match"):
            assert "--top-k N" in printed
            assert ".png, .jpg, .jpeg, .webp" in printed

    def test_training_needs_torch_only_to_train(self, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(SystemExit) as caught:
            run("train", "--help")
        assert caught.value.code == 0

    def test_wrong_usage_exits_with_2(self, capsys):
        with pytest.raises(SystemExit) as caught:
            run("assign")
        assert caught.value.code == 2
        with pytest.raises(SystemExit) as caught:
            run("detect")
        assert caught.value.code == 2


class TestAssign:
    def test_npz(self, images, tmp_path, toy_model, capsys):
        output = tmp_path / "k.npz"
        assert run("assign", images[0], "-o", output, "--model", toy_model) == 0
        with np.load(output) as file:
            table, columns = file["keypoints"], file["columns"]
        assert tuple(columns) == COLUMNS
        assert table.shape[1] == 7
        assert 500 < len(table) <= 2000
        assert capsys.readouterr().out == f"{output}: {len(table)} keypoints\n"

    def test_csv_has_the_same_numbers(self, images, tmp_path, toy_model):
        for name in ("k.npz", "k.csv"):
            run("assign", images[0], "-o", tmp_path / name, "--model", toy_model, "--top-k", 2)
        with np.load(tmp_path / "k.npz") as file:
            expected = file["keypoints"]
        text = (tmp_path / "k.csv").read_text().splitlines()
        assert text[0] == ",".join(COLUMNS)
        found = np.loadtxt(text[1:], delimiter=",")
        np.testing.assert_allclose(found, expected, rtol=1e-7)

    def test_sizes_are_read_in_the_detector_s_measure(self, images, tmp_path, toy_model):
        output = tmp_path / "k.npz"
        names = ("--detector", "brisk", "--descriptor", "sift")
        assert run("assign", images[0], "-o", output, "--model", toy_model, *names) == 0
        image = cv2.imread(str(images[0]))
        found = detect(image, "brisk", 2000)
        posed = PatchPoseAssigner(toy_model, detector="brisk").assign(image, found)
        with np.load(output) as file:
            np.testing.assert_allclose(file["keypoints"][:, 2], [k.size for k in posed])

    def test_what_does_not_reach_the_descriptor_is_told(self, images, tmp_path, toy_model, capsys):
        output = tmp_path / "k.csv"
        names = ("--descriptor", "freak")
        assert run("assign", images[0], "-o", output, "--model", toy_model, *names) == 0
        assert capsys.readouterr().err.startswith("warning: freak ignores the angle of keypoints")

    def test_a_name_that_the_terminal_cannot_show_is_no_error(self, images, tmp_path, toy_model):
        output = tmp_path / "\u043a.csv"
        options = ("-o", output, "--model", toy_model, "--max-keypoints", "50")
        command = [sys.executable, "-m", "cv_patchpose.cli", "assign", images[0], *options]
        ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(command, capture_output=True, text=True, env=ascii_only)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search(r"\\u043a\.csv: \d+ keypoints$", done.stdout.strip())
        assert output.is_file()

    @pytest.mark.parametrize("detector", ["orb", "akaze", "fast", "gftt"])
    def test_other_detectors_and_a_picture(self, images, tmp_path, toy_model, detector):
        picture = tmp_path / "poses.png"
        code = run(
            "assign", images[0], "-o", tmp_path / "k.csv", "--model", toy_model, "--detector",
            detector, "--max-keypoints", 50, "--picture", picture,
        )  # fmt: skip
        assert code == 0
        assert 40 < len((tmp_path / "k.csv").read_text().splitlines()) <= 51
        assert cv2.imread(str(picture)).shape == (512, 512, 3)


class TestMatch:
    @pytest.mark.parametrize("geometry", ["homography", "fundamental"])
    def test_picture_and_counts(self, images, tmp_path, toy_model, capsys, geometry):
        if geometry == "fundamental":  # a scene with depth
            for path, image in zip(images, data.stereo_motorcycle(), strict=False):
                cv2.imwrite(str(path), image)
        output = tmp_path / "matches.jpg"
        code = run(
            "match", *images, "-o", output, "--model", toy_model, "--geometry", geometry,
            "--max-keypoints", 300,
        )  # fmt: skip
        assert code == 0
        picture = cv2.imread(str(output))
        assert picture.shape[0] > 900
        printed = capsys.readouterr().out
        lines = printed.splitlines()
        assert re.fullmatch(r"pose +keypoints +matches +inliers", lines[0])
        own, ours = (list(map(int, re.findall(r"\d+", line))) for line in lines[1:3])
        assert own[0] > 300  # SIFT's orientations of 300 points
        assert 300 < ours[0] <= 600  # at most two poses each
        for _, _, matches, inliers in (own, ours):
            assert 20 < inliers <= matches
        assert lines[3] == str(output)

    def test_one_pose_on_request(self, images, tmp_path, toy_model, capsys):
        output = tmp_path / "matches.png"
        options = ("--model", toy_model, "--max-keypoints", 300, "--top-k", 1)
        assert run("match", *images, "-o", output, *options) == 0
        assert " 300 + 300 " in capsys.readouterr().out.splitlines()[2]

    def test_an_image_that_is_too_small_is_named(self, images, tmp_path, capsys):
        small = tmp_path / "small.png"
        cv2.imwrite(str(small), np.zeros((4, 4), np.uint8))
        for pair in ((small, images[0]), (images[0], small)):
            assert run("match", *pair, "-o", tmp_path / "m.png") == 2
            assert f"{small}: expected sides of at least 8 px" in capsys.readouterr().err

    def test_nothing_to_match(self, tmp_path, toy_model):
        blank = tmp_path / "blank.png"
        cv2.imwrite(str(blank), np.zeros((50, 60), np.uint8))
        assert run("match", blank, blank, "-o", tmp_path / "m.png", "--model", toy_model) == 0
        assert (tmp_path / "m.png").exists()


class TestExample:
    script = Path(__file__).parents[1] / "examples" / "sift_drop_in.py"

    def test_it_is_short(self):
        assert len(self.script.read_text().splitlines()) < 30

    @pytest.mark.parametrize(
        "name",
        ["sift_drop_in.py", "demo_photographs.py", "register_corners.py", "colmap_features.py"],
    )
    @pytest.mark.parametrize("arguments", [[], ["--help"]])
    def test_its_usage_is_told(self, name, arguments, tmp_path):
        command = [sys.executable, self.script.with_name(name), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"Usage: python examples/{name} F" in done.stderr

    def test_it_runs(self, images, tmp_path):
        picture = tmp_path / "matches.png"
        command = [sys.executable, self.script, *images, picture]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert re.search(r"learned pose: +\d+ of \d+ matches are inliers", printed)
        assert cv2.imread(str(picture)) is not None

    def test_corners_register_a_turned_photograph(self, photograph, tmp_path):
        paths = [tmp_path / f"{name}.png" for name in ("first", "second", "laid")]
        cv2.imwrite(str(paths[0]), photograph)
        turned = cv2.warpAffine(
            photograph, cv2.getRotationMatrix2D((256, 256), 70, 0.6), (512, 512)
        )
        cv2.imwrite(str(paths[1]), turned)
        command = [sys.executable, self.script.with_name("register_corners.py"), *paths]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert re.fullmatch(r"\d+ of \d+ matches are inliers\n", printed)
        middle = np.s_[150:350, 150:350]
        difference = cv2.absdiff(cv2.imread(str(paths[2]))[middle], photograph[middle])
        assert difference.mean() < 4
        cv2.imwrite(str(paths[1]), np.zeros((90, 90, 3), np.uint8))
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, "0 matches are too few for a homography\n")

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("sift_drop_in.py", "a photograph"),
            ("register_corners.py", "a photograph"),
            ("colmap_features.py", "a folder of photographs"),
        ],
    )
    def test_what_is_not_there_is_named(self, name, expected, images, tmp_path):
        missing, features = tmp_path / "missing", tmp_path / "features.png"
        inputs = (missing,) if name == "colmap_features.py" else (images[0], missing)
        command = [sys.executable, self.script.with_name(name), *inputs, features]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.endswith(f"{missing}: expected {expected}\n")
        assert not features.exists()

    def test_a_folder_without_photographs_is_named(self, tmp_path):
        folder = tmp_path / "empty"
        folder.mkdir()
        script = self.script.with_name("colmap_features.py")
        command = [sys.executable, script, folder, tmp_path / "features"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, f"{folder}: expected photographs, got none\n")

    @pytest.mark.parametrize("name", ["sift_drop_in.py", "register_corners.py"])
    def test_a_picture_of_no_known_kind_is_refused_at_once(self, name, images):
        command = [sys.executable, self.script.with_name(name), images[0], images[0], "a.foo"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        assert "PICTURE (such as " in done.stderr

    @pytest.mark.parametrize("name", ["sift_drop_in.py", "register_corners.py"])
    def test_a_picture_that_cannot_be_written_is_named(self, name, images, tmp_path):
        picture = tmp_path / "none" / "picture.png"
        command = [sys.executable, self.script.with_name(name), images[0], images[0], picture]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.endswith(f"{picture}: cannot be written\n")

    def test_features_for_colmap_are_those_of_the_photographs(self, photograph, tmp_path):
        photographs, features = tmp_path / "photographs", tmp_path / "a" / "features"
        photographs.mkdir()
        cv2.imwrite(str(photographs / "one.png"), photograph)
        cv2.imwrite(str(photographs / "blank.png"), np.zeros((90, 90), np.uint8))
        (photographs / "notes.txt").write_text("no photograph")
        command = [sys.executable, self.script.with_name("colmap_features.py")]
        done = subprocess.run(
            [*command, photographs, features], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("blank.png: 0 features\none.png: ")
        assert {path.name for path in features.iterdir()} == {"one.png.txt", "blank.png.txt"}
        assert (features / "blank.png.txt").read_text() == "0 128\n"
        lines = (features / "one.png.txt").read_text().splitlines()
        rows = np.array([line.split(" ") for line in lines[1:]], float)
        assert lines[0] == f"{len(rows)} 128"
        assert rows.shape[1] == 4 + 128
        sift = cv2.SIFT.create(nfeatures=8000)
        expected = PatchPoseAssigner(top_k=2).assign(photograph, sift.detect(photograph))
        np.testing.assert_allclose(rows[:, 0], [k.pt[0] + 0.5 for k in expected], atol=1e-3)
        np.testing.assert_allclose(rows[:, 2], [k.size / 2 for k in expected], atol=1e-3)
        turned = np.radians([k.angle for k in expected])
        np.testing.assert_allclose(rows[:, 3], turned, atol=1e-3)
        np.testing.assert_allclose(np.linalg.norm(rows[:, 4:], axis=1), 512, rtol=0.05)

    def test_features_for_colmap_lie_as_in_the_file(self, photograph, tmp_path):
        """EXIF orientation 6: shown upright, the rows of the file are columns."""
        photographs, features = tmp_path / "photographs", tmp_path / "features"
        photographs.mkdir()
        tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, 6, 0, 0)
        exif = b"Exif\0\0" + tiff
        encoded = cv2.imencode(".jpg", photograph[:200])[1].tobytes()
        segment = struct.pack(">HH", 0xFFE1, 2 + len(exif)) + exif
        (photographs / "turned.jpg").write_bytes(encoded[:2] + segment + encoded[2:])
        assert cv2.imread(str(photographs / "turned.jpg")).shape == (512, 200, 3)
        command = [sys.executable, self.script.with_name("colmap_features.py")]
        subprocess.run([*command, photographs, features], capture_output=True, check=True)
        x, y = np.loadtxt(features / "turned.jpg.txt", skiprows=1)[:, :2].T
        assert x.max() > 400
        assert y.max() <= 200


class TestInfo:
    def test_model_and_engine(self, toy_model, capsys):
        assert run("info", toy_model) == 0
        printed = capsys.readouterr().out
        for part in ("cv-patchpose", cv2.__version__, "providers", "toy.onnx"):
            assert part in printed
        assert re.search(r"^magnification +12\.0$", printed, re.M)
        assert re.search(r"^bins +orientation 36, scale 13, scale_per_octave 3$", printed, re.M)
        assert re.search(r"^training: data +none$", printed, re.M)

    def test_the_training_is_told_in_short_but_on_request(self, write_model, capsys):
        notes = {"commit": "abc", "keypoints": 3, "minutes": 1.5, "recipe": {"seed": 0}}
        other = {"commit": "def", "keypoints": 4, "recipe": {"seed": 1}}
        model = write_model(training={"data": {"folder": "images"}, **notes, "averaged_2": other})
        assert run("info", model) == 0
        lines = capsys.readouterr().out.splitlines()
        told = dict(re.split(" {2,}", line) for line in lines if line.startswith("training: "))
        assert told == {
            "training: data": "folder images",
            "training: commit": "abc; def",
            "training: keypoints": "3; 4",
            "training: minutes": "1.5",
        }
        assert run("info", model, "--full") == 0
        printed = capsys.readouterr().out
        assert re.search(r"^training: recipe +seed 0$", printed, re.M)
        assert re.search(r"^training: averaged_2 +commit def, .* recipe \(seed 1\)$", printed, re.M)

    def test_long_values_are_wrapped_in_a_terminal(self, write_model, capsys, monkeypatch):
        recipe = {f"option{i}": i for i in range(40)} | {"views": {"noise": 3}}
        model = write_model(training={"recipe": recipe})
        assert run("info", model, "--full") == 0
        assert re.search(r"option39 39, views \(noise 3\)$", capsys.readouterr().out, re.M)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "70")
        assert run("info", model, "--full") == 0
        lines = capsys.readouterr().out.splitlines()
        text = lines[[line.startswith("training: recipe") for line in lines].index(True) :]
        assert len(text) > 5
        assert max(map(len, text)) <= 70
        assert len({len(line) - len(line.lstrip()) for line in text[1:]}) == 1


class TestExport:
    @pytest.fixture
    def bundled(self, toy_model, monkeypatch):
        monkeypatch.setattr(cli, "model_path", lambda name: toy_model)
        return toy_model

    def test_bundled_into_a_folder(self, bundled, tmp_path, capsys):
        assert run("export", "--model", "polar", "-o", tmp_path / "new") == 0
        copy = tmp_path / "new" / bundled.name
        assert copy.read_bytes() == bundled.read_bytes()
        assert capsys.readouterr().out == f"{copy}\n"

    def test_bundled_into_a_file(self, bundled, tmp_path):
        assert run("export", "--model", "polar", "-o", tmp_path / "my.onnx") == 0
        assert (tmp_path / "my.onnx").read_bytes() == bundled.read_bytes()

    @pytest.mark.parametrize(
        "change", [("--int8",), ("--magnification", 3), ("--quantize-on", "photographs")]
    )
    def test_a_bundled_model_is_not_changed(self, bundled, tmp_path, capsys, change):
        message = fails(capsys, "export", "--model", "polar", "-o", tmp_path / "new", *change)
        assert f"{change[0]}: expected none with --model" in message
        assert not (tmp_path / "new").exists()

    def test_a_file_is_no_folder(self, bundled, tmp_path, capsys):
        (tmp_path / "file").touch()
        message = fails(capsys, "export", "--model", "polar", "-o", tmp_path / "file")
        assert "file: expected a name that ends in .onnx, or a folder" in message

    def test_either_a_checkpoint_or_a_name(self, capsys, tmp_path):
        both = ("run", "--model", "polar", "-o", tmp_path / "m.onnx")
        for arguments in (both, ("-o", tmp_path / "m.onnx")):
            message = fails(capsys, "export", *arguments)
            assert "expected either RUN_OR_CHECKPOINT or --model NAME" in message


class TestErrors:
    @pytest.fixture
    def model(self, toy_model):
        return ("--model", toy_model)

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [
            (("assign", "", "-o", "k.csv"), "IMAGE"),
            (("assign", "one.png", "-o", ""), "-o/--output"),
            (("assign", "one.png", "-o", "k.csv", "--model", ""), "--model"),
            (("match", "one.png", "", "-o", "m.png"), "IMAGE2"),
            (("export", "", "-o", "m.onnx"), "RUN_OR_CHECKPOINT"),
            (("train", "", "-o", "run"), "PHOTOGRAPHS"),
            (("train", "photographs", "-o", "run", "--init", ""), "--init"),
            (("generate", "images", "-o", "", "--kind", "A"), "-o/--output"),
            (("info", ""), "MODEL"),
        ],
    )
    def test_an_empty_path_is_not_the_current_folder(self, capsys, arguments, name):
        if arguments[0] == "generate":
            pytest.importorskip("tqdm")
        with pytest.raises(SystemExit) as caught:
            run(*arguments)
        assert caught.value.code == 2
        message = f"error: argument {name}: expected a name or a path, got ''\n"
        assert capsys.readouterr().err.endswith(message)

    @pytest.mark.parametrize(
        ("content", "message"),
        [(None, "got no such file"), (b"", "expected an image file"), (b"x", "an image")],
    )
    def test_unreadable_image(self, capsys, tmp_path, model, content, message):
        image = tmp_path / "image.png"
        if content is not None:
            image.write_bytes(content)
        found = fails(capsys, "assign", image, "-o", tmp_path / "k.csv", *model)
        assert str(image) in found
        assert message in found
        assert not (tmp_path / "k.csv").exists()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("k.txt", "expected a name that ends in .npz, .csv"),
            ("none/k.csv", "expected a file in an existing folder"),
            ("folder.csv", "expected a file, got a folder"),
        ],
    )
    def test_unwritable_output(self, capsys, tmp_path, images, model, name, message):
        (tmp_path / "folder.csv").mkdir()
        assert message in fails(capsys, "assign", images[0], "-o", tmp_path / name, *model)

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
    def test_forbidden_folder(self, capsys, tmp_path, images, model):
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o500)
        message = fails(capsys, "assign", images[0], "-o", folder / "k.csv", *model)
        assert "Permission denied" in message

    def test_missing_and_foreign_models(self, capsys, tmp_path, images):
        text = tmp_path / "text.onnx"
        text.write_text("not a model")
        for model, message in ((tmp_path / "none.onnx", "got neither"), (text, "got no ONNX file")):
            output = tmp_path / "m.png"
            found = fails(capsys, "match", *images, "-o", output, "--model", model)
            assert str(model) in found
            assert message in found
            assert not output.exists()
            assert message in fails(capsys, "info", model)

    @pytest.mark.parametrize("option", ["--top-k", "--max-keypoints"])
    def test_counts_out_of_range(self, capsys, tmp_path, images, model, option):
        message = fails(capsys, "assign", images[0], "-o", tmp_path / "k.csv", *model, option, 0)
        assert f"error: {option}: expected" in message
        assert message.rstrip().endswith("got 0")

    @pytest.mark.parametrize("detector", ["star", "msd", "tbmr", "sift"])
    def test_images_too_small_for_a_detector(self, capsys, tmp_path, model, detector):
        image = tmp_path / "tiny.png"
        cv2.imwrite(str(image), np.zeros((3, 200), np.uint8))
        names = ("--detector", detector)
        message = fails(capsys, "assign", image, "-o", tmp_path / "k.csv", *model, *names)
        expected = rf"error: {image}: expected sides of at least \d+ px for {detector}"
        assert re.search(expected, message)
        assert "got 200 x 3" in message

    def test_an_image_is_not_written_over(self, capsys, tmp_path, images, model):
        before = images[0].read_bytes()
        same = tmp_path / "folder" / ".." / images[0].name
        (tmp_path / "folder").mkdir()
        for output in (images[0], same):
            found = fails(capsys, "match", *images, "-o", output, *model)
            assert f"{output}: expected another file than the image" in found
            found = fails(
                capsys, "assign", images[0], "-o", tmp_path / "k.csv", "--picture", output, *model
            )
            assert f"{output}: expected another file than the image" in found
        assert images[0].read_bytes() == before
        assert not (tmp_path / "k.csv").exists()

    def test_a_closed_folder_is_seen_before_the_work(self, capsys, monkeypatch, tmp_path, images):
        monkeypatch.setattr(os, "access", lambda *_: False)  # as for others than root
        monkeypatch.setattr(cli, "read_image", None)
        message = fails(capsys, "match", *images, "-o", tmp_path / "m.png")
        assert f"{tmp_path / 'm.png'}: Permission denied" in message

    def test_missing_extras_are_named(self, capsys, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "torch", None)
        for name in [n for n in sys.modules if n.startswith("cv_patchpose.training")]:
            monkeypatch.delitem(sys.modules, name)
        message = fails(capsys, "train", tmp_path, "-o", tmp_path / "run")
        assert "pip install 'cv-patchpose[train]'" in message

    def test_interruption(self, capsys, monkeypatch, tmp_path, images, model):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(cli, "detect", interrupt)
        assert run("assign", images[0], "-o", tmp_path / "k.csv", *model) == 130
        assert capsys.readouterr().err == "cv-patchpose: interrupted\n"
        assert not (tmp_path / "k.csv").exists()

    @pytest.mark.parametrize(("argument", "codes"), [("info", {141}), ("--help", {0, 141})])
    def test_a_reader_that_has_heard_enough_is_no_error(self, argument, codes, toy_model):
        """As `cv-patchpose info | head -1`, whose pipe is closed while we still write."""
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "cv_patchpose.cli", argument, toy_model]
        try:
            done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
        finally:
            os.close(writing)
        assert done.returncode in codes
        assert done.stderr == ""

    def test_another_closed_pipe_is_an_error(self, capsys, monkeypatch, tmp_path, images, model):
        def fail(*_):
            raise BrokenPipeError(32, "Broken pipe")

        monkeypatch.setattr(cli, "detect", fail)
        message = fails(capsys, "assign", images[0], "-o", tmp_path / "k.csv", *model)
        assert "Broken pipe" in message

    @pytest.mark.parametrize("suffix", [".jpg", ".webp"])
    def test_pictures_too_large_for_the_format(self, tmp_path, suffix):
        path = tmp_path / f"out{suffix}"
        message = re.escape(f"{path}: expected a size the format can hold, got 70000 x 2 px")
        with pytest.raises(ValueError, match=message):
            write_picture(path, np.zeros((2, 70_000, 3), np.uint8))
        assert not path.exists()

    def test_no_half_written_file(self, monkeypatch, tmp_path):
        path = tmp_path / "out.csv"
        path.write_bytes(b"old")

        def refuse(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="No space left on device"):
            write_file(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
