"""Any OpenCV descriptor at any pose, from patches that are turned and scaled beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cv_patchpose.descriptors import DESCRIPTORS, VARIANTS, create_extractor, rule_for
from cv_patchpose.errors import naming
from cv_patchpose.field_rules import WINDOW
from cv_patchpose.histograms import NO_ANGLE_DEG
from cv_patchpose.keypoints import KeypointArrays, arrays_from_keypoints, keypoints_from_arrays
from cv_patchpose.patches import ImagePyramid, SquareGrid, build_pyramid, sample_square
from cv_patchpose.pyramid import stretch_contrast

_MOSAIC_PX = 1 << 19  # pixels of a mosaic, which bounds memory: DAISY takes some 150 bytes for each
_BORDER_PX = 32  # around a mosaic, for extractors that drop keypoints near the border

Mosaic = NDArray[np.uint8]


@dataclass(frozen=True)
class _View:
    """How an extractor looks at a patch.

    Attributes:
        extractor: Runs on the mosaics.
        window_px: Side of the support window on the mosaic.
        reach_px: How far from the centre a pixel can still change the descriptor.
        border_px: Distance from the border of the mosaic that keeps keypoints from being dropped.
        color: Whether it needs three channels.
    """

    extractor: Any
    window_px: float
    reach_px: float
    border_px: int = _BORDER_PX
    color: bool = False

    @property
    def tile_px(self) -> int:
        """Side of a patch; odd, so that the keypoint is the centre of a pixel."""
        return 2 * math.ceil(self.reach_px) + 1


def describe(
    image: Any,
    keypoints: Sequence[cv2.KeyPoint],
    extractor: Any,
    *,
    num_threads: int | None = None,
) -> tuple[tuple[cv2.KeyPoint, ...], NDArray[Any] | None]:
    """Describe keypoints by patches in their own frame, so that any descriptor has their pose.

    The patch around each keypoint is turned by its angle and scaled to the size at which the
    extractor looks at it best. Unlike compute(), this serves descriptors that ignore the size or
    the angle, drops no keypoint and keeps the order; octave and class_id are not read. KAZE and
    FREAK, which measure an angle of their own, are kept from it; BRISK cannot be, and measures its
    own on the patch. The rows resemble but do not equal those of compute(): match like with like.

    Args:
        image: (H, W), (H, W, 1), BGR or BGRA; uint8, uint16 or float32, stretched as for
            `PatchPoseAssigner.assign`; array or cv2.UMat. Beyond it, its border is replicated.
        keypoints: List or tuple of N cv2.KeyPoint on the image, with sizes as SIFT defines them
            (twice the sigma; windows six times as wide) and angles clockwise in degrees; -1, which
            means none, is taken as 0. Not changed.
        extractor: One of `descriptors.DESCRIPTORS`, or a cv2 extractor object; not changed.
        num_threads: Of the sampling; None: cv2.getNumThreads().

    Returns:
        The keypoints as given, and one row for each, of zeros for KAZE where the patch is flat; ()
        and None where there are none.

    Raises:
        TypeError: Not an image, or not keypoints.
        ValueError: An image, a keypoint or an extractor that cannot be used, such as "sift-fine":
            that is a way to write keypoints, not to describe patches.
        ImportError: This OpenCV lacks the descriptor.
    """
    if isinstance(extractor, str) and extractor in VARIANTS:
        raise ValueError(
            f"extractor: expected one of {', '.join(DESCRIPTORS)} or its cv2 object, got "
            f"{extractor!r}, which is for assign(image, keypoints, descriptor={extractor!r}) and "
            "the compute() of cv2.SIFT after it"
        )
    with naming({"name": "extractor", "descriptor": "extractor"}):
        view = _view_of(create_extractor(extractor) if isinstance(extractor, str) else extractor)
    pyramid = build_pyramid(stretch_contrast(image), color=view.color)
    height, width = pyramid.levels[0].shape[:2]
    arrays = arrays_from_keypoints(keypoints, image_size=(height, width))
    if len(arrays) == 0:
        return (), None
    count = max(1, _MOSAIC_PX // view.tile_px**2)
    starts = range(0, len(arrays), count)
    chunks = (arrays.take(np.arange(i, min(i + count, len(arrays)))) for i in starts)
    rows = [_describe_chunk(pyramid, chunk, view, num_threads) for chunk in chunks]
    return keypoints_from_arrays(arrays), np.concatenate(rows)


def _describe_chunk(
    pyramid: ImagePyramid, keypoints: KeypointArrays, view: _View, num_threads: int | None
) -> NDArray[Any]:
    """Describe N keypoints on one mosaic; return one row each, in order."""
    upright_deg = np.where(keypoints.angle_deg == NO_ANGLE_DEG, 0, keypoints.angle_deg)
    # The patch reaches beyond the support window by the extractor's own filters.
    patch_px = WINDOW * keypoints.size_px.astype(np.float64) * (view.tile_px / view.window_px)
    patches = sample_square(
        pyramid, keypoints.xy_px, patch_px, upright_deg, SquareGrid(view.tile_px),
        num_threads=num_threads,
    )  # fmt: skip
    columns = math.ceil(math.sqrt(len(patches)))
    mosaic = _lay_out(patches, columns, view.border_px)
    tiles = _tile_keypoints(len(patches), columns, view)
    written = rule_for(view.extractor).write(tiles, (mosaic.shape[0], mosaic.shape[1]))
    found, rows = view.extractor.compute(mosaic, keypoints_from_arrays(written))
    order = _tile_indices(found, columns, view)
    if not np.array_equal(np.sort(order), np.arange(len(patches))):
        raise RuntimeError(f"extractor: expected {len(patches)} rows, got {len(order)}")
    # Where a patch is flat, KAZE divides by the length 0 of its row.
    return np.asarray(np.nan_to_num(rows[np.argsort(order)], copy=False, nan=0.0))


def _lay_out(patches: NDArray[np.float32], columns: int, border_px: int) -> Mosaic:
    """Lay (N, C, T, T) patches of values in [0, 1] side by side, as one (H, W) or (H, W, C) image.

    Color patches are RGB, the image is BGR.
    """
    count, channels, side = patches.shape[:3]
    lines = math.ceil(count / columns)
    grid = np.zeros((lines * columns, channels, side, side), np.uint8)
    grid[:count] = np.rint(patches[:, ::-1] * 255)
    grid = grid.reshape(lines, columns, channels, side, side).transpose(0, 3, 1, 4, 2)
    mosaic = grid.reshape(lines * side, columns * side, channels)
    around = (border_px, border_px)
    mosaic = np.pad(mosaic, (around, around, (0, 0)))
    return mosaic[:, :, 0] if channels == 1 else mosaic


def _tile_keypoints(count: int, columns: int, view: _View) -> KeypointArrays:
    """Return the upright keypoints in the middle of the patches of a mosaic."""
    line, column = np.divmod(np.arange(count), columns)
    center = view.border_px + view.tile_px // 2
    xy_px = center + view.tile_px * np.column_stack([column, line])
    return KeypointArrays(
        xy_px=xy_px.astype(np.float32),
        size_px=np.full(count, view.window_px / WINDOW, np.float32),
        angle_deg=np.zeros(count, np.float32),
        response=np.ones(count, np.float32),
        octave=np.zeros(count, np.int32),
        class_id=np.zeros(count, np.int32),
    )


def _tile_indices(found: Sequence[cv2.KeyPoint], columns: int, view: _View) -> NDArray[np.int64]:
    """Tell which patches keypoints lie on: extractors may change the order."""
    xy_px = np.array([keypoint.pt for keypoint in found]).reshape(-1, 2)
    tile = ((xy_px - view.border_px) // view.tile_px).astype(np.int64)
    return np.asarray(tile[:, 1] * columns + tile[:, 0])


def _view_of(extractor: Any) -> _View:
    return _VIEWS[rule_for(extractor).name](extractor)


def _view_sift(sift: Any) -> _View:
    return _sift_view(sift, float(sift.getSigma()), int(sift.getNOctaveLayers()))


def _view_affine(affine: Any) -> _View:
    return _sift_view(affine, 1.6, 3)


def _sift_view(extractor: Any, sigma: float, layers: int) -> _View:
    """Look from the first layer of the image itself, where detection also begins."""
    size_px = 2 * sigma * 2 ** (1 / layers)
    return _View(extractor, WINDOW * size_px, 5.6 * size_px)


def _view_orb(orb: Any) -> _View:
    side = int(orb.getPatchSize())
    blur = 3
    return _View(orb, side, side / 2 + blur + 1, border_px=int(orb.getEdgeThreshold()) + 1)


def _view_brisk(brisk: Any) -> _View:
    window_px = 12 * 2.55 * float(brisk.getPatternScale())  # 12: the pattern as it was designed
    return _View(brisk, window_px, 0.65 * window_px)


def _view_akaze(akaze: Any) -> _View:
    """Look from the lowest level, which depends on nothing else in the mosaic."""
    lowest = type(akaze).create(
        descriptor_type=akaze.getDescriptorType(),
        descriptor_size=akaze.getDescriptorSize(),
        descriptor_channels=akaze.getDescriptorChannels(),
        nOctaves=1,
        nOctaveLayers=akaze.getNOctaveLayers(),
        diffusivity=akaze.getDiffusivity(),
    )
    return _View(lowest, 40, 27)


def _view_kaze(kaze: Any) -> _View:
    """Look upright, and from the lowest level that compute() fills."""
    layers = int(kaze.getNOctaveLayers())
    lowest = type(kaze).create(
        extended=kaze.getExtended(),
        upright=True,
        nOctaves=2 if layers == 1 else 1,  # that level is then the second octave's
        nOctaveLayers=layers,
        diffusivity=kaze.getDiffusivity(),
    )
    return _View(lowest, 48, 34)


def _view_brief(brief: Any) -> _View:
    return _View(brief, 48, 28)


def _view_freak(freak: Any) -> _View:
    """Look upright; a custom selection of pairs, which OpenCV does not tell, is lost."""
    upright = type(freak).create(
        orientationNormalized=False,
        scaleNormalized=True,
        patternScale=freak.getPatternScale(),
        nOctaves=freak.getNOctaves(),
    )
    window_px = 46 * float(freak.getPatternScale()) / 22
    return _View(upright, window_px, 0.7 * window_px)


def _view_latch(latch: Any) -> _View:
    return _View(latch, 48, 25 + int(latch.getHalfSSDsize()))


def _view_lucid(lucid: Any) -> _View:
    reach_px = int(lucid.getLucidKernel()) + int(lucid.getBlurKernel())
    return _View(lucid, 2 * reach_px + 3, reach_px + 1, color=True)


def _view_daisy(daisy: Any) -> _View:
    radius_px = float(daisy.getRadius())
    return _View(daisy, 2 * radius_px + 1, 3.1 * radius_px)


def _view_vgg(vgg: Any) -> _View:
    return _View(vgg, 64 * WINDOW / 6.75, 33 + 3.5 * float(vgg.getSigma()))


def _view_32(extractor: Any) -> _View:
    """Look at the 32 x 32 pixels that BoostDesc, BEBLID and TEBLID warp windows to."""
    return _View(extractor, 32 * WINDOW / 6.75, 18)


_VIEWS: dict[str, Callable[[Any], _View]] = {
    "sift": _view_sift,
    "orb": _view_orb,
    "brisk": _view_brisk,
    "akaze": _view_akaze,
    "kaze": _view_kaze,
    "brief": _view_brief,
    "freak": _view_freak,
    "latch": _view_latch,
    "lucid": _view_lucid,
    "daisy": _view_daisy,
    "vgg": _view_vgg,
    "boostdesc": _view_32,
    "beblid": _view_32,
    "teblid": _view_32,
    "affine": _view_affine,
}
