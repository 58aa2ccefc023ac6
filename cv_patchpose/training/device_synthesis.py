"""Views made by PyTorch, many at once: those of `synthesis`, on a GPU.

Whatever decides shapes is drawn by NumPy, so that the processor never waits for the device.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cv_patchpose.training.options import SynthesisConfig
from cv_patchpose.training.photographs import Photograph, Photographs
from cv_patchpose.training.synthesis import Image, motion_kernel, shrinking_blur_px

BLURRED_COPIES = 5  # of a photograph, half an octave of zoom apart
MOTION_KERNELS = 256
RESAMPLINGS = 4  # factors drawn in each call
JPEG_BLOCK = 8
# Annex K of the JPEG standard (ITU-T T.81), luminance.
JPEG_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


class DevicePhotographs:
    """Grey photographs on a device, each blurred for the zooms that shrink it.

    Args:
        photographs: grey; those without keypoints are left out.
        device: to keep them on.
        candidates: most keypoints kept of each, drawn at random.
        seed: of that draw.

    Raises:
        ValueError: no photograph has a keypoint.

    Attributes:
        images: (BLURRED_COPIES, M, S, S) uint8; copy k is blurred for a zoom of 2**(-k / 2).
        size: (M, 2) width and height of each, pixels; beyond them it is mirrored.
        xy_px: (M, K, 2) places of the candidates.
        size_px: (M, K) their diameters; NaN for corners.
        counts: (M,) how many candidates there are; `device_counts` are the same on the device.
    """

    def __init__(
        self, photographs: Photographs, device: torch.device, candidates: int = 800, seed: int = 0
    ) -> None:
        usable = [p for p in (photographs[i] for i in range(len(photographs))) if len(p.xy_px)]
        if not usable:
            raise ValueError("images: expected photographs with corners or blobs, found none")
        side = max(max(p.image.shape) for p in usable)
        rng = np.random.default_rng(seed)
        images = np.empty((BLURRED_COPIES, len(usable), side, side), np.uint8)
        xy_px = np.zeros((len(usable), candidates, 2))
        size_px = np.full((len(usable), candidates), np.nan)
        self.counts = np.empty(len(usable), int)
        for number, photograph in enumerate(usable):
            chosen = rng.permutation(len(photograph.xy_px))[:candidates]
            self.counts[number] = len(chosen)
            xy_px[number, : len(chosen)] = photograph.xy_px[chosen]
            size_px[number, : len(chosen)] = photograph.size_px[chosen]
        with ThreadPoolExecutor() as pool:
            list(pool.map(_put_copies, images.swapaxes(0, 1), usable))
        self.xy_px, self.size_px = send(device, xy_px), send(device, size_px)
        self.device_counts = send(device, self.counts)
        self.images = torch.from_numpy(images).to(device)
        shapes = [p.image.shape[::-1] for p in usable]
        self.size = torch.tensor(shapes, dtype=torch.float32, device=device)

    def __len__(self) -> int:
        """Count the photographs."""
        return len(self.counts)


def _put_copies(place: NDArray[np.uint8], photograph: Photograph) -> None:
    """Put the copies of a photograph into (BLURRED_COPIES, S, S), mirrored at their ends."""
    height, width = photograph.image.shape
    for number, copy in enumerate(place):
        image: Image = photograph.image
        if number:
            image = cv2.GaussianBlur(image, (0, 0), shrinking_blur_px(2.0 ** (-number / 2)))
        below, right = len(copy) - height, len(copy) - width
        copy[:] = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REFLECT_101)


def draw_homographies(
    center_px: Tensor, views: int, config: SynthesisConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Draw the homographies of some views of each point, as `synthesis.random_homography` does.

    Args:
        center_px: (G, 2) points of photographs.
        views: V, of each.
        config: ranges of zoom, tilt and perspective.
        rng: random generator.

    Returns:
        (G, V, 3, 3) from photograph to canvas, and its inverse.
    """
    shape = len(center_px), views
    zoom = 2.0 ** rng.uniform(*config.zoom_octaves, shape)
    log_tilt = np.minimum(np.abs(rng.normal(0, config.tilt_log_sigma, shape)), config.tilt_log_max)
    axis, turn = rng.uniform(0, np.pi, shape), rng.uniform(0, 2 * np.pi, shape)
    stretch = np.exp(np.stack((log_tilt, -log_tilt), -1) / 2)[..., None, :]
    linear = zoom[..., None, None] * (
        _rotations(turn + axis) * stretch @ np.swapaxes(_rotations(axis), -1, -2)
    )
    perspective = np.tile(np.eye(3), (*shape, 1, 1))
    perspective[..., 2, :2] = rng.normal(0, config.perspective, (*shape, 2)) / config.canvas_px
    recenter = np.eye(3)
    recenter[:2, 2] = (config.canvas_px - 1) / 2
    affine = np.tile(np.eye(3), (*shape, 1, 1))
    affine[..., :2, :2] = linear
    back = np.tile(np.eye(3), (*shape, 1, 1))
    back[..., :2, :2] = np.linalg.inv(linear)
    device = center_px.device
    homography = send(device, recenter @ perspective @ affine)
    inverse = send(device, back @ np.linalg.inv(recenter @ perspective))
    center = center_px[:, None, None]
    homography[..., 2] -= (homography[..., :2] * center).sum(-1)  # of photographs at the centre
    inverse[..., :2, :] += center.mT * inverse[..., 2:, :]
    return homography, inverse


