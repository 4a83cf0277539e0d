"""Parts of an image's valid pixels that a report tells apart."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.metrics import DISPARITY_BANDS, disparity_bands
from ea_psmnet.sample import StereoSample

ALL = "all"
"""The region of all counted pixels."""

NON_OCCLUDED, OCCLUDED = "non-occluded", "occluded"
"""Counted pixels that are visible, or not visible, in the right image, where that is known."""

NEAR_EDGES, FAR_FROM_EDGES = "near edges", "far from edges"

REGIONS = (ALL, NON_OCCLUDED, OCCLUDED, NEAR_EDGES, FAR_FROM_EDGES, *DISPARITY_BANDS)
"""All names, in the order of reports."""

EDGE_JUMP = 2.0
"""A depth edge lies between two valid neighbours whose true disparities differ by more."""

EDGE_DISTANCE = 4
"""Pixels at most this far from a depth edge, in rows and in columns, are near it.

Jump and distance are those of Scharstein and Szeliski, IJCV 2002 (gaps of 2, windows of 9 x 9).
"""


def regions(sample: StereoSample, limit: float) -> dict[str, NDArray[np.bool_]]:
    """Return masks (H, W) of the counted pixels of each region, by name.

    Valid pixels whose disparity is below `limit` are counted. `NON_OCCLUDED` and `OCCLUDED` are
    missing unless the sample has a mask of the pixels that are visible in the right image.
    """
    counted = sample.counted(limit)
    parts = {ALL: counted}
    if (visible := sample.masks.get("nonocc")) is not None:
        parts |= {NON_OCCLUDED: counted & visible, OCCLUDED: counted & ~visible}
    near = near_edges(sample)
    parts |= {NEAR_EDGES: counted & near, FAR_FROM_EDGES: counted & ~near}
    return parts | disparity_bands(sample.disparity, counted)


def near_edges(sample: StereoSample) -> NDArray[np.bool_]:
    """Return a mask (H, W) of pixels within `EDGE_DISTANCE` of a depth edge of the ground truth.

    In sparse ground truth, such as KITTI's, only jumps between valid neighbours are found.
    """
    edge = np.zeros(sample.valid.shape, bool)
    for axis in (0, 1):
        jump = np.abs(np.diff(sample.disparity, axis=axis)) > EDGE_JUMP
        size = jump.shape[axis]
        first, second = ((slice(None),) * axis + (slice(i, i + size),) for i in (0, 1))
        jump &= sample.valid[first] & sample.valid[second]
        edge[first] |= jump
        edge[second] |= jump
    window = np.ones((2 * EDGE_DISTANCE + 1,) * 2, np.uint8)
    return np.asarray(cv2.dilate(edge.astype(np.uint8), window), bool)
