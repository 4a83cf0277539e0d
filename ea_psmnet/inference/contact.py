"""A sheet of many pairs: both views, true disparity, and how well it brings them together."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.inference.canvas import Canvas
from ea_psmnet.inference.outputs import colour_range, colourise
from ea_psmnet.sample import StereoSample

__all__ = ["contact_sheet", "warp_difference"]

_WIDTH = 320  # of a picture; all lengths in pixels
_GAP, _LINE = 12, 26
_COLUMNS = ("left", "right", "disparity, far to near", "difference of left and warped right")


def contact_sheet(samples: Sequence[StereoSample], title: str) -> NDArray[np.uint8]:
    """Draw a row a pair under its name; black is unknown.

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


def warp_difference(sample: StereoSample) -> NDArray[np.uint8]:
    """Mean absolute difference of the left image and the right one sampled at x - d.

    Returns:
        (H, W) grey levels, 0 where the truth is unknown or the match outside of the right image.
    """
    y, x = np.mgrid[: sample.disparity.shape[0], : sample.disparity.shape[1]].astype(np.float32)
    there = x - sample.disparity
    warped = np.asarray(cv2.remap(sample.right, there, y, cv2.INTER_LINEAR))
    difference = np.abs(sample.left.astype(np.float32) - warped).mean(-1)
    return np.where(sample.valid & (there >= 0), difference, 0).astype(np.uint8)


def _pictures(sample: StereoSample) -> list[NDArray[np.uint8]]:
    known = np.where(sample.valid, sample.disparity, np.nan)
    difference = np.repeat(warp_difference(sample)[..., None], 3, axis=2)
    return [sample.left, sample.right, colourise(known, *colour_range(known)), difference]


def _fitted(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height = max(1, round(picture.shape[0] * _WIDTH / picture.shape[1]))
    return np.asarray(cv2.resize(picture, (_WIDTH, height), interpolation=cv2.INTER_AREA), np.uint8)


def _told(sample: StereoSample) -> str:
    known = sample.disparity[sample.valid]
    height, width = sample.disparity.shape
    told = f"{known.min():.1f} to {known.max():.1f} pixels" if known.size else "no truth"
    return f"{sample.name}: {width}x{height}, {told}, {sample.valid.mean():.0%} known"
