"""What bench_cost.py times: scenes, and the calls of each group on them, ours and its peers'."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import kornia
import numpy as np
import onnxruntime
import torch
from bench_sampling import warp_affine_loop
from skimage import data

from cv_patchpose import PatchPoseAssigner
from cv_patchpose.estimator import PoseEstimator
from cv_patchpose.grids import PolarGrid, SquareGrid
from cv_patchpose.histograms import find_modes
from cv_patchpose.keypoints import arrays_from_keypoints, keypoints_from_arrays
from cv_patchpose.patches import build_pyramid, sample_polar, sample_square
from cv_patchpose.training.resnet import ResNetPose

Calls = dict[str, Callable[[], object]]

SIZES_PX = (4.0, 24.0)  # of keypoints; the windows are 6 times as wide
MAGNIFICATION = 6.0
CHUNK = 1024  # patches at a time, as in assign
REMAP_ROWS = 32000  # OpenCV's maps must have fewer rows than 32768
POLAR, SQUARE = PoseEstimator().metadata.grid, SquareGrid()  # the default model's
POLAR_NAME = f"polar {POLAR.rows} x {POLAR.columns}"


@dataclass(frozen=True)
class Scene:
    """A photograph (BGR) and N keypoints anywhere on it."""

    image: np.ndarray
    keypoints: list[cv2.KeyPoint]


def make_scene(width: int, height: int, count: int) -> Scene:
    photograph = cv2.cvtColor(data.stereo_motorcycle()[0], cv2.COLOR_RGB2BGR)
    image = cv2.resize(photograph, (width, height), interpolation=cv2.INTER_CUBIC)
    random = np.random.default_rng(0)
    xy = random.uniform(0, 1, (count, 2)) * [width - 1, height - 1]
    sizes = np.exp(random.uniform(*np.log(SIZES_PX), count))
    angles = random.uniform(0, 360, count)
    rows = zip(xy[:, 0].tolist(), xy[:, 1].tolist(), sizes.tolist(), angles.tolist(), strict=True)
    return Scene(image, [cv2.KeyPoint(*row, 0.1, 1) for row in rows])


def positions(xy, window, angle, unit) -> np.ndarray:
    """(N, rows, columns, 2) float32 points of a grid given as (rows, columns, 2) in windows."""
    turn = np.radians(angle)
    cos, sin = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
    right, down = unit[..., 0] * window[:, None, None], unit[..., 1] * window[:, None, None]
    x = xy[:, 0, None, None] + right * cos - down * sin
    y = xy[:, 1, None, None] + right * sin + down * cos
    return np.stack([x, y], -1).astype(np.float32)


def unit_grids() -> tuple[np.ndarray, np.ndarray]:
    tick = (np.arange(SQUARE.size) - (SQUARE.size - 1) / 2) / SQUARE.size
    square = np.stack(np.meshgrid(tick, tick), -1)
    turn = np.radians(np.arange(POLAR.columns) * 360 / POLAR.columns)
    ring = np.stack([np.cos(turn), np.sin(turn)], -1)
    return square, POLAR.radii[:, None, None] * ring


def remap(image, points) -> list[np.ndarray]:
    rows = points.reshape(-1, points.shape[2], 2)
    parts = (rows[i : i + REMAP_ROWS] for i in range(0, len(rows), REMAP_ROWS))
    border = cv2.BORDER_REPLICATE
    return [cv2.remap(image, part, None, cv2.INTER_LINEAR, borderMode=border) for part in parts]


def torch_grid_sample(tensor, grid) -> torch.Tensor:
    return torch.nn.functional.grid_sample(tensor, grid, padding_mode="border", align_corners=True)


def in_chunks(sample, pyramid, where, *rest, **options) -> None:
    """Sample as assign does; one array for all would time the making of fresh memory pages."""
    for first in range(0, len(where[0]), CHUNK):
        sample(pyramid, *(values[first : first + CHUNK] for values in where), *rest, **options)


def sampling_calls(scene: Scene, *, slow_peers: bool) -> Calls:
    """All read the grey image; positions of remap and grid_sample are ready beforehand."""
    grey = cv2.cvtColor(scene.image, cv2.COLOR_BGR2GRAY)
    arrays = arrays_from_keypoints(scene.keypoints)
    xy, window = arrays.xy_px.astype(float), arrays.size_px.astype(float) * MAGNIFICATION
    where = (xy, window, arrays.angle_deg.astype(float))
    pyramid = build_pyramid(grey)
    calls: Calls = {
        "ours, square 32 x 32": lambda: in_chunks(sample_square, pyramid, where, SQUARE),
        f"ours, {POLAR_NAME}": lambda: in_chunks(
            sample_polar, pyramid, where, POLAR, standardize=True
        ),
        "cv2.warpAffine loop, 32 x 32": lambda: warp_affine_loop(grey, *where, SQUARE.size),
    }
    square, polar = (positions(*where, unit) for unit in unit_grids())
    calls["cv2.remap, square 32 x 32"] = lambda: remap(grey, square)
    calls[f"cv2.remap, {POLAR_NAME}"] = lambda: remap(grey, polar)
    if not slow_peers:
        return calls
    tensor = torch.from_numpy(grey[None, None].astype(np.float32) / 255)
    last = np.array(grey.shape[::-1], np.float32) - 1
    grid = torch.from_numpy((2 * square / last - 1).reshape(1, -1, SQUARE.size, 2))
    frames = kornia.feature.laf_from_center_scale_ori(
        torch.from_numpy(arrays.xy_px)[None],
        torch.from_numpy(window.astype(np.float32) / 2)[None, :, None, None],
        torch.from_numpy(-arrays.angle_deg)[None, :, None],
    )
    extract = kornia.feature.extract_patches_from_pyramid
    calls["torch grid_sample, square 32 x 32"] = lambda: torch_grid_sample(tensor, grid)
    calls["kornia extract_patches_from_pyramid, 32"] = lambda: extract(tensor, frames, SQUARE.size)
    return calls


def stage_calls(scene: Scene) -> Calls:
    """Parts of assign, and SIFT's detection."""
    assigner, two_poses = PatchPoseAssigner(), PatchPoseAssigner(top_k=2)
    estimator, metadata = assigner.estimator, assigner.estimator.metadata
    pyramid = build_pyramid(scene.image, color=metadata.color)
    arrays = arrays_from_keypoints(scene.keypoints)
    window = arrays.size_px.astype(float) * metadata.magnification
    where = (arrays.xy_px, window, np.zeros(len(arrays)))
    sample = sample_polar if isinstance(metadata.grid, PolarGrid) else sample_square
    options = {"standardize": True} if metadata.standardize else {}
    histograms = assigner.histograms(scene.image, scene.keypoints)
    parts = [
        sample(pyramid, *(v[first : first + CHUNK] for v in where), metadata.grid, **options)
        for first in range(0, len(arrays), CHUNK)
    ]
    sift = cv2.SIFT.create()
    return {
        "cv2.SIFT.detect": lambda: sift.detect(scene.image),
        "cv2.SIFT.detectAndCompute": lambda: sift.detectAndCompute(scene.image, None),
        "assign": lambda: assigner.assign(scene.image, scene.keypoints),
        "assign, top_k=2": lambda: two_poses.assign(scene.image, scene.keypoints),
        "pyramid": lambda: build_pyramid(scene.image, color=metadata.color),
        "KeyPoints in": lambda: arrays_from_keypoints(scene.keypoints),
        "sampling": lambda: in_chunks(sample, pyramid, where, metadata.grid, **options),
        "network": lambda: [estimator.histograms(part) for part in parts],
        "modes": lambda: find_modes(histograms, metadata.bins, scale_prior_sigma=0.2),
        "KeyPoints out": lambda: keypoints_from_arrays(arrays),
    }


