"""Disparity errors as sums and counts over pixels, so that any grouping adds up exactly.

A pixel without a finite prediction is a hole. Holes count as wrong in bad-N and D1 and lower the
density; EPE, RMSE and the quantiles are over predicted pixels only, as in Middlebury's evaluation
(version 3). Errors of a method with holes must be read together with its density.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

DISPARITY_RANGES = ((0, 16), (16, 32), (32, 64), (64, 96), (96, 128), (128, 192))
"""Bands of true disparity, [from, to) in pixels, into which reports divide errors."""

DISPARITY_BANDS = tuple(f"{low} to {high} px" for low, high in DISPARITY_RANGES)
"""Names of the bands."""

_QUANTILES = {"median": 0.5, "A90": 0.9, "A95": 0.95, "A99": 0.99}

_THRESHOLDS = {
    "bad-0.5": (0.5, "over_half_px"),
    "bad-1": (1.0, "over_1px"),
    "bad-2": (2.0, "over_2px"),
    "bad-3": (3.0, "over_3px"),
    "bad-4": (4.0, "over_4px"),
}
"""Thresholds of errors in pixels, and fields of `DisparityErrors`, by name of the figure."""


@dataclass(frozen=True)
class DisparityErrors:
    """Sums over counted pixels; the sum of two objects has the errors over both sets of pixels.

    Raises:
        ValueError: A sum or a count is negative, or more are counted than there are pixels.
    """

    pixels: int = 0
    """Number of counted pixels."""
    predicted: int = 0
    """Number of counted pixels with a prediction."""
    absolute: float = 0.0
    """Sum of absolute errors of predicted pixels, in pixels."""
    squared: float = 0.0
    """Sum of squared errors of predicted pixels, in square pixels."""
    over_half_px: int = 0
    """Number of pixels with an error over 0.5 px, holes included; likewise below."""
    over_1px: int = 0
    over_2px: int = 0
    over_3px: int = 0
    over_4px: int = 0
    outliers: int = 0
    """Number of pixels with an error over 3 px and 5 % of the disparity (KITTI 2015), and holes."""

    @property
    def holes(self) -> int:
        """Number of counted pixels without a prediction."""
        return self.pixels - self.predicted

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            most = self.pixels if isinstance(each.default, int) else np.inf
            if not 0 <= value <= most:
                raise ValueError(f"{each.name} cannot be {value} of {self.pixels} pixels")

    @classmethod
    def measure(
        cls,
        prediction: NDArray[np.floating],
        truth: NDArray[np.floating],
        counted: NDArray[np.bool_],
    ) -> DisparityErrors:
        """Compare a prediction with the ground truth at the counted pixels; all (H, W), in pixels.

        The ground truth is finite there; the prediction is NaN or infinite where there is none.
        """
        pixels = int(np.count_nonzero(counted))
        found = counted & np.isfinite(prediction)
        true = truth[found].astype(np.float64)
        error = np.abs(prediction[found].astype(np.float64) - true)
        holes = pixels - error.size
        over = {
            counter: holes + int(np.count_nonzero(error > threshold))
            for threshold, counter in _THRESHOLDS.values()
        }
        outlier = (error > 3) & (error > 0.05 * np.abs(true))
        return cls(
            pixels=pixels,
            predicted=error.size,
            absolute=float(error.sum()),
            squared=float(np.square(error).sum()),
            **over,
            outliers=holes + int(np.count_nonzero(outlier)),
        )

    def __add__(self, other: DisparityErrors) -> DisparityErrors:
        return DisparityErrors(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    @property
    def epe(self) -> float:
        """End-point error: mean absolute error of predicted pixels; NaN when there is none."""
        return _ratio(self.absolute, self.predicted)

    def figures(self) -> dict[str, float]:
        """EPE and RMSE in pixels; bad-N, D1 and density in percent; NaN if no pixel counts."""
        counts = {name: getattr(self, counter) for name, (_, counter) in _THRESHOLDS.items()}
        counts |= {"D1": self.outliers, "density": self.predicted}
        rmse = _ratio(self.squared, self.predicted) ** 0.5
        percent = {name: _ratio(100 * count, self.pixels) for name, count in counts.items()}
        return {"EPE": self.epe, "RMSE": rmse} | percent


def _ratio(total: float, count: int) -> float:
    return total / count if count else float("nan")


# Bands of true disparity --------------------------------------------------------------------------


def disparity_bands(
    truth: NDArray[np.floating], counted: NDArray[np.bool_]
) -> dict[str, NDArray[np.bool_]]:
    """Masks of the counted pixels in each band of `DISPARITY_RANGES`, by name; all (H, W)."""
    ranges = zip(DISPARITY_BANDS, DISPARITY_RANGES, strict=True)
    return {name: counted & (truth >= low) & (truth < high) for name, (low, high) in ranges}


# Quantiles ----------------------------------------------------------------------------------------


def absolute_errors(
    prediction: NDArray[np.floating],
    truth: NDArray[np.floating],
    counted: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Absolute errors of the counted pixels with a prediction, (N,) in pixels."""
    found = counted & np.isfinite(prediction)
    return np.abs(prediction[found].astype(np.float64) - truth[found])


