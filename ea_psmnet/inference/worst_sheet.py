"""The pairs a method is worst at, one a row, on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.inference.canvas import Canvas
from ea_psmnet.inference.outputs import colour_range, colourise, error_bar, error_map

__all__ = ["SheetRow", "sheet_row", "worst_sheet"]

_PANEL, _TALLEST, _GAP, _TITLE, _CAPTION, _BAR_STRIP = 400, 300, 16, 56, 34, 92  # pixels
_COLUMNS = ("left image", "predicted disparity", "absolute error", "true disparity")


class SheetRow(NamedTuple):
    """One pair, small: what a sheet keeps of it."""

    caption: str
    panels: tuple[NDArray[np.uint8], ...]
    """Left image, prediction, error and truth, (h, w, 3) RGB, within 400 x 300 pixels."""


def sheet_row(
    left: NDArray[np.uint8],
    disparity: NDArray[np.floating],
    truth: NDArray[np.floating],
    valid: NDArray[np.bool_],
    caption: str,
) -> SheetRow:
    """Draw a pair as four small panels; prediction and truth share the truth's range of colours.

    Args:
        left: (H, W, 3) uint8 RGB.
        disparity: (H, W) in pixels.
        truth: (H, W) in pixels.
        valid: (H, W), true where `truth` is known.
        caption: what to say of it; the range of colours is added.
    """
    known = np.where(valid, truth, np.nan)
    low, high = colour_range(known if valid.any() else disparity)
    pictures = (
        colourise(disparity, low, high),
        error_map(disparity, truth, valid),
        colourise(known, low, high),
    )
    panels = (_small(left, cv2.INTER_AREA), *(_small(p, cv2.INTER_NEAREST) for p in pictures))
    return SheetRow(f"{caption}; colours from {low:g} to {high:g} px", panels)


def worst_sheet(title: str, rows: Sequence[SheetRow]) -> NDArray[np.uint8]:
    """Rows under each other, with the columns' names above and the error's colours below.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    heights = [_CAPTION + row.panels[0].shape[0] + _GAP for row in rows]
    columns = [_GAP + place * (_PANEL + _GAP) for place in range(len(_COLUMNS))]
    canvas = Canvas(
        width=columns[-1] + _PANEL + _GAP,
        height=_TITLE + _CAPTION + sum(heights) + _BAR_STRIP,
    )
    canvas.text(_GAP, _TITLE / 2 + 4, title, size=16, weight="bold")
    for x, name in zip(columns, _COLUMNS, strict=True):
        canvas.text(x, _TITLE + _CAPTION / 2, name, size=12, style="italic")
    y = _TITLE + _CAPTION
    for row, height in zip(rows, heights, strict=True):
        canvas.text(_GAP, y + _CAPTION / 2, row.caption, size=12)
        for x, panel in zip(columns, row.panels, strict=True):
            canvas.image(x, y + _CAPTION, panel)
        y += height
    canvas.bar(columns[2], y + 8, _PANEL, error_bar())
    return canvas.pixels()


def _small(image: NDArray[np.uint8], interpolation: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    scale = min(_PANEL / width, _TALLEST / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)
