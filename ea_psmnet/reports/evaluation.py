"""Methods on a dataset: one pass, every protocol, figures that add up exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.metrics import DisparityErrors, ErrorHistogram, absolute_errors, quantiles
from ea_psmnet.reports.evaluation_data import Evaluation, ImageErrors, ProtocolResult
from ea_psmnet.reports.methods import Method, network
from ea_psmnet.reports.processes import gather, process_count, process_index
from ea_psmnet.reports.protocols import Protocol, Score
from ea_psmnet.reports.regions import ALL, NON_OCCLUDED, REGIONS, regions
from ea_psmnet.sample import StereoSample

__all__ = ["Evaluation", "Observer", "evaluate", "evaluate_methods"]

OnPrediction = Callable[[StereoSample, NDArray[np.float32]], None]
Observer = Callable[[str, int, StereoSample, NDArray[np.float32], DisparityErrors], None]
"""Called with label, place in the dataset, sample, (H, W) disparity, and its errors."""


def evaluate(
    matcher: StereoMatcher,
    dataset: Sequence[StereoSample],
    label: str,
    on_prediction: OnPrediction | None = None,
) -> Evaluation:
    """Predict every pair of a dataset and compare with its truth below the matcher's maximum.

    Args:
        matcher: makes the predictions.
        dataset: the pairs.
        label: what to call the matcher in tables.
        on_prediction: called with each sample and its (H, W) disparity, to write pictures say.
    """

    def observe(_: str, __: int, sample: StereoSample, disparity: Any, ___: Any) -> None:
        if on_prediction is not None:
            on_prediction(sample, disparity)

    methods = [network(matcher, label)]
    return evaluate_methods(methods, dataset, limit=matcher.max_disparity, observer=observe)[0]


def evaluate_methods(
    methods: Sequence[Method],
    dataset: Sequence[StereoSample],
    *,
    limit: float = 192,
    protocols: Sequence[Protocol] = (),
    batch: int = 8,
    observer: Observer | None = None,
) -> list[Evaluation]:
    """Evaluate methods on the same pairs in one pass over the dataset.

    Under torchrun the processes share the pairs. Each counts once, and what was found is put
    together in the dataset's order, so that every number of processes gives the same figures.

    Args:
        methods: what predicts; labels differ.
        dataset: the pairs, each read once.
        limit: truth from here on is not counted (`kitti` and `middlebury` count all).
        protocols: by which to measure besides.
        batch: images in a batch, over which `psmnet` and `gwcnet` average.
        observer: called with every prediction of this process, to write pictures say.

    Returns:
        An evaluation a method, complete in every process.

    Raises:
        ValueError: no pair, a batch of none, or no truth below the limit.
    """
    if len(dataset) == 0 or batch < 1 or limit <= 0:
        raise ValueError(
            f"nothing to evaluate: {len(dataset)} pairs in batches of {batch}, truth below {limit}"
        )
    tallies = [_Tally(method, protocols, len(dataset), limit) for method in methods]
    mine = range(process_index(), len(dataset), process_count())
    for index in tqdm(mine, desc="evaluate", unit="pair", disable=process_index() > 0):
        sample = dataset[index]
        parts = regions(sample, limit)
        for tally in tallies:
            disparity, errors = tally.take(index, sample, parts)
            if observer is not None:
                observer(tally.method.label, index, sample, disparity, errors)
    return [_merge(tally, limit, batch) for tally in tallies]


@dataclass(frozen=True)
class _Measured:
    """All that is kept of one prediction; small, so that it travels between processes."""

    index: int
    image: ImageErrors
    regions: dict[str, DisparityErrors]
    scores: list[Score]


class _Tally:
    """What this process has measured of one method."""

    def __init__(
        self, method: Method, protocols: Sequence[Protocol], count: int, limit: float
    ) -> None:
        self.method = method
        self.protocols = protocols
        self.measured: list[_Measured] = []
        self.histograms: dict[str, ErrorHistogram] = {}
        self._limit = limit
        self._chosen = [protocol.chosen(count) for protocol in protocols]

    def take(
        self, index: int, sample: StereoSample, parts: Mapping[str, NDArray[np.bool_]]
    ) -> tuple[NDArray[np.float32], DisparityErrors]:
        """Predict and measure one pair."""
        start = time.perf_counter()
        disparity = self.method.predict(sample)
        seconds = time.perf_counter() - start if self.method.timed else math.nan
        sums = {}
        for name, mask in parts.items():
            sums[name] = DisparityErrors.measure(disparity, sample.disparity, mask)
            found = absolute_errors(disparity, sample.disparity, mask)
            self.histograms[name] = self.histograms.get(
                name, ErrorHistogram()
            ) + ErrorHistogram.measure(found)
        exact = quantiles(absolute_errors(disparity, sample.disparity, parts[ALL]))
        image = ImageErrors(sample.name, sums[ALL], seconds, exact)
        scores = [
            protocol.measure(sample, disparity, self._limit)
            if index in chosen
            else Score(sample.name, dropped=f"not among the {len(chosen)} drawn")
            for protocol, chosen in zip(self.protocols, self._chosen, strict=True)
        ]
        self.measured.append(_Measured(index, image, sums, scores))
        return disparity, sums[ALL]


def _merge(tally: _Tally, limit: float, batch: int) -> Evaluation:
    """The evaluation of all processes' measurements, in the dataset's order."""
    measured = sorted(gather(tally.measured), key=lambda one: one.index)
    names = [name for name in REGIONS if any(name in one.regions for one in measured)]
    histograms = gather([tally.histograms])
    return Evaluation(
        label=tally.method.label,
        max_disparity=limit,
        images=tuple(one.image for one in measured),
        regions={
            name: sum(
                (one.regions[name] for one in measured if name in one.regions), DisparityErrors()
            )
            for name in names
        },
        quantiles={
            name: reduce(
                ErrorHistogram.__add__, (part[name] for part in histograms if name in part)
            ).quantiles()
            for name in names
        },
        visibility_known=sum(NON_OCCLUDED in one.regions for one in measured),
        protocols=tuple(
            _result(protocol, [one.scores[place] for one in measured], batch)
            for place, protocol in enumerate(tally.protocols)
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
