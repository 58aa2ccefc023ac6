"""The sampler: its kernel against its NumPy definition, against OpenCV, and its properties."""

from __future__ import annotations

import importlib
import logging
import os
import platform
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from cv_patchpose import patches
from cv_patchpose.patches import (
    ImagePyramid,
    PolarGrid,
    SquareGrid,
    build_pyramid,
    sample_polar,
    sample_polar_reference,
    sample_square,
    sample_square_reference,
)

needs_kernel = pytest.mark.skipif(patches._core is None, reason="cv_patchpose._core is not built")

POLAR = PolarGrid(rows=14, columns=27, rows_per_octave=3, halo=2)
SQUARE = SquareGrid(size=9)
# Single precision positions, at most 1e-5 px off, times the largest difference of neighbours, 1.
KERNEL_TOLERANCE = 2e-5
# Of windows that are large beside the whole image, positions are off by this share of the window.
WINDOW_TOLERANCE = 1e-7
MAXIMUM = {"uint8": 255, "uint16": 65535, "float32": 1.0}
LAYOUTS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "sliced": lambda image: np.repeat(np.repeat(image, 2, axis=0), 3, axis=1)[::2, ::3],
    "negative": lambda image: np.ascontiguousarray(image[::-1, ::-1])[::-1, ::-1],
    "column of channels": lambda image: np.ascontiguousarray(image[..., None]),
}


def noise(height=61, width=83, dtype="uint8", channels=None, seed=0):
    shape = (height, width) if channels is None else (height, width, channels)
    values = np.random.default_rng(seed).uniform(0, MAXIMUM[dtype], shape)
    return values.astype(dtype)


def keypoints(count, height=61, width=83, window=(2.0, 100.0), seed=1):
    """Centres in and around the image, windows spread over their logarithm, any angles."""
    random = np.random.default_rng(seed)
    xy = random.uniform(-0.3, 1.3, (count, 2)) * [width, height]
    windows = np.exp(random.uniform(*np.log(window), count))
    return xy, windows, random.uniform(-360, 720, count)


def distant(count, seed=1):
    """Centres so far that single precision cannot tell pixels, windows that reach the image."""
    offset, reach = np.random.default_rng(seed).uniform([[1e7], [-2]], [[1e9], [20]], (2, count))
    return np.column_stack([-offset, -offset]), 2 * (offset + reach), np.zeros(count)


def touching(count, seed=1):
    """Centres whose outermost rings almost touch the border."""
    random = np.random.default_rng(seed)
    radius = 10.0 ** random.uniform(-1, 1.5, count)
    xy = radius[:, None] * random.uniform(1, 1 + 3e-7, (count, 2))
    return xy, 2 * radius, random.integers(0, 72, count) * 5.0


def specks(count, seed=1):
    """Centres so near pixel (0, 0), in windows so small, that single precision loses digits."""
    random = np.random.default_rng(seed)
    xy = np.repeat(10.0 ** random.uniform(-46, -42, (count, 1)), 2, axis=1)
    return xy, xy[:, 0] * random.uniform(1, 2, count), random.uniform(0, 360, count)


def assert_kernel_is_reference(pyramid, arguments, polar=POLAR, square=SQUARE, **options):
    tolerance = KERNEL_TOLERANCE + WINDOW_TOLERANCE * max(arguments[1], default=0.0)
    if not pyramid.color:
        expected = sample_polar_reference(pyramid, *arguments, polar)
        actual = sample_polar(pyramid, *arguments, polar, **options)
        assert actual.dtype == expected.dtype == np.float32
        assert_allclose(actual, expected, rtol=0, atol=tolerance)
    expected = sample_square_reference(pyramid, *arguments, square)
    actual = sample_square(pyramid, *arguments, square, **options)
    assert actual.dtype == expected.dtype == np.float32
    assert_allclose(actual, expected, rtol=0, atol=tolerance)


