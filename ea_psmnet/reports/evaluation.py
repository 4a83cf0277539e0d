"""Methods on a dataset: one pass, every protocol, figures that add up exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.metrics import DisparityErrors
from ea_psmnet.reports.evaluation_data import Evaluation, ProtocolResult
from ea_psmnet.reports.evaluation_journal import Journal
from ea_psmnet.reports.evaluation_share import Measure, Share, add_histograms
from ea_psmnet.reports.methods import Method, network
from ea_psmnet.reports.processes import gather, process_count, process_index
from ea_psmnet.reports.protocols import Protocol, Score
from ea_psmnet.reports.regions import NON_OCCLUDED, REGIONS, regions
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
    protocol_batch: int = 8,
    batch: int = 1,
    journal: Journal | None = None,
    observer: Observer | None = None,
) -> list[Evaluation]:
    """Evaluate methods on the same pairs in one pass over the dataset.

    Under torchrun the processes share the batches. Each pair counts once, and what was found is put
    together in the dataset's order, so that every number of processes gives the same figures.

    Args:
        methods: what predicts; labels differ.
        dataset: the pairs, each read once.
        limit: truth from here on is not counted (`kitti` and `middlebury` count all).
        protocols: by which to measure besides.
        protocol_batch: images over which `psmnet` and `gwcnet` average before they average again.
        batch: pairs in a row that a method is given at once; the figures do not depend on it, but
            for rounding.
        journal: keeps what is measured, and tells what was before.
        observer: called with every prediction made by this process, to write pictures say.

    Returns:
        An evaluation a method, complete in every process.

    Raises:
        ValueError: no pair, a batch of none, or no truth below the limit.
    """
    if len(dataset) == 0 or min(batch, protocol_batch) < 1 or limit <= 0:
        raise ValueError(
            f"nothing to evaluate: {len(dataset)} pairs in batches of {batch} (protocols: "
            f"{protocol_batch}), truth below {limit}"
        )
    measure = Measure.of(protocols, len(dataset), limit)
    shares: dict[str, list[Share]] = {method.label: [] for method in methods}
    count = len(dataset)
    batches = [range(first, min(first + batch, count)) for first in range(0, count, batch)]
    mine = batches[process_index() :: process_count()]
    total = sum(map(len, mine))
    with tqdm(total=total, desc="evaluate", unit="pair", disable=process_index() > 0) as bar:
        for places in mine:
            found = journal.read(places, list(shares), len(protocols)) if journal else None
            if found is None:
                found = _measured(methods, dataset, places, measure, observer)
                if journal:
                    journal.write(places.start, found)
            for label, kept in shares.items():
                kept.append(found[label])
            bar.update(len(places))
    return [_merge(label, kept, measure, protocol_batch) for label, kept in shares.items()]


def _measured(
    methods: Sequence[Method],
    dataset: Sequence[StereoSample],
    places: range,
    measure: Measure,
    observer: Observer | None,
) -> dict[str, Share]:
    """Predict and measure a batch by every method; by label."""
    samples = [dataset[place] for place in places]
    parts = [regions(sample, measure.limit) for sample in samples]
    shares = {}
    for method in methods:
        start = time.perf_counter()
        disparities = method.predict_all(samples)
        seconds = (time.perf_counter() - start) / len(samples) if method.timed else math.nan
        measured = [
            measure.image(*each, seconds)
            for each in zip(places, samples, parts, disparities, strict=True)
        ]
        images = [image for image, _ in measured]
        histograms = add_histograms([part for _, part in measured])
        shares[method.label] = Share(images, histograms)
        if observer is not None:
            for image, sample, disparity in zip(images, samples, disparities, strict=True):
                observer(method.label, image.index, sample, disparity, image.image.errors)
    return shares


def _merge(
    label: str, shares: Sequence[Share], measure: Measure, protocol_batch: int
) -> Evaluation:
    """The evaluation of all processes' shares, in the dataset's order."""
    found = [image for share in shares for image in share.images]
    measured = sorted(gather(found), key=lambda one: one.index)
    histograms = add_histograms(gather([add_histograms([s.histograms for s in shares])]))
    names = [name for name in REGIONS if name in histograms]
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