def network_calls(threads: int) -> Calls:
    """Networks on CHUNK patches each; random weights take as long as trained ones."""
    assigner = PatchPoseAssigner(num_threads=threads)
    shape = (CHUNK, *assigner.estimator.metadata.patch_shape)
    ours = np.random.default_rng(0).standard_normal(shape, np.float32)
    calls: Calls = {"ours, ONNX Runtime": lambda: assigner.estimator.histograms(ours)}
    peers = {
        "OriNet": (kornia.feature.OriNet(pretrained=False), 1),
        "AffNet": (kornia.feature.LAFAffNetShapeEstimator(pretrained=False), 1),
        "ResNet-18 pair": (ResNetPose(), 3),
    }
    for name, (network, channels) in peers.items():
        network.eval()
        plain = network.features if name == "AffNet" else network
        patches = torch.rand(CHUNK, channels, SQUARE.size, SQUARE.size)
        session = _open_in_runtime(plain, patches, threads)
        calls[f"{name}, torch"] = _torch_call(plain, patches)
        calls[f"{name}, ONNX Runtime"] = _runtime_call(session, patches.numpy())
    return calls


def _torch_call(network: torch.nn.Module, patches: torch.Tensor) -> Callable[[], object]:
    def call():
        with torch.inference_mode():
            return network(patches)

    return call


def _runtime_call(session, patches: np.ndarray) -> Callable[[], object]:
    return lambda: session.run(None, {session.get_inputs()[0].name: patches})


def _open_in_runtime(network: torch.nn.Module, patches: torch.Tensor, threads: int):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        torch.onnx.export(network, (patches,), str(file), opset_version=17, dynamo=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Idle threads that spin would disturb the call after this one; ours has none.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(
            file.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
