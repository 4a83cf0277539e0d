"""What one prediction after the other adds to an evaluation, before it is put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.metrics import DisparityErrors, ErrorHistogram, absolute_errors, quantiles
from ea_psmnet.reports.evaluation_data import ImageErrors
from ea_psmnet.reports.protocols import Protocol, Score
from ea_psmnet.reports.regions import ALL
from ea_psmnet.sample import StereoSample

__all__ = ["ImageShare", "Measure", "Share", "ShareRecord", "add_histograms"]

Histograms = dict[str, ErrorHistogram]


@dataclass(frozen=True)
class ImageShare:
    """All that is kept of one prediction; small, so that it travels between processes."""

    index: int
    """The pair's place in the dataset."""
    image: ImageErrors
    regions: dict[str, DisparityErrors]
    scores: list[Score]
    """By every protocol."""

    def __post_init__(self) -> None:
        if ALL not in self.regions:
            raise ValueError(f"regions lacks '{ALL}'")


@dataclass(frozen=True)
class Share:
    """What a batch of pairs adds to one method's evaluation."""

    images: list[ImageShare]
    histograms: Histograms
    """Of absolute errors by region, over all pairs of the batch."""

    def to_dict(self) -> dict[str, Any]:
        """A `ShareRecord` as plain values, for JSON with NaN."""
        histograms = {name: SparseHistogram.of(each) for name, each in self.histograms.items()}
        return asdict(ShareRecord(self.images, histograms))


@dataclass(frozen=True)
class SparseHistogram:
    """The bins of a histogram that are not empty.

    Raises:
        ValueError: A bin that there is not, or no count of it.
    """

    bins: list[int]
    counts: list[int]

    def __post_init__(self) -> None:
        empty = ErrorHistogram().counts
        if len(self.bins) != len(self.counts) or min(self.counts, default=0) < 0:
            raise ValueError("counts must be one of each bin, from 0 on")
        if self.bins and not 0 <= min(self.bins) <= max(self.bins) < empty.size:
            raise ValueError(f"bins must be from 0 to {empty.size - 1}")

    @classmethod
    def of(cls, histogram: ErrorHistogram) -> SparseHistogram:
        """Of all bins."""
        places = np.flatnonzero(histogram.counts)
        return cls(places.tolist(), histogram.counts[places].tolist())

    def dense(self) -> ErrorHistogram:
        """With all bins."""
        histogram = ErrorHistogram()
        histogram.counts[self.bins] = self.counts
        return histogram


@dataclass(frozen=True)
class ShareRecord:
    """A `Share` as it is kept."""

    images: list[ImageShare]
    histograms: dict[str, SparseHistogram]

    def share(self) -> Share:
        """What it was made of."""
        return Share(self.images, {name: each.dense() for name, each in self.histograms.items()})


@dataclass(frozen=True)
class Measure:
    """What is measured of every prediction."""

    protocols: Sequence[Protocol]
    chosen: Sequence[frozenset[int]]
    """Of each protocol, the places in the dataset that count."""
    limit: float

    @classmethod
    def of(cls, protocols: Sequence[Protocol], count: int, limit: float) -> Measure:
        """For a dataset of so many pairs."""
        return cls(protocols, [protocol.chosen(count) for protocol in protocols], limit)

    def image(
        self,
        index: int,
        sample: StereoSample,
        parts: Mapping[str, NDArray[np.bool_]],
        disparity: NDArray[np.float32],
        seconds: float,
    ) -> tuple[ImageShare, Histograms]:
        """Measure one prediction.

        Args:
            index: the pair's place in the dataset.
            sample: the pair.
            parts: its `regions.regions`.
            disparity: (H, W), NaN where there is none.
            seconds: that the prediction took.
        """
        truth = sample.disparity
        sums = {name: DisparityErrors.measure(disparity, truth, m) for name, m in parts.items()}
        errors = {name: absolute_errors(disparity, truth, mask) for name, mask in parts.items()}
        image = ImageErrors(sample.name, sums[ALL], seconds, quantiles(errors[ALL]))
        scores = [
            protocol.measure(sample, disparity, self.limit)
            if index in chosen
            else Score(sample.name, dropped=f"not among the {len(chosen)} drawn")
            for protocol, chosen in zip(self.protocols, self.chosen, strict=True)
        ]
        histograms = {name: ErrorHistogram.measure(found) for name, found in errors.items()}
        return ImageShare(index, image, sums, scores), histograms


def add_histograms(parts: Sequence[Histograms]) -> Histograms:
    """By region, over all parts that have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: reduce(ErrorHistogram.__add__, (part[name] for part in parts if name in part))
        for name in names
    }
