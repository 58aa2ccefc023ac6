"""Calibration of a trained network: which scale counts as 1."""

from __future__ import annotations

import numpy as np
import torch

from cv_patchpose.histograms import PoseBins, find_modes
from cv_patchpose.patches import PolarGrid, build_pyramid, sample_polar
from cv_patchpose.training.objective import histograms_of
from cv_patchpose.training.photographs import Photographs

PHOTOGRAPHS = 60
BLOBS_PER_PHOTOGRAPH = 100


@torch.no_grad()
def measure_scale_offset(
    network: torch.nn.Module,
    grid: PolarGrid,
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
    octaves = []
    for index in range(min(len(photographs), PHOTOGRAPHS)):
        photograph = photographs[index]
        blob = np.flatnonzero(~np.isnan(photograph.size_px))
        # Evenly spread: SIFT's order goes by place.
        spread = np.linspace(0, len(blob) - 1, min(len(blob), BLOBS_PER_PHOTOGRAPH))
        blob = blob[spread.astype(int)]
        if not len(blob):
            continue
        patches = sample_polar(
            build_pyramid(photograph.image),
            photograph.xy_px[blob],
            magnification * photograph.size_px[blob],
            np.zeros(len(blob)),
            grid,
            standardize=True,
        )
        nothing = torch.zeros(len(patches), bins.scale)
        scale, orientation = network(torch.from_numpy(patches), nothing)
        histograms = histograms_of(scale, orientation)
        octaves.append(np.log2(find_modes(histograms, bins).scale))
    return -float(np.median(np.concatenate(octaves))) if octaves else 0.0
