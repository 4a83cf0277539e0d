"""A sheet of many pairs: both views, true disparity, and how well it brings them together."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.figures import GridStyle, Row, fitted, panel_grid
from ea_psmnet.inference.outputs import colour_range, colourise, disparity_bar
from ea_psmnet.sample import StereoSample, at_columns

__all__ = ["contact_sheet", "warp_difference"]

_STYLE = GridStyle(320, 12, 20, line=26, size=10, title=26, title_size=12)
_GAIN = 6
"""Grey levels of the drawn difference for one of the images: well matched pixels differ by 3 to 5,
which would look black."""
_NOT_COMPARED = np.array((40, 60, 120), np.uint8)
_COLUMNS = (
    "left",
    "right",
    "disparity in px, colours at the right",
    f"left minus warped right, times {_GAIN}; blue: none",
)


def contact_sheet(samples: Sequence[StereoSample], title: str) -> NDArray[np.uint8]:
    """Draw a row a pair under its name, with the colours of its disparity; black is unknown.

    Where truth and pair agree, the last column is dark but for what only one view sees and for
    what differs in exposure.

    Args:
        samples: At least one.
        title: One line above.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    return panel_grid([_row(sample) for sample in samples], _STYLE, title=title, columns=_COLUMNS)


def warp_difference(sample: StereoSample) -> NDArray[np.float32]:
    """Mean absolute difference of the left image and the right one sampled at x - d.

    Returns:
        (H, W) grey levels, NaN where the truth is unknown or the match outside of the right image.
    """
    there = np.arange(sample.disparity.shape[1], dtype=np.float32) - sample.disparity
    difference = np.abs(sample.left - at_columns(sample.right, there)).mean(-1)
    return np.where(sample.valid & (there >= 0), difference, np.float32(np.nan))


def _row(sample: StereoSample) -> Row:
    known = np.where(sample.valid, sample.disparity, np.nan)
    low, high = colour_range(known)
    pictures = (
        sample.left,
        sample.right,
        colourise(known, low, high),
        _drawn(warp_difference(sample)),
    )
    small = [fitted(picture, _STYLE.width, interpolation=cv2.INTER_AREA) for picture in pictures]
    return Row(small, headings=(_described(sample),), bar=disparity_bar(low, high, known))


def _drawn(difference: NDArray[np.float32]) -> NDArray[np.uint8]:
    grey = np.minimum(_GAIN * np.nan_to_num(difference), 255).astype(np.uint8)[..., None]
    return np.where(np.isnan(difference)[..., None], _NOT_COMPARED, grey)


def _described(sample: StereoSample) -> str:
    known = sample.disparity[sample.valid]
    height, width = sample.disparity.shape
    told = f"{known.min():.1f} to {known.max():.1f} pixels" if known.size else "no truth"
    return f"{sample.name}: {width}x{height}, {told}, {sample.valid.mean():.0%} known"
