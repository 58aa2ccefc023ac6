"""Methods that are networks of this package."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np

from cv_patchpose.assigner import PatchPoseAssigner
from cv_patchpose.evaluation.detection import Detections
from cv_patchpose.evaluation.interface import Estimates, Image, Route
from cv_patchpose.keypoints import KeypointArrays, arrays_from_keypoints, keypoints_from_arrays


@dataclass(frozen=True)
class Learned:
    """One of this package's networks.

    Attributes:
        assigner: Holds the model and how its poses are written.
        route: See :class:`Method`.
    """

    assigner: PatchPoseAssigner
    route: Route = "fields"

    def pose(
        self, image: Image, detections: Detections, descriptor: str = "sift"
    ) -> KeypointArrays:
        """Return the points as the assigner writes them, or with nothing but size and angle new."""
        points = keypoints_from_arrays(detections.points)
        with warnings.catch_warnings():
            # What a descriptor does not read is what is measured here.
            warnings.simplefilter("ignore", UserWarning)
            assigned = self.assigner.assign(
                image, points, descriptor=descriptor, detector=detections.traits
            )
        posed = arrays_from_keypoints(assigned)
        if self.route != "naive":
            return posed
        own = detections.points.take(posed.class_id)
        size_px = posed.size_px * np.float32(detections.size_unit)
        return replace(own, size_px=size_px, angle_deg=posed.angle_deg)

    def estimate(self, image: Image, keypoints: KeypointArrays) -> Estimates:
        """Return the best pose of each keypoint."""
        poses = self.assigner.estimate(image, keypoints_from_arrays(keypoints))
        index, best = np.unique(poses.keypoint_index, return_index=True)
        size_px, angle_deg = np.full((2, len(keypoints)), np.nan)
        size_px[index] = poses.scale[best] * keypoints.size_px[index]
        angle_deg[index] = poses.angle_deg[best]
        return Estimates(size_px, angle_deg)
