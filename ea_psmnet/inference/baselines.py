"""OpenCV's block matchers, to see what a network buys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.inference.holes import fill_background

__all__ = ["BaselineName", "BlockMatcher"]

BaselineName = Literal["sgbm", "bm"]

_STEPS = 16  # OpenCV stores sixteenths of a pixel
_LEAST = 10
"""Rows, and columns beside the range, that both need: with fewer OpenCV fails, or returns memory
that it never wrote."""


@dataclass(frozen=True)
class BlockMatcher:
    """StereoSGBM (Hirschmüller, PAMI 2008, as OpenCV changed it) or StereoBM, with OpenCV's values.

    All settings are those of OpenCV's sample `stereo_match.cpp`, but for the range of disparities.
    `sgbm`: colour, blocks of 3 x 3, P1 = 8 * 3 * 9, P2 = 32 * 3 * 9, pre-filter cap 63, uniqueness
    10 %, five directions. `bm`: grey, blocks of 9 x 9, pre-filter cap 31, texture threshold 10,
    uniqueness 15 %. Both: left-right check to 1 px, speckles up to 100 pixels with range 32.
    """

    name: BaselineName
    max_disparity: int = 192
    """Pixels searched, a multiple of 16."""
    fill: bool = True
    """Fill holes with the background beside them; otherwise they stay NaN."""
    pad: bool = True
    """Repeat the images' left border, so that the search covers it.

    OpenCV has no result for the `max_disparity` leftmost columns otherwise, be their truth ever so
    small: they are holes, which makes it a much weaker baseline.
    """

    def __call__(self, left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Match a rectified pair.

        Args:
            left: (H, W, 3) uint8 RGB.
            right: the same.

        Returns:
            (H, W) disparity in pixels; NaN in holes.

        Raises:
            ValueError: the image is no wider than the range, and not padded.
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
            )
        matcher = cv2.StereoBM.create(numDisparities=self.max_disparity, blockSize=9)
        matcher.setPreFilterCap(31)
        matcher.setTextureThreshold(10)
        matcher.setUniquenessRatio(15)
        matcher.setSpeckleWindowSize(100)
        matcher.setSpeckleRange(32)
        matcher.setDisp12MaxDiff(1)
        return matcher
