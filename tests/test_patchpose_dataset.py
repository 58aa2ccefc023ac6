"""Datasets on disk: written the same by anyone, resumed, refused; and their readers."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.testing import assert_array_equal

pytest.importorskip("tqdm")

from cv_patchpose.cli import main
from cv_patchpose.patchpose import generator, sources
from cv_patchpose.patchpose.generator import generate
from cv_patchpose.patchpose.options import PatchPoseConfig
from cv_patchpose.patchpose.plan import SPLITS
from cv_patchpose.patchpose.shards import read_index
from cv_patchpose.patchpose.sources import PatchPoseDataset, PatchPoseStream

CONFIG = PatchPoseConfig(kind="B", keypoints_per_image=2, images_per_shard=2, min_content=5)


@pytest.fixture(scope="module")
def images(texture_folder, tmp_path_factory) -> Path:
    """Four textures in color and two of their mirror images, in two folders."""
    root = tmp_path_factory.mktemp("images")
    for number, path in enumerate(sorted(texture_folder.iterdir())):
        gray = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        color = cv2.merge([gray, gray[::-1], 255 - gray])
        (root / f"class{number % 2}").mkdir(exist_ok=True)
        cv2.imwrite(str(root / f"class{number % 2}" / f"{number}.png"), color)
        if number < 2:
            cv2.imwrite(str(root / f"mirror{number}.png"), color[:, ::-1])
    return root


@pytest.fixture(scope="module")
def dataset(images, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("datasets") / "dataset"
    generate(images, root, CONFIG)
    return root


def contents(root):
    return {path.name: path.read_bytes() for path in root.iterdir()}


def copy_dataset(dataset, target):
    target.mkdir()
    for path in dataset.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def pair_keys(pairs):
    """Return what tells one pair from another, for each of N."""
    fields = zip(pairs.rotation_deg, pairs.octaves, pairs.transformed, strict=True)
    return [(degrees, octaves, patch.tobytes()) for degrees, octaves, patch in fields]


def all_keys(source, split, **options):
    return [key for pairs in source.pairs(split, **options) for key in pair_keys(pairs)]


def images_of(source, split):
    return {name for shard in source.shards_of(split) for name in shard.images}


@pytest.mark.parametrize("jobs", [1, 2])
def test_any_number_of_processes_writes_the_same_bytes(images, dataset, tmp_path, jobs):
    generate(images, tmp_path / "again", CONFIG, jobs=jobs)
    assert contents(tmp_path / "again") == contents(dataset)


def test_parts_write_the_whole(images, dataset, tmp_path):
    first = generate(images, tmp_path / "d", CONFIG, part=(1, 2))
    assert 0 < first.missing < first.shards
    assert set(contents(tmp_path / "d")) < set(contents(dataset))
    assert generate(images, tmp_path / "d", CONFIG, part=(2, 2)).missing == 0
    assert contents(tmp_path / "d") == contents(dataset)


def test_a_run_goes_on_where_it_stopped(images, dataset, tmp_path, monkeypatch):
    cut, calls = generator.cut_shard, []

    def stop_at_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return cut(*arguments)

    monkeypatch.setattr(generator, "cut_shard", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        generate(images, tmp_path / "d", CONFIG)
    written = contents(tmp_path / "d")
    assert len(written) == 3  # the index and two shards
    generate(images, tmp_path / "d", CONFIG)
    assert len(calls) == 3 + len(contents(dataset)) - 3
    assert contents(tmp_path / "d") == contents(dataset)


def _generate_slowly(images, root):
    generate(images, root, CONFIG)


def test_a_killed_process_leaves_nothing_half_written(images, dataset, tmp_path):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_generate_slowly, args=(images, tmp_path / "d"))
    process.start()
    while process.is_alive() and not list(tmp_path.glob("d/*.zip")):
        process.join(0.005)
    process.kill()
    process.join()
    generate(images, tmp_path / "d", CONFIG)
    found = contents(tmp_path / "d")
    assert {k: v for k, v in found.items() if not k.startswith(".")} == contents(dataset)


def die(shard):
    os._exit(1)


def test_a_killed_worker_is_told():
    with pytest.raises(ChildProcessError, match="jobs: expected processes that live, got one"):
        list(generator._in_pool(partial(die), ["shard"], 1))


def test_a_truncated_shard_is_named_and_made_again(images, dataset, tmp_path):
    root = copy_dataset(dataset, tmp_path / "d")
    shard = sorted(root.glob("train-*.zip"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train-00000\.zip: expected a whole shard .* run the"):
        list(PatchPoseDataset(root).pairs("train"))
    generate(images, root, CONFIG)
    assert shard.read_bytes() == whole
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"train-00000\.zip: expected a whole shard .* Bad CRC"):
        list(PatchPoseDataset(root).pairs("train"))
    generate(images, root, CONFIG)
    assert shard.read_bytes() == whole
    shard.unlink()
    with pytest.raises(ValueError, match=r"train-00000\.zip: expected a whole shard .* No such"):
        list(PatchPoseDataset(root).pairs("train"))


def test_what_killed_writers_left_is_removed(images, dataset, tmp_path):
    root = copy_dataset(dataset, tmp_path / "d")
    left, foreign = root / ".train-00000.zip.123.part", root / ".notes.zip.123.part"
    for path in (left, foreign):
        path.write_bytes(b"half")
    others = next(n for n, s in enumerate(PatchPoseDataset(root).shards) if s.name in left.name)
    generate(images, root, CONFIG, part=(1 + (others + 1) % 2, 2))
    assert left.exists()  # another part's, which may be at work
    generate(images, root, CONFIG)
    assert not left.exists()
    assert foreign.exists()


WORKER = "import os, time; from cv_patchpose.patchpose import generator; "
WORKER += "generator._begin_worker(1, os.getppid()); print('ready', flush=True); time.sleep(60)"
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def test_workers_end_when_their_parent_is_killed():
    command = [sys.executable, "-c", PARENT, WORKER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
        began = time.monotonic()
        assert parent.stdout.read() == ""  # at its end, when the worker has closed it too
    assert time.monotonic() - began < 30


def test_a_shard_of_another_dataset_is_refused(images, dataset, tmp_path):
    other = tmp_path / "other"
    generate(images, other, PatchPoseConfig(**{**vars(CONFIG), "seed": 9}))
    (other / "test-00000.zip").write_bytes((dataset / "test-00000.zip").read_bytes())
    with pytest.raises(ValueError, match="got one of another dataset"):
        list(PatchPoseDataset(other).pairs("test"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed: expected 0 as in .*index.json, got 1; choose another folder"),
        ({"kind": "A"}, "kind: expected B as in"),
        ({"patch_size": 64}, "patch_size: expected 32 as in"),
    ],
)
def test_another_configuration_is_refused(images, dataset, change, message):
    before = contents(dataset)
    with pytest.raises(ValueError, match=message):
        generate(images, dataset, PatchPoseConfig(**{**vars(CONFIG), **change}))
    assert contents(dataset) == before


def test_other_images_another_opencv_and_foreign_folders_are_refused(images, dataset, tmp_path):
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for name in ("mirror0.png", "mirror1.png", "class0/0.png"):
        (fewer / Path(name).name).write_bytes((images / name).read_bytes())
    with pytest.raises(ValueError, match="images: expected the 6 files that .* got 3, 5 of them"):
        generate(fewer, dataset, CONFIG)
    root = copy_dataset(dataset, tmp_path / "d")
    index = json.loads((root / "index.json").read_text())
    (root / "index.json").write_text(json.dumps(index | {"opencv": "1.0"}))
    with pytest.raises(ValueError, match=r"OpenCV: expected 1\.0 as in"):
        generate(images, root, CONFIG)
    with pytest.raises(ValueError, match="expected an empty or new folder"):
        generate(images, images, CONFIG)
    with pytest.raises(ValueError, match="expected an empty or new folder"):
        generate(images, images / "mirror0.png", CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 7}, "expected cv_patchpose PatchPose, version 1, got .* version 7; generate"),
        ({"format": "pictures"}, "got pictures, version 1"),
        ({"config": {"kind": "C"}}, "expected an index that is whole, got kind: expected"),
        ({"config": {"colour": 1}}, "expected an index that is whole"),
    ],
)
def test_foreign_indices_are_refused(dataset, tmp_path, change, message):
    index = json.loads((dataset / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(index | change))
    with pytest.raises(ValueError, match=message):
        PatchPoseDataset(tmp_path)


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"expected a dataset with index\.json, got none; make one"
    ):
        PatchPoseDataset(tmp_path)
    for text in ("[]", "{}", "no"):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(ValueError, match="expected the index of a PatchPose dataset"):
            PatchPoseDataset(tmp_path)


@pytest.mark.parametrize("options", [{}, {"seed": 5}, {"split_by": "pairs", "seed": 5}])
def test_pairs_made_on_the_fly_are_those_on_disk(images, dataset, options):
    stream, stored = PatchPoseStream(images, CONFIG), PatchPoseDataset(dataset)
    for split in SPLITS:
        assert all_keys(stream, split, **options) == all_keys(stored, split, **options)


def test_no_image_is_in_two_splits(images, dataset):
    parts = [images_of(PatchPoseDataset(dataset), split) for split in SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 6
    assert all(parts)


def test_shuffled_pairs_share_keypoints_between_splits_but_no_pair(dataset):
    source = PatchPoseDataset(dataset)
    keys, references = {}, {}
    for split in SPLITS:
        batches = list(source.pairs(split, split_by="pairs"))
        keys[split] = {key for pairs in batches for key in pair_keys(pairs)}
        references[split] = {r.tobytes() for pairs in batches for r in pairs.reference}
    assert references["test"] <= references["train"]  # the leak
    assert references["val"] <= references["train"]
    every = [key for split in SPLITS for key in all_keys(source, split)]
    assert sum(map(len, keys.values())) == len(set.union(*keys.values())) == len(set(every))


def test_shuffling_changes_the_order_and_nothing_else(dataset):
    source = PatchPoseDataset(dataset)
    plain, first, again, second = (all_keys(source, "train", seed=seed) for seed in (None, 1, 1, 2))
    assert first == again
    assert first != second
    assert sorted(first) == sorted(second) == sorted(plain)


def test_batches_are_full_but_the_last(dataset, monkeypatch):
    monkeypatch.setattr(sources, "_POOL_SHARDS", 1)
    sizes = [len(pairs) for pairs in PatchPoseDataset(dataset).pairs("train", batch_size=500)]
    assert set(sizes[:-1]) == {500}
    assert sum(sizes) == 468 * 2 * 4


def test_targets_choose_pairs(dataset):
    source = PatchPoseDataset(dataset)
    for pairs in source.pairs("test", target="orientation", seed=0):
        assert (pairs.octaves == 0).all()
        assert (pairs.rotation_deg == 0).sum() == 2
        assert len(pairs) == 2 * 36
    for pairs in source.pairs("test", target="scale", seed=0):
        assert (pairs.rotation_deg == 0).all()
        still = pairs.octaves == 0
        assert_array_equal(pairs.reference[still], pairs.transformed[still])
        assert len(pairs) == 2 * 13


def test_one_shard_at_a_time_is_read(images, monkeypatch):
    read, cut = [], sources.cut_shard
    monkeypatch.setattr(sources, "_POOL_SHARDS", 1)
    monkeypatch.setattr(sources, "cut_shard", lambda *a: read.append(a) or cut(*a))
    stream = PatchPoseStream(images, CONFIG)
    next(stream.pairs("train", batch_size=8))
    assert len(read) == 1 < len(stream.shards_of("train"))


def test_options_of_readers_are_checked(dataset):
    source = PatchPoseDataset(dataset)
    for options, message in (
        ({"split": "dev"}, "split: expected one of train, val, test, got 'dev'"),
        ({"split_by": "class"}, "split_by: expected one of image, pairs, got 'class'"),
        ({"target": "pose"}, "target: expected one of joint, orientation, scale, got 'pose'"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            source.pairs(**options)


def test_bad_images_are_counted_and_skipped(images, tmp_path, capsys):
    for path in images.glob("mirror*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    cv2.imwrite(str(tmp_path / "tiny.png"), np.zeros((20, 20, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "flat.png"), np.zeros((300, 300, 3), np.uint8))
    arguments = ["generate", str(tmp_path), "-o", str(tmp_path / "d"), "--kind", "A"]
    assert main([*arguments, "--keypoints", "1", "--jobs", "2"]) == 0
    told, warned = capsys.readouterr()
    assert "936 pairs" in told
    assert "of 2 keypoints" in told
    assert "2 images skipped: unreadable" in told
    advice = "; --border-px N allows less"
    assert f"1 images skipped: not larger than twice the margin of 92 px{advice}" in told
    assert "1 images skipped: no keypoint with content inside the margin" in told
    index = read_index(tmp_path / "d")
    assert index.config.keypoints_per_image == 1
    assert len(index.images) == 6
    unlucky = next(
        split for split in SPLITS
        if not images_of(PatchPoseDataset(tmp_path / "d"), split) & {"mirror0.png", "mirror1.png"}
    )  # fmt: skip
    assert f"warning: no pairs in {unlucky}: its images were all skipped" in warned
    with pytest.raises(ValueError, match=f"split: expected pairs in {unlucky}, got none"):
        list(PatchPoseDataset(tmp_path / "d").pairs(unlucky))
    stored, stream = PatchPoseDataset(tmp_path / "d"), PatchPoseStream(tmp_path, index.config)
    with pytest.raises(ValueError, match="were all skipped; give more images, or larger ones"):
        list(stream.pairs(unlucky))
    assert sorted(stored.count_skipped().values()) == [1, 1, 2]
    # Whether there is content is not known before the images are cut.
    flat = "no keypoint with content inside the margin"
    assert stream.count_skipped() == stored.count_skipped() - Counter([flat])


def test_nothing_usable_is_an_error(tmp_path, capsys):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"no image")
    arguments = ["generate", str(tmp_path), "-o", str(tmp_path / "d"), "--kind", "A"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "IMAGES: expected some with keypoints, got none: 3 unreadable; give larger" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "0"], "jobs: expected at least 1, got 0"),
        (["--part", "3/2"], "part: expected i/n with 1 <= i <= n, got 3/2"),
        (["--held-out", "0.7"], "--held-out: expected a share above 0 and below 1/2"),
        (["--layout", "spair"], "layout: expected a folder JPEGImages"),
    ],
)
def test_command_refuses_bad_arguments(images, tmp_path, capsys, arguments, message):
    output = tmp_path / "d"
    assert main(["generate", str(images), "-o", str(output), "--kind", "A", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_part_that_is_no_fraction_is_refused(images, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["generate", str(images), "-o", str(tmp_path), "--kind", "A", "--part", "half"])
    assert "expected I/N, such as 1/4, got 'half'" in capsys.readouterr().err


def test_a_shard_is_a_zip_of_pictures(dataset):
    with zipfile.ZipFile(dataset / "test-00000.zip") as archive:
        assert archive.namelist() == ["shard.json", "0000.png", "0001.png"]
        picture = cv2.imdecode(np.frombuffer(archive.read("0000.png"), np.uint8), cv2.IMREAD_COLOR)
    source = PatchPoseDataset(dataset)
    patches = source.read(source.shards_of("test")[0]).sets[0].patches
    assert picture.shape == (36 * 32, 13 * 32, 3)
    assert_array_equal(picture[64:96, 32:64, ::-1], patches[2, 1])
