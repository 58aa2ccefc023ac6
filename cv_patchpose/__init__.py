"""Learned scale and orientation for OpenCV keypoints."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from cv_patchpose.assigner import PatchPoseAssigner
from cv_patchpose.errors import ModelError
from cv_patchpose.estimator import PoseEstimator
from cv_patchpose.histograms import PatchPoses, PoseBins, PoseHistograms

__all__ = [
    "ModelError",
    "PatchPoseAssigner",
    "PatchPoses",
    "PoseBins",
    "PoseEstimator",
    "PoseHistograms",
]

try:
    __version__ = version("cv-patchpose")
except PackageNotFoundError:  # run from a folder of sources
    __version__ = "unknown"
