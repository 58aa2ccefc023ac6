"""Views of a photograph under known geometry and unknown appearance.

A view is a crop of the photograph seen through a homography (rotation, zoom, tilt, perspective)
and then spoilt: light, blur, resampling, noise, compression. Corruptions are drawn for each
view on its own, so that the sharpness of a patch tells nothing about its zoom.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.homography import local_jacobian, nearest_similarity
from cv_patchpose.training.options import SynthesisConfig

Image: TypeAlias = NDArray[Any]
Matrix: TypeAlias = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class View:
    """One synthesised view.

    Args:
        image: (H, W) or (H, W, 3) uint8, as the photograph.
        homography: (3, 3) from photograph to view pixels, pixel centres at integers.
        unspoilt: the image before it was spoilt.
    """

    image: Image
    homography: Matrix
    unspoilt: Image


def _rotation(angle_rad: float) -> Matrix:
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cos, -sin], [sin, cos]])


def random_homography(
    center_px: Matrix, config: SynthesisConfig, rng: np.random.Generator
) -> Matrix:
    """Draw a view's homography that puts a point of the photograph at the canvas' centre.

    Args:
        center_px: (2,) point of the photograph.
        config: ranges of zoom, tilt and perspective.
        rng: random generator.

    Returns:
        (3, 3) homography from photograph to canvas.
    """
    zoom = 2.0 ** rng.uniform(*config.zoom_octaves)
    tilt = np.exp(min(abs(rng.normal(0, config.tilt_log_sigma)), config.tilt_log_max) / 2)
    axis = _rotation(rng.uniform(0, np.pi))
    linear = _rotation(rng.uniform(0, 2 * np.pi)) @ axis @ np.diag([tilt, 1 / tilt]) @ axis.T
    affine = np.eye(3)
    affine[:2, :2] = zoom * linear
    affine[:2, 2] = -affine[:2, :2] @ center_px
    perspective = np.eye(3)
    perspective[2, :2] = rng.normal(0, config.perspective, 2) / config.canvas_px
    recenter = np.eye(3)
    recenter[:2, 2] = (config.canvas_px - 1) / 2
    return np.asarray(recenter @ perspective @ affine)


def render(photograph: Image, homography: Matrix, canvas_px: int, center_px: Matrix) -> Image:
    """Warp a photograph onto a square canvas, blurred first where the view shrinks it."""
    zoom = nearest_similarity(local_jacobian(homography, center_px[None]))[0][0]
    if zoom < 0.9:
        photograph = cv2.GaussianBlur(photograph, (0, 0), shrinking_blur_px(zoom))
    view = cv2.warpPerspective(
        photograph,
        homography,
        (canvas_px, canvas_px),
        flags=cv2.INTER_LINEAR if zoom < 0.9 else cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(view, np.uint8)


def shrinking_blur_px(zoom: float) -> float:
    """Return the blur that a photograph needs before a zoom below 1, standard deviation."""
    return float(0.55 * np.sqrt(1 / zoom**2 - 1))


def corrupt(image: Image, config: SynthesisConfig, rng: np.random.Generator) -> Image:
    """Spoil a view: light, blur, motion, resampling, noise, compression, each by chance.

    Args:
        image: (H, W) or BGR (H, W, 3) uint8.
        config: chance and strength of the corruptions.
        rng: random generator.

    Returns:
        uint8 of the same shape, a new array.
    """

    def happens(chance: float) -> bool:
        return bool(rng.random() < chance * config.corruption)

    if happens(0.3):
        image = _motion_blur(image, rng)
    if happens(0.5):
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, config.blur_px))
    if happens(0.25):
        image = _resample(image, rng)
    if happens(0.7):
        image = _relight(image, config, rng)
    if happens(0.5):
        noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(1, config.noise)
        image = cv2.add(image, noise, dtype=cv2.CV_8U)
    if happens(0.5):
        quality = int(rng.uniform(*config.jpeg_quality))
        code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        image = np.asarray(cv2.imdecode(code, cv2.IMREAD_UNCHANGED))
    return np.asarray(image, np.uint8)


def _motion_blur(image: Image, rng: np.random.Generator) -> Image:
    return np.asarray(cv2.filter2D(image, -1, motion_kernel(rng)), np.uint8)


def motion_kernel(rng: np.random.Generator, side: int = 0) -> NDArray[np.float32]:
    """Draw a line of 3 to 11 pixels through the middle of a kernel, which sums to 1.

    Args:
        rng: random generator.
        side: of the kernel, odd; 0: as long as the line.
    """
    length = 2 * int(rng.integers(1, 6)) + 1  # odd: an even kernel would shift the image
    side = side or length
    kernel = np.zeros((side, side), np.float32)
    middle, reach = (side - 1) / 2, (length - 1) / 2
    step = reach * np.array([np.cos(angle := rng.uniform(0, np.pi)), np.sin(angle)])
    start, end = middle - step, middle + step
    cv2.line(kernel, np.rint(start).astype(int).tolist(), np.rint(end).astype(int).tolist(), 1.0)
    kernel += kernel[::-1, ::-1]  # about its centre, which a drawn line need not be
    return np.asarray(kernel / kernel.sum(), np.float32)


def _resample(image: Image, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    factor = rng.uniform(0.35, 0.8)
    # Sizes, not factors: rounding must be the same on the way back.
    small_size = round(width * factor), round(height * factor)
    small = cv2.resize(image, small_size, interpolation=cv2.INTER_AREA)
    how = cv2.INTER_LINEAR if rng.random() < 0.5 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(small, (width, height), interpolation=how), np.uint8)


def _relight(image: Image, config: SynthesisConfig, rng: np.random.Generator) -> Image:
    tone = np.linspace(0, 1, 256) ** np.exp(rng.normal(0, config.gamma_log_sigma))
    tone = (tone - 0.5) * np.exp(rng.normal(-0.15, 0.25)) + 0.5 + rng.normal(0, 0.07)
    if rng.random() < config.negative:
        tone = 1 - tone
    image = cv2.LUT(image, np.clip(255 * tone, 0, 255).astype(np.uint8))
    if rng.random() < 0.4:
        coarse = np.exp(rng.normal(0, 0.3, (3, 3))).astype(np.float32)
        shading = cv2.resize(coarse, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        if image.ndim == 3:
            shading = cv2.merge([shading] * 3)
        image = cv2.multiply(image, shading, dtype=cv2.CV_8U)
    return np.asarray(image, np.uint8)


def random_view(
    photograph: Image, center_px: Matrix, config: SynthesisConfig, rng: np.random.Generator
) -> View:
    """Draw one view of a photograph around a point.

    Args:
        photograph: (H, W) grey or BGR (H, W, 3) uint8.
        center_px: (2,) point that the view shows at its centre.
        config: ranges.
        rng: random generator.

    Returns:
        The view with its homography.
    """
    homography = random_homography(center_px, config, rng)
    image = render(photograph, homography, config.canvas_px, center_px)
    return View(corrupt(image, config, rng), homography, image)
