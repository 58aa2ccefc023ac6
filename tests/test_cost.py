"""What the package costs beside its engine: memory, the time to import it, the growth with work."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import cv2
import numpy as np
import pytest

from cv_patchpose import PatchPoseAssigner
from cv_patchpose.estimator import PoseEstimator
from cv_patchpose.histograms import PoseHistograms
from cv_patchpose.patches import build_pyramid

CHUNK = 1024  # most patches in memory at once
# On a machine at rest each is a tenth of this; a loaded one must not fail.
MOST_IMPORT_CPU_MS = 400
MOST_FIRST_ASSIGN_CPU_MS = 800
MIB = 2**20


class CountingEstimator(PoseEstimator):
    """Answers at once, whatever the patches show; notes how many came at a time."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def histograms(self, patches, log_prior=None):
        self.batches.append(len(patches))
        bins, count = self.metadata.bins, len(patches)
        scale = np.full((count, bins.scale), 0.5 / (bins.scale - 1), np.float32)
        orientation = np.full((count, bins.orientation), 0.5 / (bins.orientation - 1), np.float32)
        scale[:, 6] = orientation[:, 3] = 0.5
        return PoseHistograms(scale, orientation)


@pytest.fixture
def assigner():
    made = PatchPoseAssigner(num_threads=1)
    made._estimator = CountingEstimator()
    return made


def keypoints(count, side):
    xy = np.random.default_rng(0).uniform(0, side - 1, (count, 2)).tolist()
    return [cv2.KeyPoint(x, y, 6.0, -1, 0.1, 1) for x, y in xy]


def peak_mib(call):
    """Return the most memory that NumPy and Python held during a call, beyond that before it."""
    tracemalloc.start()
    try:
        result = call()
        return tracemalloc.get_traced_memory()[1] / MIB, result
    finally:
        tracemalloc.stop()


def test_patches_are_sampled_in_chunks(assigner):
    image = np.random.default_rng(0).integers(0, 256, (100, 100), np.uint8)
    assigner.assign(image, keypoints(CHUNK * 2 + 5, 100))
    assert assigner.estimator.batches == [CHUNK, CHUNK, 5]


def test_chunks_change_nothing(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (100, 100), np.uint8)
    points, assigner = keypoints(70, 100), PatchPoseAssigner(top_k=2, num_threads=1)
    whole = assigner.estimate(image, points)
    monkeypatch.setattr("cv_patchpose.assigner._CHUNK", 32)
    monkeypatch.setattr(assigner.estimator._engine, "batch", 32)
    assert len(assigner._chunks(70)) == 3
    parts = assigner.estimate(image, points)
    for name, values in vars(whole).items():
        np.testing.assert_allclose(getattr(parts, name), values, rtol=1e-4, err_msg=name)


def test_memory_per_keypoint_is_small(assigner):
    image = np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8)
    few, many = (keypoints(count, 200) for count in (2_000, 12_000))
    assigner.assign(image, few)
    least, _ = peak_mib(lambda: assigner.assign(image, few))
    most, _ = peak_mib(lambda: assigner.assign(image, many))
    # A million keypoints then need at most 250 MiB, those returned among them.
    assert (most - least) / 10_000 * 1_000_000 < 250
    assert least < 50


def test_a_large_image_needs_its_pyramid_only(assigner):
    image = np.zeros((1500, 2000), np.float32)
    own, pyramid = peak_mib(lambda: build_pyramid(image))
    stored = sum(level.nbytes for level in pyramid.levels[1:]) / MIB
    assert own < stored + 5
    del pyramid
    whole, _ = peak_mib(lambda: assigner.assign(image, keypoints(600, 1500)))
    assert whole < stored + 40


def cpu_ms(before, timed):
    """Return the least CPU time of some statements in a fresh interpreter, in two tries."""
    code = f"{before}; import time; start = time.process_time(); {timed}"
    # -P: the package that is installed, not the folder of its sources.
    command = [sys.executable, "-P", "-c", f"{code}; print(time.process_time() - start)"]
    took = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(2)
    ]
    return 1e3 * min(took)


def test_importing_takes_little_time():
    assert cpu_ms("import numpy, cv2", "import cv_patchpose") < MOST_IMPORT_CPU_MS


def test_the_first_assign_takes_little_time():
    before = (
        "import numpy, cv2, cv_patchpose; image = numpy.eye(64, dtype='uint8');"
        "points = [cv2.KeyPoint(30.0, 30.0, 6.0)]"
    )
    timed = "cv_patchpose.PatchPoseAssigner().assign(image, points)"
    assert cpu_ms(before, timed) < MOST_FIRST_ASSIGN_CPU_MS


def test_importing_does_not_read_the_installed_version():
    code = (
        "import sys, numpy, cv2; before = set(sys.modules); import cv_patchpose;"
        "print('email.message' in set(sys.modules) - before, cv_patchpose.__version__)"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert printed[0] == "False"
    assert printed[1] != ""
