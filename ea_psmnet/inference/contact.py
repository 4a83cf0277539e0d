"""A sheet of many pairs: both views, true disparity, and how well it brings them together."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.inference.canvas import Canvas
from ea_psmnet.inference.outputs import colour_range, colourise
from ea_psmnet.sample import StereoSample, at_columns

__all__ = ["contact_sheet", "warp_difference"]

_WIDTH = 320  # of a picture; all lengths in pixels
_GAP, _LINE = 12, 26
_GAIN = 6
"""Grey levels of the drawn difference for one of the images: well matched pixels differ by 3 to 5,
which would look black."""
_NOT_COMPARED = np.array((40, 60, 120), np.uint8)
_COLUMNS = (
    "left",
    "right",
    "disparity, far to near",
    f"left minus warped right, times {_GAIN}; blue: none",
)


def contact_sheet(samples: Sequence[StereoSample], title: str) -> NDArray[np.uint8]:
    """Draw a row a pair under its name; black disparity is unknown.

    Where truth and pair agree, the last column is dark but for what only one view sees and for
    what differs in exposure.

    Args:
        samples: At least one.
        title: One line above.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    rows = [[_fitted(picture) for picture in _pictures(sample)] for sample in samples]
    heights = [row[0].shape[0] + _LINE + _GAP for row in rows]
    canvas = Canvas(_GAP + 4 * (_WIDTH + _GAP), 2 * _LINE + sum(heights) + _GAP)
    canvas.text(_GAP, _LINE / 2 + 2, title, size=12, weight="bold")
    starts = [_GAP + column * (_WIDTH + _GAP) for column in range(4)]
    for x, caption in zip(starts, _COLUMNS, strict=True):
        canvas.text(x, 1.5 * _LINE, caption, size=10)
    y = 2 * _LINE
    for sample, row, height in zip(samples, rows, heights, strict=True):
        canvas.text(_GAP, y + _LINE / 2, _told(sample), size=10)
        for x, picture in zip(starts, row, strict=True):
            canvas.image(x, y + _LINE, picture)
        y += height
    return canvas.pixels()


def warp_difference(sample: StereoSample) -> NDArray[np.float32]:
    """Mean absolute difference of the left image and the right one sampled at x - d.

    Returns:
        (H, W) grey levels, NaN where the truth is unknown or the match outside of the right image.
    """
    there = np.arange(sample.disparity.shape[1], dtype=np.float32) - sample.disparity
    difference = np.abs(sample.left - at_columns(sample.right, there)).mean(-1)
    return np.where(sample.valid & (there >= 0), difference, np.float32(np.nan))


def _pictures(sample: StereoSample) -> list[NDArray[np.uint8]]:
    known = np.where(sample.valid, sample.disparity, np.nan)
    return [
        sample.left,
        sample.right,
        colourise(known, *colour_range(known)),
        _drawn(warp_difference(sample)),
    ]


def _drawn(difference: NDArray[np.float32]) -> NDArray[np.uint8]:
    grey = np.minimum(_GAIN * np.nan_to_num(difference), 255).astype(np.uint8)[..., None]
    return np.where(np.isnan(difference)[..., None], _NOT_COMPARED, grey)


def _fitted(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height = max(1, round(picture.shape[0] * _WIDTH / picture.shape[1]))
    return np.asarray(cv2.resize(picture, (_WIDTH, height), interpolation=cv2.INTER_AREA), np.uint8)


def _told(sample: StereoSample) -> str:
    known = sample.disparity[sample.valid]
    height, width = sample.disparity.shape
    told = f"{known.min():.1f} to {known.max():.1f} pixels" if known.size else "no truth"
    return f"{sample.name}: {width}x{height}, {told}, {sample.valid.mean():.0%} known"
