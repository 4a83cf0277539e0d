"""Holes in a disparity map: pixels without a prediction, NaN."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["fill_background"]


def fill_background(disparity: NDArray[np.floating]) -> NDArray[np.float32]:
    """Fill holes as KITTI's development kits do before they measure.

    In each row a hole takes the smaller of the values that bound it, for what one camera alone sees
    is background; at the row's ends it takes the one there is. Rows without any value take, above
    and below the first and the last of a column, that value; between two others they stay empty.

    Args:
        disparity: (H, W) in pixels; what is not finite is a hole.
    """
    known = np.isfinite(disparity)
    if known.all():  # a network's: the common case costs nothing
        return disparity.astype(np.float32)
    rows = np.where(known, disparity, np.nan).astype(np.float32)
    before, after = _last_known(rows), _last_known(rows[:, ::-1])[:, ::-1]
    filled = np.where(np.isnan(rows), np.fmin(before, after), rows)
    columns = filled.T
    above, below = _last_known(columns), _last_known(columns[:, ::-1])[:, ::-1]
    outside = np.isnan(above) | np.isnan(below)
    return np.where(np.isnan(columns) & outside, np.fmin(above, below), columns).T.copy()


def _last_known(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each pixel's own value or the nearest one to its left; NaN where there is none."""
    index = np.where(np.isnan(rows), 0, np.arange(rows.shape[1]))
    return np.take_along_axis(rows, np.maximum.accumulate(index, axis=1), axis=1)
