"""Disparity errors as sums and counts over pixels, so that any grouping adds up exactly."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

__all__ = ["DISPARITY_RANGES", "DisparityErrors"]

DISPARITY_RANGES = ((0, 16), (16, 32), (32, 64), (64, 96), (96, 128), (128, 192))
"""Bands of true disparity, [from, to) in pixels, that reports break errors down by."""


@dataclass(frozen=True)
class DisparityErrors:
    """Sums over counted pixels; add two of them for the errors over both."""

    pixels: int = 0
    """Pixels counted."""
    absolute: float = 0.0
    """Sum of absolute errors, in pixels."""
    over_1px: int = 0
    """Pixels whose error exceeds 1 px."""
    over_2px: int = 0
    """Pixels whose error exceeds 2 px."""
    over_3px: int = 0
    """Pixels whose error exceeds 3 px."""
    outliers: int = 0
    """Pixels whose error exceeds 3 px and 5 % of the true disparity (KITTI 2015)."""

    @classmethod
    def measure(
        cls,
        prediction: NDArray[np.floating],
        truth: NDArray[np.floating],
        counted: NDArray[np.bool_],
    ) -> DisparityErrors:
        """Compare a prediction with the truth where `counted` is true; all (H, W), in pixels.

        A predicted NaN or infinity counts as wrong by every measure.
        """
        true = truth[counted].astype(np.float64)
        error = np.abs(prediction[counted].astype(np.float64) - true)
        error[np.isnan(error)] = np.inf
        return cls(
            pixels=error.size,
            absolute=float(error.sum()),
            over_1px=int((error > 1).sum()),
            over_2px=int((error > 2).sum()),
            over_3px=int((error > 3).sum()),
            outliers=int(((error > 3) & (error > 0.05 * np.abs(true))).sum()),
        )

    def __add__(self, other: DisparityErrors) -> DisparityErrors:
        return DisparityErrors(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    @property
    def epe(self) -> float:
        """End-point error: the mean absolute error in pixels; NaN when nothing was counted."""
        return self.absolute / self.pixels if self.pixels else float("nan")

    def figures(self) -> dict[str, float]:
        """EPE in pixels, bad-1, bad-2, bad-3 and D1 in percent; NaN when nothing was counted."""
        counts = {
            "bad-1": self.over_1px,
            "bad-2": self.over_2px,
            "bad-3": self.over_3px,
            "D1": self.outliers,
        }
        percent = 100 / self.pixels if self.pixels else float("nan")
        return {"EPE": self.epe} | {name: percent * count for name, count in counts.items()}
