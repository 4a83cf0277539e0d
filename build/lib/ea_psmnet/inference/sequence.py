"""Disparity over time: smoothing where the image does not change, and a measure of flicker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Flicker", "Smoothing", "image_change"]

_WINDOW = 5
"""Side in pixels of the window in which images are compared."""
_STATIC = 2.0
"""Grey levels of change up to which a pixel counts as static."""
_SOFTNESS = 4.0
"""Grey levels of change at which smoothing falls to 1/e."""


def image_change(before: NDArray[np.uint8], now: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Change between two frames, (H, W) grey levels: of the mean over a window of 5 x 5 pixels.

    The noise of a camera is a fifth of that of single pixels. The result is the mean over colours.
    """
    difference = now.astype(np.float32) - before
    windows = np.asarray(cv2.blur(difference, (_WINDOW, _WINDOW)), np.float32)
    return np.abs(windows).mean(axis=2, dtype=np.float32)


class Smoothing:
    """Exponential average of disparity over time at the pixels whose image does not change.

    With the change c of the image at a pixel (`image_change`, grey levels), disparity d_t and
    strength s, the smoothed disparity is

        S_t = S_(t-1) + (1 - k) (d_t - S_(t-1)),    k = s exp(-(c / 4)^2).

    Where the image changes, k is 0 and the prediction is kept as it is, so that moving things leave
    no trail. A change of disparity without one of the image is followed with a delay of about
    1 / (1 - s) frames.

    Args:
        strength: From 0, no smoothing, to below 1.

    Raises:
        ValueError: The strength is out of range.
    """

    def __init__(self, strength: float) -> None:
        if not 0 <= strength < 1:
            raise ValueError(f"smoothing is {strength:g}: expected from 0 to below 1")
        self._strength = strength
        self._last: tuple[NDArray[np.uint8], NDArray[np.float32]] | None = None

    def __call__(
        self, image: NDArray[np.uint8], disparity: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Smooth the next frame.

        Args:
            image: (H, W, 3), the left image.
            disparity: (H, W) in pixels.
        """
        smoothed = disparity
        if self._last is not None and self._strength > 0:
            before, average = self._last
            kept = self._strength * np.exp(-((image_change(before, image) / _SOFTNESS) ** 2))
            smoothed = average + (1 - kept) * (disparity - average)
            smoothed = np.where(np.isfinite(smoothed), smoothed, disparity).astype(np.float32)
        self._last = image, smoothed
        return smoothed


@dataclass
class Flicker:
    """Change of disparity between consecutive frames at pixels whose image does not change.

    A pixel is static if its image changes by at most 2 grey levels. The measure of two frames is
    the median of the absolute change of disparity over static pixels, and their 95th percentile;
    that of a sequence is the median over its pairs of frames.
    """

    medians: list[float] = field(default_factory=list)
    """Of each pair of frames with static pixels, in pixels of disparity."""
    highs: list[float] = field(default_factory=list)
    """95th percentiles of the same."""
    static: list[float] = field(default_factory=list)
    """Fraction of static pixels of each pair of frames."""
    _last: tuple[NDArray[np.uint8], NDArray[np.float32]] | None = None

    def add(self, image: NDArray[np.uint8], disparity: NDArray[np.float32]) -> None:
        """Add the next frame: image (H, W, 3), disparity (H, W) in pixels."""
        if self._last is not None:
            before, earlier = self._last
            change = np.abs(disparity - earlier)
            mask = (image_change(before, image) <= _STATIC) & np.isfinite(change)
            self.static.append(float(mask.mean()))
            if mask.any():
                median, high = np.percentile(change[mask], (50, 95))
                self.medians.append(float(median))
                self.highs.append(float(high))
        self._last = image, disparity

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the measures of the sequence, None without static pixels."""
        return {
            "median": float(np.median(self.medians)) if self.medians else None,
            "percentile_95": float(np.median(self.highs)) if self.highs else None,
            "static": float(np.mean(self.static)) if self.static else None,
        }