@needs_kernel
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", MAXIMUM)
def test_kernel_is_reference_for_every_dtype_and_layout(dtype, layout):
    image = noise(dtype=dtype)
    plain, strided = build_pyramid(image), build_pyramid(LAYOUTS[layout](image))
    for one, other in zip(plain.levels, strided.levels, strict=True):
        assert_array_equal(one, other)
    assert_kernel_is_reference(strided, keypoints(60))


@needs_kernel
@pytest.mark.parametrize("dtype", MAXIMUM)
@pytest.mark.parametrize("channels", [3, 4])
def test_kernel_is_reference_for_color(dtype, channels):
    pyramid = build_pyramid(noise(dtype=dtype, channels=channels), color=True)
    assert_kernel_is_reference(pyramid, keypoints(60))


@needs_kernel
@pytest.mark.parametrize("window", [(0.01, 0.5), (100.0, 3000.0)], ids=["tiny", "huge"])
@pytest.mark.parametrize("side", [(1, 1), (1, 40), (2, 3), (7, 5), (8, 9), (61, 83)], ids=str)
def test_kernel_is_reference_for_extreme_windows_and_small_images(side, window):
    arguments = keypoints(50, *side, window=window)
    assert_kernel_is_reference(build_pyramid(noise(*side)), arguments)


@needs_kernel
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 200])
def test_kernel_is_reference_for_any_number_of_keypoints(count, threads):
    pyramid = build_pyramid(noise())
    assert_kernel_is_reference(pyramid, keypoints(count), num_threads=threads)
    assert sample_polar(pyramid, *keypoints(count), POLAR).shape == (count, 1, 14, 31)
    assert sample_square(pyramid, *keypoints(count), SQUARE).shape == (count, 1, 9, 9)


@needs_kernel
def test_kernel_is_reference_far_from_the_origin_of_a_large_image():
    pyramid = build_pyramid(noise(40, 30000))
    assert_kernel_is_reference(pyramid, keypoints(100, 40, 30000, window=(2.0, 40.0)))


@needs_kernel
def test_kernel_is_reference_far_outside_the_image():
    xy = np.array([[1e12, 5.0], [-1e12, 5.0], [5.0, 1e300], [-1e300, -1e300]])
    assert_kernel_is_reference(build_pyramid(noise()), (xy, np.full(4, 20.0), np.zeros(4)))


@needs_kernel
def test_kernel_is_reference_in_windows_beyond_single_precision():
    arguments = (np.full((2, 2), 30.25), np.array([1e39, 1e300]), np.zeros(2))
    pyramid = build_pyramid(noise())
    expected = sample_polar_reference(pyramid, *arguments, POLAR)
    assert_allclose(sample_polar(pyramid, *arguments, POLAR), expected, atol=KERNEL_TOLERANCE)


@needs_kernel
@settings(deadline=None, max_examples=60)
@given(
    x=st.floats(-200, 300),
    y=st.floats(-200, 300),
    window=st.floats(0.05, 2000),
    angle=st.floats(-1000, 1000),
    polar=st.builds(
        PolarGrid,
        rows=st.integers(1, 20),
        columns=st.integers(3, 90),
        rows_per_octave=st.integers(1, 8),
        halo=st.integers(0, 3),
    ),
    square=st.builds(SquareGrid, size=st.integers(1, 40)),
)
def test_kernel_is_reference_anywhere(x, y, window, angle, polar, square):
    arguments = (np.array([[x, y]]), np.array([window]), np.array([angle]))
    assert_kernel_is_reference(build_pyramid(noise()), arguments, polar, square)


