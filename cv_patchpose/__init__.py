"""Learned scale and orientation for OpenCV keypoints."""

from __future__ import annotations

from typing import Any

from cv_patchpose.assigner import PatchPoseAssigner
from cv_patchpose.errors import ModelError
from cv_patchpose.estimator import PoseEstimator
from cv_patchpose.feature2d import PatchPoseFeature2D
from cv_patchpose.histograms import PatchPoses, PoseBins, PoseHistograms
from cv_patchpose.matching import consistent_matches, match_logos, ratio_test
from cv_patchpose.pickling import make_keypoints_picklable
from cv_patchpose.rectified import describe

__all__ = [
    "ModelError",
    "PatchPoseAssigner",
    "PatchPoseFeature2D",
    "PatchPoses",
    "PoseBins",
    "PoseEstimator",
    "PoseHistograms",
    "consistent_matches",
    "describe",
    "make_keypoints_picklable",
    "match_logos",
    "ratio_test",
]


def __getattr__(name: str) -> Any:
    """Look the version up when it is asked for: that takes longer than all the rest."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("cv-patchpose")
    except PackageNotFoundError:  # run from a folder of sources
        return "unknown"
