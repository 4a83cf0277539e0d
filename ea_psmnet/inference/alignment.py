"""Alignment of the rows of a pair that is not quite rectified, from matched features."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_TOLERANCE = 1.5
"""Largest row difference of a match that agrees with an alignment, in pixels."""
_FEWEST = 6
_SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


@dataclass(frozen=True)
class RowAlignment:
    """Similarity about the image centre that brings rows of the right image onto the left one's.

    A right point (x, y) from the centre belongs on row `zoom * (x sin r + y cos r) + offset`, with
    r the rotation. This holds at any distance of the scene, whatever the column of the match, if
    the cameras differ by a rotation about the optical axis, by their focal length, or by a small
    tilt. Other differences, such as different viewing directions, need a calibration.
    """

    offset: float
    """Left minus right row in pixels, at the centre: the right image belongs lower if positive."""
    rotation: float
    """Angle in degrees by which the right image is turned counter-clockwise on the screen."""
    zoom: float
    """Size of what the left image shows over its size in the right image."""

    def matrix(self, width: float, height: float) -> Array:
        """(2, 3) affine map of right pixels to corrected right pixels, for images of that size."""
        angle = np.radians(self.rotation)
        turn = self.zoom * np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        return np.column_stack([turn, centre - turn @ centre + [0, self.offset]])

    def apply(self, right: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Warp the right image (H, W, 3); what lies outside repeats the border."""
        height, width = right.shape[:2]
        warped = cv2.warpAffine(
            right,
            self.matrix(width, height),
            (width, height),
            flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return np.asarray(warped, np.uint8)

    def moved(self, right: NDArray[np.floating], width: float, height: float) -> Array:
        """Corrected positions (N, 2) of right points (N, 2)."""
        matrix = self.matrix(width, height)
        return np.asarray(right @ matrix[:, :2].T + matrix[:, 2])


@dataclass(frozen=True, eq=False)
class RowFit:
    """An alignment fitted to matches, and how well they determine it."""

    alignment: RowAlignment
    errors: RowAlignment
    """Standard error of each value."""
    agreeing: NDArray[np.bool_]
    """(N,) matches whose rows agree after the alignment, to 1.5 pixels."""


def fit_rows(left: Array, right: Array, width: float, height: float) -> RowFit | None:
    """Fit an alignment robustly to matches; their columns do not matter.

    RANSAC (Fischler and Bolles, CACM 1981) selects matches, least squares fit the rows.

    Args:
        left: (N, 2) positions x, y in pixels in the left image.
        right: (N, 2) positions in the right image.
        width: Width of the images.
        height: Height of the images.

    Returns:
        The fit; None if the matches do not determine one.
    """
    if len(left) < _FEWEST:
        return None
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    source = np.asarray(right - centre, np.float64)
    rows = np.asarray(left[:, 1] - centre[1], np.float64)
    # An affine map of (x, y) to (x, row): its first line is exact, its second is the row.
    target = np.column_stack([source[:, 0], rows])
    _, chosen = cv2.estimateAffine2D(source, target, ransacReprojThreshold=_TOLERANCE)
    if chosen is None:
        return None
    terms = np.column_stack([np.ones(len(source)), source])
    agreeing = chosen.ravel().astype(bool)
    for _ in range(2):
        if agreeing.sum() < _FEWEST:
            return None
        solution, _, rank, _ = np.linalg.lstsq(terms[agreeing], rows[agreeing], rcond=None)
        if rank < 3:
            return None
        residuals = rows - terms @ solution
        agreeing = np.abs(residuals) < _TOLERANCE
    a, b, c = solution  # row = a + b x + c y
    rotation, zoom = np.degrees(np.arctan2(b, c)), np.hypot(b, c)
    kept, deviation = terms[agreeing], _SIGMA * np.median(np.abs(residuals[agreeing]))
    a_error, b_error, c_error = deviation * np.sqrt(np.diag(np.linalg.pinv(kept.T @ kept)))
    return RowFit(
        RowAlignment(float(a), float(rotation), float(zoom)),
        RowAlignment(float(a_error), float(np.degrees(b_error / zoom)), float(c_error)),
        agreeing,
    )
