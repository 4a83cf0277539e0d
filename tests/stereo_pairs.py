"""A textured pair whose two views follow from formulas, and the check that a truth fits a pair."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.sample import StereoSample

NEAR = 30.0
"""Disparity of the pair's foreground, in pixels."""
FRONT = (slice(30, 70), slice(80, 130))
"""Left pixels of the foreground."""


def far(x: NDArray) -> NDArray:
    """Disparity of the slanted background at a left column."""
    return 5 + 0.04 * x


def textured_pair(height: int = 96, width: int = 200) -> StereoSample:
    """A slanted plane behind a rectangle that faces the camera; `nonocc` is true where both see."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    disparity, left = far(x), _texture(x, y)
    behind = (x + far(0)) / (1 - 0.04)  # the left column that a right one sees: x - far(x)
    right = _texture(behind, y)
    disparity[FRONT], left[FRONT] = NEAR, _texture(x + 500, y)[FRONT]
    rows, columns = FRONT
    moved = (rows, slice(columns.start - int(NEAR), columns.stop - int(NEAR)))
    right[moved] = _texture(x + NEAR + 500, y)[moved]
    match = x - disparity
    hidden = (match > moved[1].start - 1) & (match < moved[1].stop) & (disparity < NEAR)
    seen = (match >= 0) & ~(hidden & (y >= rows.start) & (y < rows.stop))
    return StereoSample(
        left.astype(np.uint8),
        right.astype(np.uint8),
        disparity.astype(np.float32),
        np.ones((height, width), np.bool_),
        "textured",
        {"nonocc": seen},
    )


def _texture(x: NDArray, y: NDArray) -> NDArray:
    """Blots of several sizes: a function of the place, between pixels too."""
    place = x.astype(np.float32), y.astype(np.float32)
    return np.clip(128 + 8 * cv2.remap(_blots(), *place, cv2.INTER_CUBIC), 0, 255)


@cache
def _blots() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    blots = sum(
        6 * size**1.5 * cv2.GaussianBlur(rng.standard_normal((300, 1000, 3)), (0, 0), size)
        for size in (2, 4, 8)
    )
    return blots.astype(np.float32)


def matched(right: NDArray, x: NDArray, y: NDArray) -> NDArray[np.uint8]:
    """The right image at points between its pixels; what lies outside is black."""
    return cv2.remap(right, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)


def warped(sample: StereoSample, sign: int = 1) -> NDArray[np.uint8]:
    """The right image brought onto the left one by the truth."""
    y, x = np.mgrid[: sample.disparity.shape[0], : sample.disparity.shape[1]]
    return matched(sample.right, x - sign * sample.disparity, y)


def seen(sample: StereoSample) -> NDArray[np.bool_]:
    """Pixels to compare: known, not hidden, the match within the image, not at the rectangle's
    rim, where the colours of both surfaces blend."""
    rim = cv2.morphologyEx(sample.disparity, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 2
    match = np.arange(sample.disparity.shape[1]) - sample.disparity
    return sample.valid & sample.masks["nonocc"] & ~rim & (match >= 1)


def warp_error(sample: StereoSample, sign: int = 1) -> float:
    """Mean absolute difference of left and warped right image, in grey levels."""
    difference = np.abs(sample.left.astype(int) - warped(sample, sign))
    return float(difference[seen(sample)].mean())


def warp_correlation(sample: StereoSample, sign: int = 1) -> float:
    """Correlation of left and warped right brightness: whatever the two views' colours are."""
    left, right = (view.sum(-1)[seen(sample)] for view in (sample.left, warped(sample, sign)))
    return float(np.corrcoef(left, right)[0, 1])