def quantiles(errors: NDArray[np.floating]) -> dict[str, float]:
    """Exact median, A90, A95 and A99 of (N,) errors; NaN for no errors.

    The q-quantile is the smallest error that at least a fraction q of all errors does not exceed.
    """
    if errors.size == 0:
        return dict.fromkeys(_QUANTILES, float("nan"))
    values = np.quantile(errors, list(_QUANTILES.values()), method="inverted_cdf")
    return dict(zip(_QUANTILES, map(float, values), strict=True))


# A float32 without its lower 16 bits: 128 steps per octave.
_STEP_BITS = 16
_FLOOR, _CEILING = 2.0**-6, 2.0**12


def _code(values: NDArray[np.floating]) -> NDArray[np.int64]:
    return (values.astype(np.float32).view(np.uint32) >> _STEP_BITS).astype(np.int64)


_FIRST, _LAST = (int(code) for code in _code(np.array([_FLOOR, _CEILING])))
_BINS = _LAST - _FIRST + 2  # one below the floor, one from the ceiling on


@dataclass(frozen=True, eq=False)
class ErrorHistogram:
    """Histogram of errors; the sum of two objects gives the quantiles over both.

    There are 128 bins per octave, so that a quantile is accurate to 0.4 % (1/256) between 1/64 and
    4096 px. All smaller errors share one bin (accurate to 1/128 px), and all larger ones another.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    """Counts by bin, (bins,)."""

    @classmethod
    def measure(cls, errors: NDArray[np.floating]) -> ErrorHistogram:
        """Count absolute errors, (N,) in pixels."""
        bins = np.clip(_code(errors) - _FIRST + 1, 0, _BINS - 1)
        return cls(np.bincount(bins, minlength=_BINS))

    def __add__(self, other: ErrorHistogram) -> ErrorHistogram:
        return ErrorHistogram(self.counts + other.counts)

    def quantiles(self) -> dict[str, float]:
        """Median, A90, A95 and A99 in pixels, as in `quantiles`; NaN for no errors."""
        below = np.cumsum(self.counts)
        if below[-1] == 0:
            return dict.fromkeys(_QUANTILES, float("nan"))
        return {
            name: _bin_middle(int(np.searchsorted(below, np.ceil(share * below[-1]))))
            for name, share in _QUANTILES.items()
        }


def _bin_middle(index: int) -> float:
    if index == 0:
        return _FLOOR / 2
    codes = np.array([index, index + 1], np.uint32) + np.uint32(_FIRST - 1)
    return float((codes << _STEP_BITS).view(np.float32).astype(np.float64).mean())