def map_points(homography: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
    """Map points by homographies.

    Written as sums: as products of matrices they might be computed in TF32 on a GPU, which puts
    points a third of a pixel off.

    Args:
        homography: (..., 3, 3).
        xy: (..., K, 2).

    Returns:
        (..., K, 2) points, and the depth (..., K) by which they were divided.
    """
    x, y = xy.unbind(-1)
    mapped = [row[..., :1] * x + row[..., 1:2] * y + row[..., 2:] for row in homography.unbind(-2)]
    return torch.stack(mapped[:2], -1) / mapped[2][..., None], mapped[2]


def _rotations(angle_rad: NDArray[np.float64]) -> NDArray[np.float64]:
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.stack((np.stack((cos, -sin), -1), np.stack((sin, cos), -1)), -2)


def send(device: torch.device, values: NDArray[Any] | Tensor) -> Tensor:
    """Send values without waiting for the device; arrays as int64 and float32."""
    if isinstance(values, Tensor):
        tensor = values
    else:
        whole = np.issubdtype(values.dtype, np.integer)
        tensor = torch.from_numpy(np.ascontiguousarray(values, np.int64 if whole else np.float32))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def render_views(
    photographs: DevicePhotographs,
    index: Tensor,
    inverse: Tensor,
    zoom: Tensor,
    canvas_px: int,
) -> Tensor:
    """Warp photographs onto square canvases, blurred first where a view shrinks them.

    Args:
        photographs: to show.
        index: (B,) which of them each view shows.
        inverse: (B, 3, 3) homographies from the canvas to the photograph.
        zoom: (B,) at the centre of the view.
        canvas_px: side of the views.

    Returns:
        (B, canvas_px, canvas_px) float32, whole grey levels.
    """
    copy = (-2 * torch.log2(zoom)).clamp(0, BLURRED_COPIES - 1 - 1e-3)
    copy = torch.where(zoom < 0.9, copy, 0.0)
    low = copy.long()
    images = torch.lerp(
        photographs.images[low, index].float(),
        photographs.images[low + 1, index].float(),
        (copy - low)[:, None, None],
    )
    tick = torch.arange(canvas_px, dtype=torch.float32, device=index.device)
    y, x = torch.meshgrid(tick, tick, indexing="ij")
    places, _ = map_points(inverse, torch.stack((x, y), -1).view(-1, 2))
    span = 2 * (photographs.size[index] - 1)[:, None]
    places = places.remainder(span)  # mirrored about the first and the last pixel
    places = torch.minimum(places, span - places)
    normalised = places * (2 / (images.shape[-1] - 1)) - 1
    seen = functional.grid_sample(
        images[:, None],
        normalised.view(-1, canvas_px, canvas_px, 2),
        mode="bicubic",
        padding_mode="border",
        align_corners=True,
    )
    return seen[:, 0].round().clamp(0, 255)


class Corruption:
    """Spoils views as `synthesis.corrupt` does.

    Args:
        config: chance and strength of the corruptions.
        device: that the views are on.
        rng: random generator of what is drawn for each view.
    """

    def __init__(
        self, config: SynthesisConfig, device: torch.device, rng: np.random.Generator
    ) -> None:
        self.config, self.device, self.rng = config, device, rng
        kernels = np.stack([motion_kernel(rng, 11) for _ in range(MOTION_KERNELS)])
        self.motion = send(device, kernels)
        self.jpeg_steps = torch.tensor(JPEG_STEPS, dtype=torch.float32, device=device)
        self.cosines = send(device, _cosine_transform())

    def __call__(self, views: Tensor, clean: NDArray[np.bool_]) -> Tensor:
        """Spoil (B, S, S) grey levels, but the (B,) clean ones; returns whole ones, float32."""
        config, rng = self.config, self.rng
        spoilt = views.clone()
        for chance, change in (
            (0.3, self._move),
            (0.5, self._blur),
            (0.25, self._resample),
            (0.7, self._relight),
            (0.5, self._add_noise),
            (0.5, self._compress),
        ):
            happens = (rng.random(len(views)) < chance * config.corruption) & ~clean
            if happens.any():
                some = send(self.device, np.flatnonzero(happens))
                spoilt[some] = change(spoilt[some]).round().clamp(0, 255)
        return spoilt

    def _draw(self, low: float, high: float, count: int) -> Tensor:
        return send(self.device, self.rng.uniform(low, high, count))[:, None, None]

    def _normal(self, mean: float, sigma: float, *shape: int) -> Tensor:
        return send(self.device, self.rng.normal(mean, sigma, shape))

    def _move(self, views: Tensor) -> Tensor:
        drawn = self.rng.integers(MOTION_KERNELS, size=len(views))
        return _filter_each(views, self.motion[send(self.device, drawn)])

    def _blur(self, views: Tensor) -> Tensor:
        sigma = self._draw(0.3, self.config.blur_px, len(views))[..., 0]
        reach = math.ceil(3 * self.config.blur_px)
        tick = torch.arange(-reach, reach + 1, device=self.device)
        taps = torch.exp(-0.5 * (tick / sigma) ** 2)
        taps = taps / taps.sum(1, keepdim=True)
        return _filter_each(_filter_each(views, taps[:, None]), taps[:, :, None])

    def _resample(self, views: Tensor) -> Tensor:
        side, parts = views.shape[-1], []
        for part in views.chunk(RESAMPLINGS):
            small_side = round(side * self.rng.uniform(0.35, 0.8))
            how = "bilinear" if self.rng.random() < 0.5 else "bicubic"
            small = functional.interpolate(
                part[:, None], size=(small_side,) * 2, mode="area"
            ).round()
            parts.append(functional.interpolate(small, size=(side,) * 2, mode=how)[:, 0])
        return torch.cat(parts)

    def _relight(self, views: Tensor) -> Tensor:
        config, count = self.config, len(views)
        gamma = self._normal(0, config.gamma_log_sigma, count, 1, 1).exp()
        contrast = self._normal(-0.15, 0.25, count, 1, 1).exp()
        tone = ((views / 255) ** gamma - 0.5) * contrast + 0.5 + self._normal(0, 0.07, count, 1, 1)
        negative = send(self.device, self.rng.random(count) < config.negative)[:, None, None]
        lit = (255 * torch.lerp(tone, 1 - tone, negative)).clamp(0, 255)
        shaded = self.rng.random(count) < 0.4
        coarse = (
            self._normal(0, 0.3, count, 1, 3, 3) * send(self.device, shaded)[:, None, None, None]
        )
        shading = functional.interpolate(coarse.exp(), size=views.shape[-2:], mode="bilinear")
        return lit * shading[:, 0]

    def _add_noise(self, views: Tensor) -> Tensor:
        return views + torch.randn_like(views) * self._draw(1, self.config.noise, len(views))

    def _compress(self, views: Tensor) -> Tensor:
        """Round cosine transforms of blocks as JPEG does, whose entropy coding loses nothing."""
        quality = self._draw(*self.config.jpeg_quality, len(views)).floor()
        coarse = (5000 / quality.clamp(min=1)).floor()
        percent = torch.where(quality < 50, coarse, 200 - 2 * quality)
        steps = ((self.jpeg_steps * percent + 50) / 100).floor().clamp(1, 255)
        side = views.shape[-1]
        whole = -(-side // JPEG_BLOCK) * JPEG_BLOCK
        padded = functional.pad(views[:, None], (0, whole - side) * 2, mode="replicate")[:, 0] - 128
        blocks = (
            padded.unflatten(2, (-1, JPEG_BLOCK)).unflatten(1, (-1, JPEG_BLOCK)).transpose(2, 3)
        )
        found = self.cosines @ blocks @ self.cosines.T
        steps = steps[:, None, None]
        back: Tensor = self.cosines.T @ ((found / steps).round() * steps) @ self.cosines
        return back.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :side, :side] + 128


def _cosine_transform() -> NDArray[np.float64]:
    """Return the orthonormal (8, 8) matrix of the type-II cosine transform."""
    row, column = np.mgrid[:JPEG_BLOCK, :JPEG_BLOCK]
    matrix = np.cos(np.pi * row * (2 * column + 1) / (2 * JPEG_BLOCK)) * math.sqrt(2 / JPEG_BLOCK)
    matrix[0] /= math.sqrt(2)
    return np.asarray(matrix)


def _filter_each(views: Tensor, kernels: Tensor) -> Tensor:
    """Filter each of (B, S, S) views by its own (B, H, W) kernel, borders mirrored."""
    height, width = kernels.shape[1:]
    reach = (width // 2, width // 2, height // 2, height // 2)
    padded = functional.pad(views[:, None], reach, mode="reflect")[:, 0]
    return functional.conv2d(padded[None], kernels[:, None], groups=len(views))[0]