@needs_kernel
@pytest.mark.parametrize("dtype", MAXIMUM)
def test_standardize(dtype):
    pyramid, arguments = build_pyramid(noise(dtype=dtype)), keypoints(100)
    plain = sample_polar(pyramid, *arguments, POLAR).astype(np.float64)
    inner = plain[..., POLAR.halo : -POLAR.halo]
    mean = inner.mean(axis=(1, 2, 3), keepdims=True)
    expected = (plain - mean) / np.sqrt(inner.var(axis=(1, 2, 3), keepdims=True) + (2 / 255) ** 2)
    actual = sample_polar(pyramid, *arguments, POLAR, standardize=True)
    reference = sample_polar_reference(pyramid, *arguments, POLAR, standardize=True)
    # A flat patch is multiplied by up to 255 / 2, and its error with it.
    assert_allclose(actual, expected, rtol=0, atol=1e-4)
    assert_allclose(reference, expected, rtol=0, atol=128 * KERNEL_TOLERANCE)


def test_standardize_keeps_a_flat_patch_flat():
    pyramid = build_pyramid(np.full((30, 30), 200, np.uint8))
    arguments = ([[15.0, 15.0]], [20.0], [0.0])
    assert_allclose(sample_polar(pyramid, *arguments, POLAR, standardize=True), 0, atol=1e-4)


def test_patches_do_not_depend_on_threads_or_neighbours():
    pyramid, arguments = build_pyramid(noise()), keypoints(500)
    one = sample_polar(pyramid, *arguments, POLAR, standardize=True, num_threads=1)
    for threads in (2, 7, None):
        many = sample_polar(pyramid, *arguments, POLAR, standardize=True, num_threads=threads)
        assert_array_equal(one, many)
    alone = sample_polar(pyramid, *(values[7:8] for values in arguments), POLAR, standardize=True)
    assert_array_equal(alone, one[7:8])
    square = sample_square(pyramid, *arguments, SQUARE, num_threads=1)
    assert_array_equal(square, sample_square(pyramid, *arguments, SQUARE, num_threads=5))


@needs_kernel
@pytest.mark.parametrize("dtype", MAXIMUM)
@pytest.mark.parametrize(
    "grid", [PolarGrid(), POLAR, PolarGrid(columns=300, halo=0), PolarGrid(9, 7, halo=7)], ids=str
)
def test_every_instruction_set_samples_the_same_bits(dtype, grid, monkeypatch):
    arguments = keypoints(200)
    image = noise(dtype=dtype)
    image[0, 0] = 0  # beside anything else, a difference as small as specks are is rounded off
    grey = build_pyramid(image)
    base = ImagePyramid(grey.levels[:1], color=False)
    color = build_pyramid(noise(dtype=dtype, channels=3), color=True)
    names = patches._core.simd_names()
    results = []
    for name in names:
        monkeypatch.setenv("PATCHPOSE_SIMD", name)
        results.append(
            [
                sample_polar(grey, *arguments, grid),
                sample_polar(grey, *arguments, grid, standardize=True, num_threads=3),
                *(sample_square(pyramid, *arguments, SquareGrid(19)) for pyramid in (grey, color)),
                sample_polar(base, *distant(200), grid),
                sample_polar(base, *touching(200), grid),
                sample_polar(base, *specks(200), grid),
            ]
        )
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            assert_array_equal(one, other)


@needs_kernel
@pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() != "x86_64",
    reason="elsewhere the processor's features are not in a file, or there is the baseline only",
)
def test_there_are_loops_for_every_instruction_set_of_the_processor():
    features = set(re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M)[1].split())
    avx512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
    sets = {"avx512vbmi": avx512 | {"avx512vbmi"}, "avx512": avx512, "avx2": {"avx2"}}
    expected = [name for name, needed in sets.items() if needed <= features]
    assert patches._core.simd_names() == [*expected, "baseline"]


@needs_kernel
def test_an_instruction_set_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("PATCHPOSE_SIMD", "abacus")
    with pytest.raises(ValueError, match="PATCHPOSE_SIMD: expected one of .*baseline, got abacus"):
        sample_square(build_pyramid(noise()), *keypoints(1), SQUARE)


