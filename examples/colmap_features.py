"""Write SIFT features with learned poses for COLMAP: a text file for each photograph of a folder.

COLMAP reads them in place of its feature_extractor:

    colmap feature_importer --database_path DATABASE --image_path FOLDER --import_path FEATURES

Photographs in folders below it are left out.

Usage: python examples/colmap_features.py FOLDER FEATURES
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from cv_patchpose import PatchPoseAssigner
from cv_patchpose.interop import colmap_from_keypoints

if len(sys.argv) != 3:
    sys.exit(__doc__)
photographs, features = Path(sys.argv[1]), Path(sys.argv[2])
if not photographs.is_dir():
    sys.exit(f"{photographs}: expected a folder of photographs")
written = 0
features.mkdir(parents=True, exist_ok=True)
sift, assigner = cv2.SIFT.create(nfeatures=8000), PatchPoseAssigner(top_k=2)

for path in sorted(photographs.iterdir()):
    # As it lies in the file: COLMAP does not turn photographs by their EXIF orientation.
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:  # no photograph
        continue
    posed = assigner.assign(image, sift.detect(image))
    posed, descriptors = sift.compute(image, posed)
    if descriptors is None:
        descriptors = np.empty((0, 128), np.float32)
    # As COLMAP's own: RootSIFT, times 512 as bytes.
    roots = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1))
    rows = np.hstack([colmap_from_keypoints(posed, columns=4), (512 * roots).round().clip(0, 255)])
    layout = ["%.3f"] * 4 + ["%d"] * 128
    np.savetxt(features / f"{path.name}.txt", rows, layout, header=f"{len(rows)} 128", comments="")
    print(f"{path.name}: {len(rows)} features")
    written += 1
if not written:
    sys.exit(f"{photographs}: expected photographs, got none")
