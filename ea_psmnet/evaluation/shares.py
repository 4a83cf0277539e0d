"""Parts of an evaluation: measured batch by batch, kept on disk, gathered from processes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.evaluation.confidence import ConfidenceSums
from ea_psmnet.evaluation.protocols import Protocol, Score
from ea_psmnet.evaluation.regions import ALL
from ea_psmnet.inference.result import StereoResult
from ea_psmnet.machine import leave_group_at_exit
from ea_psmnet.metrics import DisparityErrors, ErrorHistogram, absolute_errors, quantiles
from ea_psmnet.sample import StereoSample
from ea_psmnet.store import Store


@dataclass(frozen=True)
class ImageErrors:
    """Errors of one pair over all counted pixels."""

    name: str
    errors: DisparityErrors
    seconds: float
    """Time of the prediction alone; NaN if it was not made here."""
    quantiles: Mapping[str, float] = field(default_factory=dict)
    """Exact median, A90, A95 and A99."""

    def figures(self) -> dict[str, float]:
        """Return EPE and so on, quantiles included."""
        return self.errors.figures() | dict(self.quantiles)


Histograms = dict[str, ErrorHistogram]


@dataclass(frozen=True)
class ImageShare:
    """Measurements of one prediction; small enough to send between processes."""

    index: int
    """Index of the pair in the dataset."""
    image: ImageErrors
    regions: dict[str, DisparityErrors]
    scores: list[Score]
    """One for every protocol."""
    confidence: ConfidenceSums | None = None
    """None if the predictor has no confidence."""

    def __post_init__(self) -> None:
        if ALL not in self.regions:
            raise ValueError(f"regions lacks '{ALL}'")


@dataclass(frozen=True)
class SparseHistogram:
    """The bins of a histogram that are not empty.

    Raises:
        ValueError: A bin does not exist, or a count is missing or negative.
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
        """Leave out the empty bins of a histogram."""
        places = np.flatnonzero(histogram.counts)
        return cls(places.tolist(), histogram.counts[places].tolist())

    def dense(self) -> ErrorHistogram:
        """The histogram with all bins."""
        histogram = ErrorHistogram()
        histogram.counts[self.bins] = self.counts
        return histogram


@dataclass(frozen=True)
class Share:
    """Measurements of a batch of pairs by one predictor, as a journal keeps them."""

    images: list[ImageShare]
    histograms: dict[str, SparseHistogram]
    """Histograms of absolute errors by region, over all pairs of the batch."""

    @classmethod
    def of(cls, measured: Sequence[tuple[ImageShare, Histograms]]) -> Share:
        """Join the measurements of single predictions."""
        histograms = add_histograms([each for _, each in measured])
        sparse = {name: SparseHistogram.of(each) for name, each in histograms.items()}
        return cls([image for image, _ in measured], sparse)

    def dense(self) -> Histograms:
        """The histograms with all bins."""
        return {name: each.dense() for name, each in self.histograms.items()}


@dataclass(frozen=True)
class Measure:
    """Measures predictions."""

    protocols: Sequence[Protocol]
    chosen: Sequence[frozenset[int]]
    """Indices of the pairs that count, for each protocol."""
    limit: float

    @classmethod
    def of(cls, protocols: Sequence[Protocol], count: int, limit: float) -> Measure:
        """Prepare for a dataset of `count` pairs."""
        return cls(protocols, [protocol.chosen(count) for protocol in protocols], limit)

    def image(
        self,
        index: int,
        sample: StereoSample,
        parts: Mapping[str, NDArray[np.bool_]],
        prediction: StereoResult,
        seconds: float,
    ) -> tuple[ImageShare, Histograms]:
        """Measure the prediction of the pair at an index of the dataset.

        `parts` are the masks of `regions.regions`, `seconds` the time that the prediction took.
        """
        disparity, ground_truth = prediction.disparity, sample.disparity
        sums = {
            name: DisparityErrors.measure(disparity, ground_truth, mask)
            for name, mask in parts.items()
        }
        errors = {
            name: absolute_errors(disparity, ground_truth, mask) for name, mask in parts.items()
        }
        image = ImageErrors(sample.name, sums[ALL], seconds, quantiles(errors[ALL]))
        scores = [
            protocol.measure(sample, disparity, self.limit)
            if index in chosen
            else Score(sample.name, dropped=f"not among the {len(chosen)} drawn")
            for protocol, chosen in zip(self.protocols, self.chosen, strict=True)
        ]
        histograms = {name: ErrorHistogram.measure(found) for name, found in errors.items()}
        confidence = (
            None
            if prediction.confidence is None
            else ConfidenceSums.measure(prediction.confidence, disparity, ground_truth, parts[ALL])
        )
        return ImageShare(index, image, sums, scores, confidence), histograms


def add_histograms(parts: Sequence[Histograms]) -> Histograms:
    """Add histograms of each region, over all parts that have the region."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: reduce(ErrorHistogram.__add__, (part[name] for part in parts if name in part))
        for name in names
    }


# An evaluation that was stopped -------------------------------------------------------------------


class Journal:
    """Measurements of an unfinished evaluation: a `Store` with a record for every batch of pairs.

    Whichever process has a batch to measure looks here first, so an evaluation goes on with any
    number of processes.

    Args:
        folder: The folder; made with the first measurement.
        settings: Everything that all measurements depend on, by name.

    Raises:
        ValueError: The folder holds measurements of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self._store = Store(folder, settings)

    def read(
        self, places: range, labels: Sequence[str], scores: int, depends: str = ""
    ) -> dict[str, Share] | None:
        """Read the measurements of a batch, by predictor, or return None if there are none.

        Args:
            places: Indices of the batch's pairs in the dataset.
            labels: Labels of the predictors.
            scores: Number of scores of each pair, one for every protocol.
            depends: `stamp` of the files from which they were measured.

        Raises:
            ValueError: The file is damaged.
        """
        name = _file_name(places.start, depends)
        remedy = "damaged: delete it, and its pairs are measured again"
        found = self._store.read(name, dict[str, Share], remedy)
        if found is None:
            return None
        expected = {label: [(place, scores) for place in places] for label in labels}
        if expected != {
            label: [(image.index, len(image.scores)) for image in record.images]
            for label, record in found.items()
        }:
            path = self._store.folder / name
            raise ValueError(f"{path}: has other methods, pairs or scores; {remedy}")
        return found

    def write(self, first: int, shares: Mapping[str, Share], depends: str = "") -> None:
        """Keep the measurements of the batch that begins at an index."""
        record = {label: asdict(share) for label, share in shares.items()}
        self._store.write(_file_name(first, depends), record)

    def clear(self) -> None:
        """Delete all measurements."""
        self._store.clear()


def _file_name(first: int, depends: str) -> str:
    return f"{first:06}{depends}.json.gz"


# Processes that share the work --------------------------------------------------------------------


T = TypeVar("T")


def process_index() -> int:
    """Return the index of this process; 0 if it runs alone."""
    return int(os.environ.get("RANK", "0")) if process_count() > 1 else 0


def process_count() -> int:
    """Return the number of processes of this launch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Join the processes that torchrun has started and take this process's GPU, if there is one.

    It must be called before models are loaded, and does nothing in a process that runs alone.
    """
    if process_count() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
        leave_group_at_exit()


def gather(values: list[T]) -> list[T]:
    """Return the values of all processes, in the order of the processes, to every process."""
    if process_count() == 1:
        return values
    from accelerate.utils import gather_object

    join()
    return gather_object(values)
