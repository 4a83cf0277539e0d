"""Quality of confidence: whether it equals the share of correct pixels, and whether it ranks them.

A reliability diagram compares confidence with the share of correct pixels, bin by bin; the expected
calibration error is the mean difference (Guo et al., "On Calibration of Modern Neural Networks",
ICML 2017, section 2). A sparsification curve is the error of the remaining pixels when the least
confident ones are removed; the oracle removes the largest errors, and the area between both curves
is the AUSE (Ilg et al., "Uncertainty Estimates and Multi-Hypotheses Networks for Optical Flow",
ECCV 2018, section 5.1). Here curves are averages over images and not divided by their first value,
so that the area has the unit of the error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.figures import COLOURS, FAINT, dress, new_figure, to_image
from ea_psmnet.inference.result import THRESHOLD

BINS = 20
"""Bins of confidence from 0 to 1, of one width."""
FRACTIONS = tuple(index / 20 for index in range(20))
"""Shares of the pixels that are removed."""

Floats = tuple[float, ...]


def sparsification(errors: NDArray[np.floating], ranks: NDArray[np.floating]) -> Floats:
    """Mean error of the pixels that remain at each of `FRACTIONS`.

    Args:
        errors: (N,), at least one.
        ranks: (N,); pixels of the lowest are removed first.
    """
    kept = np.asarray(errors, np.float64)[np.argsort(-ranks, kind="stable")]
    sums = np.cumsum(kept)
    counts = [max(1, round(kept.size * (1 - fraction))) for fraction in FRACTIONS]
    return tuple(float(sums[count - 1] / count) for count in counts)


@dataclass(frozen=True)
class ConfidenceSums:
    """Sums over images that add up: the sum of two has the figures of all images.

    Raises:
        ValueError: There are not as many values as bins or fractions.
    """

    images: int
    """Number of images with counted pixels."""
    counts: Floats
    """Number of pixels in each bin of confidence."""
    sure: Floats
    """Sum of the confidence in each bin."""
    correct: Floats
    """Number of pixels in each bin whose error is below 1 pixel."""
    epe: Floats
    """EPE of the remaining pixels at each of `FRACTIONS`, a sum over images; likewise below."""
    oracle_epe: Floats
    bad: Floats
    """Share of errors of 1 pixel and more."""
    oracle_bad: Floats

    def __post_init__(self) -> None:
        for each in fields(self)[1:]:
            expected = BINS if each.name in ("counts", "sure", "correct") else len(FRACTIONS)
            if len(getattr(self, each.name)) != expected:
                raise ValueError(f"{each.name} must have {expected} values")

    @classmethod
    def measure(
        cls,
        confidence: NDArray[np.floating],
        prediction: NDArray[np.floating],
        truth: NDArray[np.floating],
        counted: NDArray[np.bool_],
    ) -> ConfidenceSums:
        """Compare confidence with the errors of a prediction; all (H, W).

        Args:
            confidence: From 0 to 1.
            prediction: Disparity in pixels; pixels without any do not count.
            truth: Ground truth in pixels, finite where `counted`.
            counted: Mask of the pixels to compare.
        """
        found = counted & np.isfinite(prediction)
        if not found.any():
            return cls.nothing()
        sure = confidence[found].astype(np.float64)
        errors = np.abs(prediction[found].astype(np.float64) - truth[found])
        wrong = errors >= THRESHOLD
        bins = np.clip((sure * BINS).astype(np.intp), 0, BINS - 1)

        def binned(weights: NDArray[Any] | None = None) -> Floats:
            return tuple(np.bincount(bins, weights, BINS).astype(float).tolist())

        return cls(
            images=1,
            counts=binned(),
            sure=binned(sure),
            correct=binned(~wrong),
            epe=sparsification(errors, sure),
            oracle_epe=sparsification(errors, -errors),
            bad=sparsification(wrong, sure),
            oracle_bad=sparsification(wrong, -errors),
        )

    @classmethod
    def nothing(cls) -> ConfidenceSums:
        """Sums over no image."""
        bins, curve = (0.0,) * BINS, (0.0,) * len(FRACTIONS)
        return cls(0, bins, bins, bins, curve, curve, curve, curve)

    def __add__(self, other: ConfidenceSums) -> ConfidenceSums:
        images, *others = (getattr(self, each.name) for each in fields(self))
        theirs = (getattr(other, each.name) for each in fields(self)[1:])
        sums = (
            tuple(a + b for a, b in zip(*each, strict=True))
            for each in zip(others, theirs, strict=True)
        )
        return ConfidenceSums(images + other.images, *sums)

    def figures(self) -> dict[str, float]:
        """Figures by name; NaN if no pixel counts.

        Confidence, correct (the share of errors below 1 pixel), ECE and AUSE of bad-1 in percent;
        AUSE of the EPE in pixels.
        """
        pixels, sure, correct = (sum(part) for part in (self.counts, self.sure, self.correct))
        gaps = [abs(s - c) for s, c in zip(self.sure, self.correct, strict=True)]
        return {
            "confidence": _share(100 * sure, pixels),
            "correct": _share(100 * correct, pixels),
            "ECE": _share(100 * sum(gaps), pixels),
            "AUSE of bad-1": 100 * self._area(self.bad, self.oracle_bad),
            "AUSE of EPE": self._area(self.epe, self.oracle_epe),
        }

    def _area(self, curve: Floats, oracle: Floats) -> float:
        """Mean gap between two curves."""
        area = np.trapezoid(np.subtract(curve, oracle), FRACTIONS) / FRACTIONS[-1]
        return _share(float(area), self.images)


def _share(total: float, count: float) -> float:
    return total / count if count else float("nan")


def confidence_chart(methods: Mapping[str, ConfidenceSums]) -> NDArray[np.uint8]:
    """Draw reliability and sparsification of methods by label, as (h, w, 3) uint8 RGB."""
    figure = new_figure(13, 6)
    reliability, curves = figure.subplots(1, 2)
    reliability.plot([0, 1], [0, 1], color=COLOURS[-1], linestyle=":", label="calibrated")
    for (label, sums), colour in zip(methods.items(), COLOURS[1:-1] * len(methods), strict=False):
        counts = np.array(sums.counts)
        some = counts > 0
        sure, correct = (np.array(part)[some] / counts[some] for part in (sums.sure, sums.correct))
        told = sums.figures()
        ece = f"{label}: ECE {told['ECE']:.1f} %"
        reliability.plot(sure, correct, color=colour, marker="o", markersize=4, label=ece)
        shares = counts / max(1, counts.sum())
        reliability.bar((np.arange(BINS) + 0.5) / BINS, shares, 0.9 / BINS, color=colour, alpha=0.2)
        ause = f"{label}: AUSE {told['AUSE of bad-1']:.1f} %"
        removed = 100 * np.array(FRACTIONS)
        for values, line, name in ((sums.bad, "-", ause), (sums.oracle_bad, "--", None)):
            remaining = 100 * np.array(values) / max(1, sums.images)
            curves.plot(removed, remaining, color=colour, linestyle=line, label=name)
    title, y = "Reliability; bars: share of the pixels", "share of errors below 1 px"
    dress(reliability, title=title, x="confidence", y=y)
    title, x = "Sparsification; dashed: oracle", "least confident pixels removed, in percent"
    dress(curves, title=title, x=x, y="bad-1 of the others, in percent")
    for axes in (reliability, curves):
        axes.legend(frameon=False, fontsize=10)
        axes.set_facecolor("white")
        axes.grid(color=FAINT)
    figure.tight_layout()
    return to_image(figure)
