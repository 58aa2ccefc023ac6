"""Pickling of cv2 objects; in processes of their own, because it changes the whole process."""

from __future__ import annotations

import subprocess
import sys
import textwrap

PREPARE = """
    import copy, pickle
    import cv2
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    from cv_patchpose.pickling import make_keypoints_picklable

    keypoint = cv2.KeyPoint(1.5, 2.25, 7.0, 30.5, 0.125, 257, 12)
    match = cv2.DMatch(3, 4, 5, 0.5)

    def fields(o):
        if isinstance(o, cv2.DMatch):
            return o.queryIdx, o.trainIdx, o.imgIdx, o.distance
        return *o.pt, o.size, o.angle, o.response, o.octave, o.class_id
"""


def run(code):
    program = textwrap.dedent(PREPARE) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_keypoints_and_matches_survive():
    run("""
        make_keypoints_picklable()
        make_keypoints_picklable()
        for original in (keypoint, match):
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                again = pickle.loads(pickle.dumps(original, protocol))
                assert type(again) is type(original)
                assert fields(again) == fields(original)
            for copied in (copy.copy, copy.deepcopy):
                again = copied(original)
                assert again is not original
                assert fields(again) == fields(original)
        nested = copy.deepcopy({"found": (keypoint, [match])})
        assert fields(nested["found"][0]) == fields(keypoint)
    """)


def test_they_go_to_other_processes_and_back():
    run("""
        make_keypoints_picklable()
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            for original in (keypoint, match):
                assert fields(pool.submit(copy.copy, original).result()) == fields(original)
    """)


def test_reading_needs_no_call(tmp_path):
    path = tmp_path / "keypoint.pickle"
    run(f"""
        make_keypoints_picklable()
        open({str(path)!r}, "wb").write(pickle.dumps([keypoint, match]))
    """)
    run(f"""
        again = pickle.loads(open({str(path)!r}, "rb").read())
        assert [fields(o) for o in again] == [fields(keypoint), fields(match)]
    """)


def test_importing_changes_nothing():
    found = run("""
        for original in (keypoint, match):
            try:
                pickle.dumps(original)
            except TypeError:
                print("refused")
    """)
    assert found == ["refused", "refused"]
