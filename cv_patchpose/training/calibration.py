"""Calibration of a trained network: which scale counts as 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cv_patchpose.grids import PolarGrid, SquareGrid
from cv_patchpose.histograms import PoseBins, find_modes
from cv_patchpose.patches import build_pyramid, sample_patches
from cv_patchpose.training.objective import apply_network, histograms_of
from cv_patchpose.training.photographs import Photographs

PHOTOGRAPHS = 60
BLOBS_PER_PHOTOGRAPH = 100


def measure_scale_offset(
    network: torch.nn.Module,
    grid: PolarGrid | SquareGrid,
    bins: PoseBins,
    photographs: Photographs,
    magnification: float,
) -> float:
    """Find the offset that makes the median scale of SIFT keypoints 1.

    Args:
        network: patches to logits, in evaluation mode.
        grid: of the patches.
        bins: of the histograms.
        photographs: with their SIFT keypoints.
        magnification: diameter of the support window over the keypoint's size.

    Returns:
        Octaves to add to every measured log2 scale; 0 when there are no keypoints.
    """
    return scale_offset(network, reference_patches(grid, photographs, magnification), bins)


def reference_patches(
    grid: PolarGrid | SquareGrid, photographs: Photographs, magnification: float
) -> list[NDArray[np.float32]]:
    """Sample SIFT keypoints as they are found, some of each of some photographs.

    Args:
        grid: of the patches.
        photographs: with their SIFT keypoints.
        magnification: diameter of the support window over the keypoint's size.

    Returns:
        Arrays of (N, C, H, W).
    """
    patches = []
    for index in range(min(len(photographs), PHOTOGRAPHS)):
        photograph = photographs[index]
        blob = np.flatnonzero(~np.isnan(photograph.size_px))
        # Evenly spread: SIFT's order goes by place.
        spread = np.linspace(0, len(blob) - 1, min(len(blob), BLOBS_PER_PHOTOGRAPH))
        blob = blob[spread.astype(int)]
        if not len(blob):
            continue
        patches.append(
            sample_patches(
                build_pyramid(photograph.image, color=photograph.image.ndim == 3),
                photograph.xy_px[blob],
                magnification * photograph.size_px[blob],
                np.zeros(len(blob)),
                grid,
                standardize=isinstance(grid, PolarGrid),
            )
        )
    return patches


@torch.no_grad()
def scale_offset(
    network: torch.nn.Module, patches: Sequence[NDArray[np.float32]], bins: PoseBins
) -> float:
    """Find the offset that makes the median scale of patches 1.

    Args:
        network: patches to logits, in evaluation mode.
        patches: arrays of (N, C, H, W).
        bins: of the histograms.

    Returns:
        Octaves to add to every measured log2 scale; 0 when there are no patches.
    """
    octaves = []
    for some in patches:
        nothing = np.zeros((len(some), bins.scale), np.float32)
        histograms = histograms_of(apply_network(network, some, nothing), bins)
        octaves.append(np.log2(find_modes(histograms, bins).scale))
    return -float(np.median(np.concatenate(octaves))) if octaves else 0.0