GUARDED = """
import ctypes, mmap, sys
import numpy as np
from cv_patchpose.patches import PolarGrid, SquareGrid, sample_polar, sample_square
from cv_patchpose.pyramid import ImagePyramid

def guard(pixels):  # the page behind the last pixel cannot be read
    pages = -(-pixels.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    last = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + pages * mmap.PAGESIZE
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(last), mmap.PAGESIZE, 0) == 0
    first = pages * mmap.PAGESIZE - pixels.nbytes
    image = np.frombuffer(memory, pixels.dtype, pixels.size, first).reshape(pixels.shape)
    image[:] = pixels
    return image

random = np.random.default_rng(0)
for dtype in ("uint8", "uint16", "float32"):
    narrow = ((15, 16), (16, 16), (17, 16))  # beside what registers hold
    for shape in ((2, 2), (2, 3), (3, 5), *narrow, (61, 83), (2, 2, 3), (61, 83, 3)):
        pyramid = ImagePyramid([guard(np.ones(shape, dtype))], len(shape) == 3)
        size = np.array(shape[1::-1])
        xy = random.uniform(-0.2, 1.2, (1500, 2)) * size
        xy[:400] = size - 1 + random.uniform(-4, 4, (400, 2))
        xy[400:900, 1] = size[1] - 1  # only one axis ends beside them
        window = np.exp(random.uniform(-2, 5, 1500))
        xy[900:1000, 0] = -np.geomspace(1e3, 1e9, 100)  # single precision cannot tell pixels there
        window[900:1000] = 2 * (size[0] - 6 - xy[900:1000, 0])
        angle = random.uniform(0, 360, 1500)
        angle[400:1000] = 0
        sample_square(pyramid, xy, window, angle, SquareGrid(9))
        if not pyramid.color:
            for grid in (PolarGrid(rows=9), PolarGrid(5, 9, 1, 0)):  # rings far apart too
                sample_polar(pyramid, xy, window, angle, grid)
            # Infinite in single precision, and yet with rings that lie in the image.
            window = np.geomspace(1e30, 1e300, 1500)
            sample_polar(pyramid, xy, window, angle, PolarGrid(1100, 9, 1, 0))
"""


@needs_kernel
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mprotect")
def test_no_memory_behind_an_image_is_read():
    for name in patches._core.simd_names():
        environment = {**os.environ, "PATCHPOSE_SIMD": name}
        command = [sys.executable, "-c", GUARDED]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (name, done.stderr)


@pytest.mark.parametrize("angle", [0.0, 17.0, 90.0, 200.0])
def test_square_is_opencv_warp_affine(angle):
    size, image = 21, cv2.GaussianBlur(noise(), (0, 0), 2)
    x, y = 40.3, 12.9  # the window crosses the upper border
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn = np.array([[cos, -sin], [sin, cos]])
    shift = np.array([x, y]) - turn @ [(size - 1) / 2, (size - 1) / 2]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warp, values = np.column_stack([turn, shift]), image.astype(np.float32) / 255
    border = cv2.BORDER_REPLICATE
    warped = cv2.warpAffine(values, warp, (size, size), flags=flags, borderMode=border)
    patch = sample_square(build_pyramid(image), [[x, y]], [size], [angle], SquareGrid(size))[0, 0]
    # OpenCV rounds positions to 1/32 px along each axis.
    difference = max(np.abs(np.diff(image.astype(int), axis=axis)).max() for axis in (0, 1))
    assert_allclose(patch, warped, rtol=0, atol=2 * difference / 255 / 32)


def test_large_windows_are_anti_aliased():
    checkerboard = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pyramid = build_pyramid(checkerboard)
    arguments = ([[127.3, 126.8]], [200.0], [33.0])
    assert_allclose(sample_square(pyramid, *arguments, SQUARE), 0.5, atol=0.01)
    outer = sample_polar(pyramid, *arguments, POLAR)[..., -4:, :]
    assert_allclose(outer, 0.5, atol=0.01)


