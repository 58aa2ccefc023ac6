"""Compare an estimator of your own: name this file among the methods.

    cv-patchpose evaluate homography-matching PAIRS \
        --methods detector,polar,examples/add_a_peer.py -o result.json

The peer is ORB's rule: the direction from the centre of a patch to its centre of mass (E. Rublee et
al., ICCV 2011). An estimator of scale too, or of several poses, is a class with the members of
cv_patchpose.evaluation.interface.Method.
"""

import numpy as np

from cv_patchpose.evaluation.controls import AngleOnly
from cv_patchpose.patches import SquareGrid, build_pyramid, sample_square


def intensity_centroid_deg(image, xy_px, window_px):
    """From a BGR image, (N, 2) centres and (N,) windows to (N,) degrees clockwise."""
    upright = np.zeros(len(xy_px))
    grid = SquareGrid(size=31)
    patches = sample_square(build_pyramid(image), xy_px, window_px, upright, grid)[:, 0]
    offset = np.arange(31) - 15
    disc = patches * (np.hypot(offset, offset[:, None]) <= 15)
    x, y = (disc * offset).sum(axis=(1, 2)), (disc * offset[:, None]).sum(axis=(1, 2))
    return np.degrees(np.arctan2(y, x)) % 360


def load_method(settings):
    return AngleOnly(intensity_centroid_deg, magnification=6.0, window_px=settings.window_px)
