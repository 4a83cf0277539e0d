"""The range of disparities of a pair, found by a coarse pass.

A network searches as many disparities as it was trained for, from 0 on. Cameras that are toed in
have negative disparities, and near objects or large images more than that. A prediction of the
reduced pair sees a range several times as wide, and says where the search should be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.inference.pairs import Pair, resized_pair
from ea_psmnet.models.psmnet import SIZE_MULTIPLE

__all__ = ["RangeReport", "find_range"]

_COARSE_WIDTH, _COARSE_SCALE = 480, 0.5
"""Width of the reduced images in pixels, and the least reduction."""
_BELOW, _COARSE_COUNT = 32, 192
"""Pixels of the reduced images that the coarse pass searches below 0, and altogether."""
_SURE = 0.8
"""Least probability within 6 px of the estimate of pixels that count."""
_OUTLIERS = 0.5
"""Percent of the pixels on either side that need not fit."""
_MARGIN = 2
"""Pixels of the reduced images that are searched beyond what the coarse pass finds."""


@dataclass(frozen=True)
class RangeReport:
    """What the coarse pass found; all in pixels of the pair."""

    low: float
    """Smallest disparity but for outliers, with a margin."""
    high: float
    """Largest disparity, likewise."""
    minimum: int
    """Smallest disparity to search."""
    count: int
    """Number of disparities to search, a multiple of 16."""
    beyond: float
    """Share of the pixels that lie outside of this range."""

    def __str__(self) -> str:
        return (
            f"disparities of {self.low:.0f} to {self.high:.0f} px by a coarse pass: searching "
            f"{self.minimum} to {self.minimum + self.count} px; {self.beyond:.1%} of the pixels "
            "exceed that"
        )


def find_range(matcher: StereoMatcher, pair: Pair) -> RangeReport:
    """Find the range that a matcher should search, which is its own if the pair's fits.

    Otherwise it is as long if possible, and begins as near to the matcher's as possible.

    Args:
        matcher: The matcher; it searches nothing narrower than the images.
        pair: Left and right image, (H, W, 3) uint8.

    Raises:
        ValueError: The coarse pass takes more memory than there is.
    """
    width = pair[0].shape[1]
    left, right = resized_pair(pair, min(_COARSE_SCALE, _COARSE_WIDTH / width))
    enlarged = width / left.shape[1]
    coarse = matcher.searching(-_BELOW, min(_COARSE_COUNT, _multiple(left.shape[1])))
    found = coarse.evidence(left, right)
    sure = found.masses[1] >= _SURE
    known = found.disparity[sure] if sure.any() else found.disparity.ravel()
    ends = np.percentile(known, (_OUTLIERS, 100 - _OUTLIERS))
    low, high = (enlarged * np.add(ends, (-_MARGIN, _MARGIN))).tolist()
    minimum, count = matcher.min_disparity, min(matcher.max_disparity, _multiple(width))
    # The coarse pass errs by its margin: the networks' range is not left for less.
    if low + 2 * _MARGIN * enlarged < minimum or high > minimum + count:
        count = min(max(count, _multiple(high - low)), _multiple(width))
        minimum = max(min(minimum, math.floor(low)), math.ceil(high) - count)
    place = known * enlarged
    beyond = float(((place < minimum) | (place >= minimum + count)).mean())
    return RangeReport(low, high, minimum, count, beyond)


def _multiple(length: float) -> int:
    """The length, rounded up to what a network can search."""
    return math.ceil(length / SIZE_MULTIPLE) * SIZE_MULTIPLE