def test_turning_the_image_rolls_the_columns():
    # 2**k + 1 pixels: the levels of the turned image are the turned levels.
    image = noise(129, 129, "float32")
    turned = np.ascontiguousarray(np.rot90(image, -1))  # clockwise on screen
    grid = PolarGrid(halo=0)
    arguments = ([[64.0, 64.0]], [100.0], [0.0])
    before = sample_polar(build_pyramid(image), *arguments, grid)
    after = sample_polar(build_pyramid(turned), *arguments, grid)
    assert_allclose(after, np.roll(before, grid.columns // 4, axis=-1), rtol=0, atol=2e-5)
    assert np.abs(after - before).max() > 0.1


def test_zooming_the_image_shifts_the_rows():
    y, x = np.indices((301, 301)) - 150.0

    def waves(zoom):
        u, v = x / zoom, y / zoom
        return (0.5 + 0.2 * np.sin(0.1 * u + 1) + 0.2 * np.cos(0.13 * v + 0.1 * u)).astype("f4")

    grid, arguments = PolarGrid(), ([[150.0, 150.0]], [200.0], [0.0])
    before = sample_polar(build_pyramid(waves(1.0)), *arguments, grid)
    after = sample_polar(build_pyramid(waves(2.0)), *arguments, grid)
    shift = grid.rows_per_octave
    assert_allclose(after[:, :, shift:], before[:, :, :-shift], rtol=0, atol=0.01)
    assert np.abs(after[:, :, -shift:] - before[:, :, -shift:]).max() > 0.2


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("dtype", MAXIMUM)
def test_the_image_is_not_written_to(dtype, color):
    image = noise(dtype=dtype, channels=3)
    for view in (image, image[..., 0]):
        original = view.copy()
        pyramid = build_pyramid(view, color=color)
        sample_square(pyramid, *keypoints(10), SQUARE)
        assert_array_equal(view, original)


@needs_kernel
def test_an_exception_in_a_thread_is_carried_out():
    pyramid, (xy, window, angle) = build_pyramid(noise()), keypoints(300)
    window[299] = np.nan
    with pytest.raises(ValueError, match=r"window_px: .* keypoint 299"):
        patches._core.sample_square(pyramid.levels, xy, window, angle, size=4, num_threads=3)
    xy[150, 1] = np.inf
    with pytest.raises(ValueError, match=r"xy_px: .* keypoint 150"):
        patches._core.sample_square(pyramid.levels, xy, window, angle, size=4, num_threads=3)


def test_without_the_kernel_numpy_takes_its_place(monkeypatch, caplog):
    pyramid, arguments = build_pyramid(noise(), color=False), keypoints(20)
    expected = sample_polar(pyramid, *arguments, POLAR), sample_square(pyramid, *arguments, SQUARE)

    def refuse(name):
        raise ImportError(f"no {name}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr(patches, "_core", patches._load_kernel())
    assert caplog.messages == ["sampling with NumPy, which is slower: no cv_patchpose._core"]
    actual = sample_polar(pyramid, *arguments, POLAR), sample_square(pyramid, *arguments, SQUARE)
    for one, other in zip(actual, expected, strict=True):
        assert_allclose(one, other, rtol=0, atol=KERNEL_TOLERANCE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"xy_px": np.zeros((2, 3))}, r"xy_px: expected \(N, 2\), got \(2, 3\)"),
        ({"xy_px": [[0, np.nan], [0, 0]]}, "xy_px: expected finite values"),
        ({"xy_px": "here"}, "xy_px: expected an array of numbers, got 'here'"),
        ({"window_px": [1.0]}, r"window_px: expected \(2,\) as in xy_px, got \(1,\)"),
        ({"window_px": [1.0, 0.0]}, "window_px: expected values above 0, got 0.0"),
        ({"window_px": [1.0, np.inf]}, "window_px: expected finite values"),
        ({"angle_deg": 0.0}, r"angle_deg: expected \(2,\) as in xy_px, got \(\)"),
        ({"angle_deg": [0.0, np.nan]}, "angle_deg: expected finite values"),
        ({"num_threads": 0}, "num_threads: expected a whole number of at least 1, got 0"),
    ],
)
@pytest.mark.parametrize(("sample", "grid"), [(sample_polar, POLAR), (sample_square, SQUARE)])
def test_bad_keypoints_are_named(sample, grid, changed, message):
    arguments = {"xy_px": [[0, 0], [1, 1]], "window_px": [1, 1], "angle_deg": [0, 0], **changed}
    with pytest.raises(ValueError, match=message):
        sample(build_pyramid(noise()), grid=grid, **arguments)


