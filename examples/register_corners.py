"""Lay the second photograph over the first one, by FAST corners and FREAK descriptors.

The photographs show a plane, or were taken from one place; they may be turned and zoomed.

Usage: python examples/register_corners.py FIRST SECOND PICTURE (such as laid_over.png)
"""

import sys

import cv2
import numpy as np

from cv_patchpose import PatchPoseFeature2D, ratio_test

if len(sys.argv) != 4 or not cv2.haveImageWriter(sys.argv[3]):
    sys.exit(__doc__)
first, second = photographs = [cv2.imread(path) for path in sys.argv[1:3]]
for path, photograph in zip(sys.argv[1:3], photographs, strict=True):
    if photograph is None:
        sys.exit(f"{path}: expected a photograph")
feature = PatchPoseFeature2D(cv2.FastFeatureDetector.create(threshold=20), "freak")

keypoints1, descriptors1 = feature.detectAndCompute(first, None)
keypoints2, descriptors2 = feature.detectAndCompute(second, None)
matches = ratio_test(descriptors1, descriptors2, keypoints2, mutual=True)
if len(matches) < 4:
    sys.exit(f"{len(matches)} matches are too few for a homography")
places1 = np.float32([keypoints1[match.queryIdx].pt for match in matches])
places2 = np.float32([keypoints2[match.trainIdx].pt for match in matches])
second_to_first, inlier = cv2.findHomography(places2, places1, cv2.USAC_MAGSAC, 3.0)
if second_to_first is None:
    sys.exit(f"no homography agrees with the {len(matches)} matches")

print(f"{inlier.sum()} of {len(matches)} matches are inliers")
laid_over = cv2.warpPerspective(second, second_to_first, first.shape[1::-1])
if not cv2.imwrite(sys.argv[3], cv2.addWeighted(first, 0.5, laid_over, 0.5, 0)):
    sys.exit(f"{sys.argv[3]}: cannot be written")
