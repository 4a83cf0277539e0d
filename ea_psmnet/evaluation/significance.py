"""Whether one evaluation is better than another, or only lucky with its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.evaluation.evaluation import Evaluation
from ea_psmnet.metrics import DisparityErrors

_RESAMPLES = 10_000
_CHUNK = 500  # resamples held in memory at once
_LEVEL = (2.5, 97.5)  # percentiles: a 95 % interval

_RATIOS = {
    "EPE": ("absolute", "predicted", 1.0),
    "bad-0.5": ("over_half_px", "pixels", 100.0),
    "bad-1": ("over_1px", "pixels", 100.0),
    "bad-2": ("over_2px", "pixels", 100.0),
    "bad-3": ("over_3px", "pixels", 100.0),
    "bad-4": ("over_4px", "pixels", 100.0),
    "D1": ("outliers", "pixels", 100.0),
    "holes": ("holes", "pixels", 100.0),
}
"""Figures that are ratios of sums over images: numerator, denominator and scale."""


@dataclass(frozen=True)
class Difference:
    """A figure of two evaluations on the same images; lower is better."""

    figure: str
    before: float
    after: float
    low: float
    """Lower end of the 95 % interval of `after - before`; NaN for fewer than two images, and for
    the EPE of different numbers of predicted pixels."""
    high: float

    @property
    def change(self) -> float:
        """The difference, in the figure's unit."""
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `equal` (in every resample), or `unclear` (otherwise)."""
        if self.low == self.high == 0:
            return "equal"
        if self.high < 0:
            return "better"
        return "worse" if self.low > 0 else "unclear"


@dataclass(frozen=True)
class Comparison:
    """An evaluation compared with an earlier one."""

    label: str
    against: str
    images: int
    """Number of images that both have."""
    differences: tuple[Difference, ...]
    only_after: tuple[str, ...]
    """Names of images that the earlier evaluation lacks."""
    only_before: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an unknown interval is left out."""
        differences = [
            {name: value for name, value in asdict(each).items() if value == value}  # not NaN
            for each in self.differences
        ]
        return asdict(self) | {"differences": differences}


def compare_evaluations(after: Evaluation, before: Evaluation, *, seed: int = 0) -> Comparison:
    """Compute differences of figures with a paired bootstrap interval over images.

    Images are matched by name. Each of 10,000 resamples draws as many images as there are, with
    replacement and the same ones for both, and adds up their sums; the interval holds the middle
    95 % of the differences (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13).

    Args:
        after: The evaluation in question.
        before: The evaluation it is compared with.
        seed: Seed of the draws.

    Raises:
        ValueError: They share no image, or count different pixels in one.
    """
    new, old = ({image.name: image.errors for image in each.images} for each in (after, before))
    shared = [name for name in new if name in old]
    if not shared:
        raise ValueError(f"{after.label} and {before.label} share no image: nothing to compare")
    _check_pixels(new, old, shared)
    draws = [_sums(errors, shared) for errors in (new, old)]
    differences = []
    resampled = _resampled_changes(draws[0], draws[1], seed)
    same_holes = all(new[name].holes == old[name].holes for name in shared)
    for place, (figure, (_, counted, _)) in enumerate(_RATIOS.items()):
        comparable = len(shared) > 1 and (same_holes or counted == "pixels")
        low, high = _interval(resampled[:, place]) if comparable else (np.nan, np.nan)
        (now,), (then,) = (_ratios(sums.sum(axis=1)[None])[:, place] for sums in draws)
        differences.append(Difference(figure, float(then), float(now), float(low), float(high)))
    return Comparison(
        label=after.label,
        against=before.label,
        images=len(shared),
        differences=tuple(differences),
        only_after=tuple(name for name in new if name not in old),
        only_before=tuple(name for name in old if name not in new),
    )


def _check_pixels(
    new: Mapping[str, DisparityErrors], old: Mapping[str, DisparityErrors], names: list[str]
) -> None:
    for name in names:
        if new[name].pixels != old[name].pixels:
            raise ValueError(
                f"{name}: {new[name].pixels} pixels counted, {old[name].pixels} in the other "
                "report: other ground truth, or another --limit; figures over different pixels do "
                "not compare"
            )


_FIELDS = tuple(dict.fromkeys(name for ratio in _RATIOS.values() for name in ratio[:2]))


def _sums(errors: Mapping[str, DisparityErrors], names: list[str]) -> NDArray[np.float64]:
    """Return sums and counts (fields, images)."""
    return np.array([[getattr(errors[name], f) for name in names] for f in _FIELDS], np.float64)


def _ratios(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn sums (resamples, fields) into (resamples, figures); NaN if nothing is counted."""
    with np.errstate(invalid="ignore"):
        columns = [
            scale * sums[:, _FIELDS.index(top)] / sums[:, _FIELDS.index(bottom)]
            for top, bottom, scale in _RATIOS.values()
        ]
    return np.stack(columns, axis=1)


def _resampled_changes(
    new: NDArray[np.float64], old: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """Return after - before over resampled images, the same ones for both: (resamples, figures)."""
    rng = np.random.default_rng(seed)
    count = new.shape[1]
    shares = np.full(count, 1 / count)
    changes = []
    for _ in range(_RESAMPLES // _CHUNK):
        times = rng.multinomial(count, shares, size=_CHUNK).astype(np.float64)
        changes.append(_ratios(times @ new.T) - _ratios(times @ old.T))
    return np.concatenate(changes)


def _interval(changes: NDArray[np.float64]) -> tuple[float, float]:
    """Return the middle 95 % of the resamples that are finite."""
    known = changes[np.isfinite(changes)]
    if known.size == 0:
        return np.nan, np.nan
    low, high = np.percentile(known, _LEVEL)
    return float(low), float(high)