@needs_kernel
@pytest.mark.parametrize(
    ("sample", "grid"),
    [(sample_polar, PolarGrid(2**16, 2**16, 2**12)), (sample_square, SquareGrid(2**16))],
)
def test_patches_beyond_what_an_int_counts_are_refused(sample, grid):
    with pytest.raises(ValueError, match="grid: expected at most 2\\^30 values a patch, got 65536"):
        sample(build_pyramid(noise()), [], [], [], grid)


def test_polar_refuses_color():
    with pytest.raises(ValueError, match="pyramid: expected a grey pyramid, got color"):
        sample_polar(build_pyramid(noise(), color=True), [], [], [], POLAR)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PolarGrid(rows=0), "rows: expected a whole number of at least 1, got 0"),
        (lambda: PolarGrid(columns=7.5), "columns: expected a whole number of at least 1, got 7.5"),
        (lambda: PolarGrid(halo=-1), "halo: expected a whole number of at least 0, got -1"),
        (lambda: PolarGrid(halo=73), "halo: expected at most 72 columns, got 73"),
        (lambda: SquareGrid(size=0), "size: expected a whole number of at least 1, got 0"),
    ],
)
def test_bad_grids_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("sample", "grid", "other"),
    [(sample_polar, PolarGrid(), SquareGrid()), (sample_square, SquareGrid(), PolarGrid())],
)
def test_images_and_grids_in_the_wrong_place_are_named(sample, grid, other):
    image = np.zeros((20, 20), np.uint8)
    with pytest.raises(TypeError, match="pyramid: expected what build_pyramid returns, got ndarr"):
        sample(image, [[5, 5]], [4], [0], grid)
    message = f"grid: expected a {type(grid).__name__}, got {type(other).__name__}"
    with pytest.raises(TypeError, match=message):
        sample(build_pyramid(image), [[5, 5]], [4], [0], other)


def sample_many_polar(pyramid, xy, window, angle):
    sample_polar(pyramid, xy, window, angle, PolarGrid(), num_threads=1)


def sample_many_square(pyramid, xy, window, angle):
    sample_square(pyramid, xy, window, angle, SquareGrid(size=48), num_threads=1)


@needs_kernel
@pytest.mark.parametrize("sample", [sample_many_polar, sample_many_square])
def test_python_goes_on_in_other_threads_while_patches_are_sampled(sample):
    """As it must for threads that make batches. Around the kernel Python's own steps are short."""
    ticks, ended = [], threading.Event()

    def tick():
        while not ended.wait(1e-3):
            ticks.append(time.perf_counter())

    def ticks_halfway():
        begin = time.perf_counter()
        sample(pyramid, *many)
        quarter = (time.perf_counter() - begin) / 4
        return sum(begin + quarter < moment < begin + 3 * quarter for moment in ticks)

    pyramid, many = build_pyramid(noise(512, 512)), keypoints(10_000, 512, 512)
    thread = threading.Thread(target=tick)
    thread.start()
    try:
        # More than once, as a busy machine may let the other thread wait.
        assert any(ticks_halfway() for _ in range(5))
    finally:
        ended.set()
        thread.join()
