"""OpenCV's block matchers as baselines, and the filling of holes in their disparity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

BaselineName = Literal["sgbm", "bm"]

_STEPS = 16  # OpenCV stores sixteenths of a pixel
_LEAST = 10
"""Rows, and columns besides the range, that both matchers need: with fewer, OpenCV fails or returns
uninitialised memory."""


@dataclass(frozen=True)
class BlockMatcher:
    """StereoSGBM (Hirschmüller, PAMI 2008, with OpenCV's changes) or StereoBM.

    All settings except the range of disparities are those of OpenCV's sample `stereo_match.cpp`.
    `sgbm`: colour, blocks of 3 x 3, P1 = 8 * 3 * 9, P2 = 32 * 3 * 9, pre-filter cap 63, uniqueness
    10 %, five directions. `bm`: grey, blocks of 9 x 9, pre-filter cap 31, texture threshold 10,
    uniqueness 15 %. Both: left-right check to 1 px, speckles up to 100 pixels with range 32.
    """

    name: BaselineName
    max_disparity: int = 192
    """Pixels searched, a multiple of 16."""
    fill: bool = True
    """Fill holes with the background beside them; otherwise they are NaN."""
    mode: int = cv2.STEREO_SGBM_MODE_SGBM
    """StereoSGBM's directions: five, three (`MODE_SGBM_3WAY`) or eight (`MODE_HH`)."""
    pad: bool = True
    """Replicate the left border of the images, so that the search covers it.

    Otherwise the leftmost `max_disparity` columns are holes, however small their disparity is,
    which makes the baseline much weaker.
    """

    def __call__(self, left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Match a rectified pair.

        Args:
            left: (H, W, 3) uint8 RGB.
            right: (H, W, 3) uint8 RGB.

        Returns:
            (H, W) disparity in pixels; NaN in holes.

        Raises:
            ValueError: The image is not wider than the range of disparities, and not padded.
        """
        width = left.shape[1]
        if width <= self.max_disparity and not self.pad:
            raise ValueError(
                f"{self.name} cannot search {self.max_disparity} pixels in an image {width} wide: "
                "pad it (leave out --no-pad)"
            )
        views = [self._prepare(view) for view in (left, right)]
        start = self.max_disparity if self.pad else 0
        steps = self._matcher().compute(*views)  # int16, (H, W) and what `_prepare` added
        steps = steps[: left.shape[0], start : start + width]
        disparity = np.where(steps < 0, np.nan, steps.astype(np.float32) / _STEPS)
        return fill_background(disparity) if self.fill else disparity.astype(np.float32)

    def _prepare(self, view: NDArray[np.uint8]) -> NDArray[np.uint8]:
        image = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY) if self.name == "bm" else view
        (height, width), reach = image.shape[:2], self.max_disparity
        before = reach if self.pad else 0
        after = max(0, reach + _LEAST - before - width)
        below = max(0, _LEAST - height)
        border = cv2.copyMakeBorder(image, 0, below, before, after, cv2.BORDER_REPLICATE)
        return np.asarray(border, np.uint8)

    def _matcher(self) -> cv2.StereoMatcher:
        if self.name == "sgbm":
            block = 3
            return cv2.StereoSGBM.create(
                numDisparities=self.max_disparity,
                blockSize=block,
                P1=8 * 3 * block**2,
                P2=32 * 3 * block**2,
                disp12MaxDiff=1,
                preFilterCap=63,
                uniquenessRatio=10,
                speckleWindowSize=100,
                speckleRange=32,
                mode=self.mode,
            )
        matcher = cv2.StereoBM.create(numDisparities=self.max_disparity, blockSize=9)
        matcher.setPreFilterCap(31)
        matcher.setTextureThreshold(10)
        matcher.setUniquenessRatio(15)
        matcher.setSpeckleWindowSize(100)
        matcher.setSpeckleRange(32)
        matcher.setDisp12MaxDiff(1)
        return matcher


def fill_background(disparity: NDArray[np.floating]) -> NDArray[np.float32]:
    """Fill holes as KITTI's development kits do before they evaluate.

    In each row a hole gets the smaller of the values on either side, because areas that only one
    camera sees are background; at the ends of a row it gets the only neighbour. Rows without any
    value get the first or last value of each column if they lie above or below it; between other
    rows they stay empty.

    Args:
        disparity: (H, W) in pixels; values that are not finite are holes.

    Returns:
        (H, W) in pixels; NaN where holes remain.
    """
    known = np.isfinite(disparity)
    if known.all():  # the common case of a network's prediction
        return disparity.astype(np.float32)
    rows = np.where(known, disparity, np.nan).astype(np.float32)
    before, after = _last_known(rows), _last_known(rows[:, ::-1])[:, ::-1]
    filled = np.where(np.isnan(rows), np.fmin(before, after), rows)
    columns = filled.T
    above, below = _last_known(columns), _last_known(columns[:, ::-1])[:, ::-1]
    outside = np.isnan(above) | np.isnan(below)
    return np.where(np.isnan(columns) & outside, np.fmin(above, below), columns).T.copy()


def _last_known(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The value of each pixel, or of the nearest pixel to its left that has one; NaN if none."""
    index = np.where(np.isnan(rows), 0, np.arange(rows.shape[1]))
    return np.take_along_axis(rows, np.maximum.accumulate(index, axis=1), axis=1)
