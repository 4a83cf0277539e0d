"""The prediction of one pair: examined, at a scale, in a range of disparities that may be its own.

A network searches as many disparities as it was trained for, from 0 on. Toed-in cameras have
negative disparities; near objects and large images exceed the range. A coarse pass over the reduced
pair sees a range several times as wide, and shows where to search.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.calibration import Calibration
from ea_psmnet.inference.doctor import examined
from ea_psmnet.inference.exported import ExportedMatcher
from ea_psmnet.inference.pairs import Pair, predicted_at_scale, resized_pair
from ea_psmnet.inference.result import StereoResult

if TYPE_CHECKING:
    from ea_psmnet.inference.matcher import StereoMatcher


def predict_pair(
    matcher: StereoMatcher | ExportedMatcher,
    pair: Pair,
    camera: Calibration | None = None,
    *,
    scale: float = 1,
    min_disparity: int = 0,
    fit_range: bool = False,
    rectify: bool = False,
    confidence: bool = False,
    right_view: bool = False,
) -> StereoResult:
    """Examine and predict a rectified pair; faults that it shows are warnings.

    Args:
        matcher: The network; at the scale it searches from `scale * min_disparity` on.
        pair: Left and right image, (H, W, 3) uint8.
        camera: Calibration at the size of the pair, which becomes that of the result.
        scale: Factor on the size at which the pair is predicted; the result has its own size.
        min_disparity: Smallest disparity that is searched, in pixels of the pair.
        fit_range: Whether to search the range that the pair has, which is told in a warning.
        rectify: Whether to align the rows of a pair that is not rectified.
        confidence: See `StereoMatcher`.
        right_view: See `StereoMatcher`.

    Raises:
        ValueError: The scale is impossible; an exported network is to search another range; or see
            `StereoMatcher`.
    """
    reach = min_disparity + matcher.max_disparity / scale
    pair = examined(
        pair,
        None if fit_range else (min_disparity, reach),
        scale=scale,
        doffs=0 if camera is None else camera.doffs,
        rectify=rectify,
    )

    def predict(*views: NDArray[np.uint8]) -> StereoResult:
        chosen = _ranged(matcher, (views[0], views[1]), scale) if fit_range else matcher
        return chosen(*views, confidence=confidence, right_view=right_view)

    return replace(predicted_at_scale(predict, pair, scale), calibration=camera)


def _ranged(matcher: StereoMatcher | ExportedMatcher, pair: Pair, scale: float) -> StereoMatcher:
    if isinstance(matcher, ExportedMatcher):
        raise ValueError("an exported network searches its own range: --range auto needs weights")
    found = find_range(matcher, pair)
    at_scale = "" if scale == 1 else f" (at the scale of {scale:g})"
    warnings.warn(f"range{at_scale}: {found}", stacklevel=2)
    return matcher.searching(found.minimum, found.count)


# The range of a pair ------------------------------------------------------------------------------

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
    """The findings of the coarse pass, in pixels of the pair."""

    low: float
    """Smallest disparity without outliers, with a margin."""
    high: float
    """Largest disparity, likewise."""
    minimum: int
    """Smallest disparity to search."""
    count: int
    """Number of disparities to search, a multiple of 16."""
    beyond: float
    """Share of the pixels that lie outside this range."""

    def __str__(self) -> str:
        return (
            f"disparities of {self.low:.0f} to {self.high:.0f} px by a coarse pass: searching "
            f"{self.minimum} to {self.minimum + self.count} px; {self.beyond:.1%} of the pixels "
            "exceed that"
        )


def find_range(matcher: StereoMatcher, pair: Pair) -> RangeReport:
    """Find the range that a matcher should search: its own if the pair fits into it.

    Otherwise the range is as long if possible, and begins as close to the matcher's as possible.

    Args:
        matcher: The matcher, which searches at most the width of the images.
        pair: Left and right image, (H, W, 3) uint8.

    Raises:
        ValueError: The coarse pass takes more memory than there is.
    """
    width = pair[0].shape[1]
    left, right = resized_pair(pair, min(_COARSE_SCALE, _COARSE_WIDTH / width))
    enlarged = width / left.shape[1]
    count = min(_COARSE_COUNT, _multiple(left.shape[1] + _BELOW))
    coarse = matcher.searching(-_BELOW, count, two_scales=False)
    found = coarse.evidence(left, right)
    sure = found.masses[1] >= _SURE
    known = found.disparity[sure] if sure.any() else found.disparity.ravel()
    ends = np.percentile(known, (_OUTLIERS, 100 - _OUTLIERS))
    low, high = (enlarged * np.add(ends, (-_MARGIN, _MARGIN))).tolist()
    minimum, count = matcher.min_disparity, min(matcher.max_disparity, _multiple(width))
    # The coarse pass errs by its margin: do not leave the network's range for less.
    if low + 2 * _MARGIN * enlarged < minimum or high > minimum + count:
        count = min(max(count, _multiple(high - low)), _multiple(width))
        minimum = max(min(minimum, math.floor(low)), math.ceil(high) - count)
    place = known * enlarged
    beyond = float(((place < minimum) | (place >= minimum + count)).mean())
    return RangeReport(low, high, minimum, count, beyond)


def _multiple(length: float) -> int:
    """Round a length up to what a network can search."""
    from ea_psmnet.models.psmnet import SIZE_MULTIPLE  # late: exported networks need no torch

    return math.ceil(length / SIZE_MULTIPLE) * SIZE_MULTIPLE
