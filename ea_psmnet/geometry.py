"""Geometry of rectified pairs: from disparity to depth and points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.calibration import Calibration

__all__ = ["depth_map"]


def depth_map(disparity: NDArray[np.floating], calibration: Calibration) -> NDArray[np.float32]:
    """Depth f * baseline / (disparity + doffs), along the optical axis.

    Args:
        disparity: (H, W) in pixels; unknown where not finite.
        calibration: Calibration of images of this size.

    Returns:
        (H, W) in metres; infinite where the disparity is that of points at infinity or less, NaN
        where it is unknown.
    """
    shift = disparity.astype(np.float64) + calibration.doffs
    known = np.isfinite(shift)
    depth = np.full(shift.shape, np.inf)
    np.divide(calibration.f * calibration.baseline, shift, out=depth, where=known & (shift > 0))
    return np.where(known, depth, np.nan).astype(np.float32)
