"""Match two photographs with SIFT's own pose and with the learned one; count the inliers.

Usage: python examples/sift_drop_in.py FIRST SECOND PICTURE (such as matches.png)
"""

import sys

import cv2

from cv_patchpose import PatchPoseAssigner
from cv_patchpose.drawing import draw_matches_before_after
from cv_patchpose.matching import match_keypoints

if len(sys.argv) != 4 or not cv2.haveImageWriter(sys.argv[3]):
    sys.exit(__doc__)
image1, image2 = (cv2.imread(path) for path in sys.argv[1:3])
if image1 is None or image2 is None:
    sys.exit(f"{sys.argv[1 if image1 is None else 2]}: expected a photograph")
sift = cv2.SIFT.create(nfeatures=2000)
# SIFT emits a keypoint for each of its orientations; two poses are the like of that.
assigner = PatchPoseAssigner("polar", descriptor=sift, top_k=2)
detected1, detected2 = sift.detect(image1), sift.detect(image2)
posed1, posed2 = assigner.assign(image1, detected1), assigner.assign(image2, detected2)
before = match_keypoints(image1, detected1, image2, detected2)
after = match_keypoints(image1, posed1, image2, posed2)
print(f"SIFT's own pose: {before.inlier.sum()} of {len(before)} matches are inliers")
print(f"learned pose:    {after.inlier.sum()} of {len(after)} matches are inliers")
if not cv2.imwrite(sys.argv[3], draw_matches_before_after(image1, image2, before, after)):
    sys.exit(f"{sys.argv[3]}: cannot be written")
