"""Predictors on a dataset: one pass, every protocol, and figures that add up exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.datasets.frames import FrameDataset
from ea_psmnet.evaluation.confidence import ConfidenceSums
from ea_psmnet.evaluation.predictors import Predictor, network
from ea_psmnet.evaluation.protocols import Protocol, Score
from ea_psmnet.evaluation.regions import ALL, NON_OCCLUDED, REGIONS, regions
from ea_psmnet.evaluation.shares import (
    ImageErrors,
    Journal,
    Measure,
    Share,
    add_histograms,
    gather,
    process_count,
    process_index,
)
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.metrics import DisparityErrors
from ea_psmnet.progress import Progress
from ea_psmnet.sample import StereoSample
from ea_psmnet.store import stamp

PROTOCOL_BATCH = 8
"""Number of images over which the published code of PSMNet and GwcNet averages first."""


@dataclass(frozen=True)
class ProtocolResult:
    """Figures of a predictor by one protocol."""

    name: str
    region: str
    figures: Mapping[str, float]
    images: int
    """Number of images used."""
    pixels: int
    """Number of pixels used."""
    dropped: Mapping[str, tuple[str, ...]]
    """Names of the images that were dropped, by the reason."""


@dataclass(frozen=True)
class Evaluation:
    """Errors of one predictor over valid pixels whose disparity is below a limit.

    Totals are sums over all pixels of all images, so large images weigh more than small ones.
    """

    label: str
    max_disparity: float
    """The limit: larger ground truth is not counted, whatever range the predictor searches."""
    images: tuple[ImageErrors, ...]
    regions: Mapping[str, DisparityErrors]
    """Errors over parts of the pixels of all images; see `regions.regions`."""
    quantiles: Mapping[str, Mapping[str, float]]
    """Median, A90, A95 and A99 of each region, accurate as `ErrorHistogram` says."""
    protocols: tuple[ProtocolResult, ...] = ()
    visibility_known: int = 0
    """Number of images whose occlusion is known; the two regions of occlusion are of these."""
    confidence: ConfidenceSums | None = None
    """Quality of the predictor's confidence over all counted pixels; None if it has none."""

    @property
    def total(self) -> DisparityErrors:
        """Errors over all counted pixels of all images."""
        return sum((image.errors for image in self.images), DisparityErrors())

    @property
    def seconds(self) -> float:
        """Mean time of a prediction, in seconds."""
        times = [image.seconds for image in self.images]
        return sum(times) / len(times) if times else math.nan

    def figures(self, region: str = ALL) -> dict[str, float]:
        """Return EPE and so on of a region, quantiles included."""
        return self.regions[region].figures() | dict(self.quantiles[region])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which `EvaluationReport.read` reads again.

        Figures that are not finite are left out. `total` and the figures of `regions` are for human
        readers; only sums and counts are read again.
        """
        sure = self.confidence
        return {
            "label": self.label,
            "max_disparity": self.max_disparity,
            "visibility_known": self.visibility_known,
            "total": {"pixels": self.total.pixels} | _finite(self.figures()),
            "confidence": sure and {"sums": asdict(sure), "figures": _finite(sure.figures())},
            "regions": {
                name: {"sums": asdict(errors), "figures": _finite(self.figures(name))}
                for name, errors in self.regions.items()
            },
            "quantiles": {name: _finite(values) for name, values in self.quantiles.items()},
            "protocols": [
                asdict(result) | {"figures": _finite(result.figures)} for result in self.protocols
            ],
            "images": [
                asdict(image)
                | {
                    "seconds": None if math.isnan(image.seconds) else image.seconds,
                    "quantiles": _finite(image.quantiles),
                }
                for image in self.images
            ],
        }


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if math.isfinite(value)}


Observer = Callable[[str, int, StereoSample, NDArray[np.float32], DisparityErrors], None]
"""Called with label, index in the dataset, sample, disparity (H, W), and its errors."""


def evaluate(matcher: StereoMatcher, dataset: Sequence[StereoSample], label: str) -> Evaluation:
    """Predict a dataset and compare with its ground truth below the matcher's maximum disparity.

    The label is the name of the matcher in tables.
    """
    predictors = [network(matcher, label)]
    return evaluate_predictors(predictors, dataset, limit=matcher.max_disparity)[0]


def evaluate_predictors(
    predictors: Sequence[Predictor],
    dataset: Sequence[StereoSample],
    *,
    limit: float = 192,
    protocols: Sequence[Protocol] = (),
    protocol_batch: int = PROTOCOL_BATCH,
    batch: int = 1,
    journal: Journal | None = None,
    observer: Observer | None = None,
) -> list[Evaluation]:
    """Evaluate predictors on the same pairs in one pass over the dataset.

    Under torchrun the processes share the batches. Every pair counts once, and results are merged
    in the dataset's order, so the figures do not depend on the number of processes.

    Args:
        predictors: Predictors with different labels.
        dataset: The pairs, each of which is read once.
        limit: Ground truth from this disparity on is not counted; `kitti` and `middlebury` count
            all of it.
        protocols: Protocols to measure by in addition.
        protocol_batch: Number of images over which `psmnet` and `gwcnet` average first.
        batch: Number of consecutive pairs that a predictor is given at once, which affects figures
            only by rounding.
        journal: Keeps measurements, including those of an evaluation that was stopped.
        observer: Called with every prediction that this process makes, for example to draw it.

    Returns:
        An evaluation for each predictor, complete in every process.

    Raises:
        ValueError: The dataset or a batch is empty, the limit is not positive, or two predictors
            have the same label.
    """
    if len(dataset) == 0 or min(batch, protocol_batch) < 1 or limit <= 0:
        raise ValueError(
            f"nothing to evaluate: {len(dataset)} pairs in batches of {batch} (protocols: "
            f"{protocol_batch}), ground truth below {limit}"
        )
    measure = Measure.of(protocols, len(dataset), limit)
    shares: dict[str, list[Share]] = {predictor.label: [] for predictor in predictors}
    if len(shares) < len(predictors):
        raise ValueError(f"{len(predictors)} predictors have the labels {', '.join(shares)}")
    count = len(dataset)
    batches = [range(first, min(first + batch, count)) for first in range(0, count, batch)]
    mine = batches[process_index() :: process_count()]
    total = sum(map(len, mine))
    with Progress(total=total, desc="evaluate", unit="pair", disable=process_index() > 0) as bar:
        for places in mine:
            depends = stamp(_files(predictors, dataset, places)) if journal else ""
            labels = list(shares)
            found = journal.read(places, labels, len(protocols), depends) if journal else None
            if found is None:
                found = _measured(predictors, dataset, places, measure, observer)
                if journal:
                    journal.write(places.start, found, depends)
            for label, kept in shares.items():
                kept.append(found[label])
            bar.update(len(places))
    return [_merge(label, kept, measure, protocol_batch) for label, kept in shares.items()]


def _files(
    predictors: Sequence[Predictor], dataset: Sequence[StereoSample], places: range
) -> Iterator[Path]:
    """Yield the files from which a batch is measured; none of samples that are not read."""
    if isinstance(dataset, FrameDataset):
        for frame in (dataset.frames[place] for place in places):
            yield from frame.files
            yield from (each.file(frame.name) for each in predictors if each.file is not None)


def _measured(
    predictors: Sequence[Predictor],
    dataset: Sequence[StereoSample],
    places: range,
    measure: Measure,
    observer: Observer | None,
) -> dict[str, Share]:
    """Predict a batch with every predictor and measure; returns the shares by label."""
    samples = [dataset[place] for place in places]
    parts = [regions(sample, measure.limit) for sample in samples]
    shares = {}
    for predictor in predictors:
        start = time.perf_counter()
        predictions = predictor.predict_all(samples)
        seconds = (time.perf_counter() - start) / len(samples) if predictor.timed else math.nan
        measured = [
            measure.image(*each, seconds)
            for each in zip(places, samples, parts, predictions, strict=True)
        ]
        share = shares[predictor.label] = Share.of(measured)
        if observer is not None:
            for image, sample, found in zip(share.images, samples, predictions, strict=True):
                observer(predictor.label, image.index, sample, found.disparity, image.image.errors)
    return shares


def _merge(
    label: str, shares: Sequence[Share], measure: Measure, protocol_batch: int
) -> Evaluation:
    """Merge the shares of all processes, in the dataset's order."""
    found = [image for share in shares for image in share.images]
    measured = sorted(gather(found), key=lambda one: one.index)
    histograms = add_histograms(gather([add_histograms([s.dense() for s in shares])]))
    names = [name for name in REGIONS if name in histograms]
    sure = [one.confidence for one in measured if one.confidence is not None]
    return Evaluation(
        label=label,
        max_disparity=measure.limit,
        images=tuple(one.image for one in measured),
        regions={
            name: sum(
                (one.regions[name] for one in measured if name in one.regions), DisparityErrors()
            )
            for name in names
        },
        quantiles={name: histograms[name].quantiles() for name in names},
        visibility_known=sum(NON_OCCLUDED in one.regions for one in measured),
        confidence=sum(sure, ConfidenceSums.nothing()) if sure else None,
        protocols=tuple(
            _result(protocol, [one.scores[place] for one in measured], protocol_batch)
            for place, protocol in enumerate(measure.protocols)
        ),
    )


def _result(protocol: Protocol, scores: Sequence[Score], batch: int) -> ProtocolResult:
    dropped: dict[str, tuple[str, ...]] = {}
    for score in scores:
        if score.dropped:
            dropped[score.dropped] = (*dropped.get(score.dropped, ()), score.name)
    used = [score for score in scores if not score.dropped]
    return ProtocolResult(
        name=protocol.name,
        region=protocol.region,
        figures=protocol.average(scores, batch),
        images=len(used),
        pixels=sum(score.errors.pixels for score in used),
        dropped=dropped,
    )
