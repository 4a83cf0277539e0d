"""Protocols of research communities, whose published figures are not comparable.

Each protocol chooses the pixels of an image, drops images, and averages. The rules are those of the
code that each community publishes; where this program must differ, the rule says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.evaluation.regions import ALL, NON_OCCLUDED
from ea_psmnet.inference.baselines import fill_background
from ea_psmnet.metrics import DisparityErrors, absolute_errors, quantiles
from ea_psmnet.sample import StereoSample
from ea_psmnet.tables import check_choice

Disparity = NDArray[np.floating]
Figures = dict[str, float]


@dataclass(frozen=True)
class Score:
    """Errors of one image by a protocol."""

    name: str
    errors: DisparityErrors = field(default_factory=DisparityErrors)
    quantiles: Mapping[str, float] = field(default_factory=dict)
    dropped: str = ""
    """Why the image does not count; empty if it does."""

    def figures(self) -> Figures:
        """Return the figures of this image alone."""
        return self.errors.figures() | dict(self.quantiles)


Measure = Callable[[StereoSample, Disparity, float], Score]


@dataclass(frozen=True)
class Protocol:
    """A way to measure errors on one set of pixels."""

    name: str
    region: str
    """`ALL` or `NON_OCCLUDED`."""
    rule: str
    """Description of what is counted and averaged, and the source, for the report."""
    measure: Measure
    """Scores an image, given sample, disparity and limit of the ground truth."""
    average: Callable[[Sequence[Score], int], Figures]
    """Averages the scores of all images, in order, as published; also takes the batch size."""
    chosen: Callable[[int], frozenset[int]] = lambda count: frozenset(range(count))
    """Returns the indices of the images that count, given their number."""


def find_protocols(names: Sequence[str]) -> list[Protocol]:
    """Return the protocols of these names in their fixed order; all, if no name is given.

    Raises:
        ValueError: A name is unknown; the message lists the protocols.
    """
    known = dict.fromkeys(protocol.name for protocol in PROTOCOLS)
    for name in names:
        check_choice("protocol", name, known)
    return [protocol for protocol in PROTOCOLS if not names or protocol.name in names]


# Pixels -------------------------------------------------------------------------------------------

_NO_PIXEL = "no counted pixel"
_NO_MASK = "visibility in the right image not known"


def _score(sample: StereoSample, disparity: Disparity, counted: NDArray[np.bool_]) -> Score:
    errors = DisparityErrors.measure(disparity, sample.disparity, counted)
    return Score(sample.name, errors, dropped="" if errors.pixels else _NO_PIXEL)


def _below(sample: StereoSample, disparity: Disparity, limit: float) -> Score:
    return _score(sample, disparity, sample.counted(limit))


def _magnitude_below(sample: StereoSample, disparity: Disparity, limit: float) -> Score:
    return _score(sample, disparity, sample.valid & (np.abs(sample.disparity) < limit))


_GWCNET_CROP = (512, 960)


def _positive_below(sample: StereoSample, disparity: Disparity, limit: float) -> Score:
    inside = np.zeros_like(sample.valid)
    inside[-_GWCNET_CROP[0] :, -_GWCNET_CROP[1] :] = True
    positive = inside & sample.valid & (sample.disparity > 0)
    counted = positive & (sample.disparity < limit)
    if np.count_nonzero(counted) < 0.1 * np.count_nonzero(positive):
        return Score(sample.name, dropped=f"under 10 % of the valid pixels lie below {limit:g}")
    return _score(sample, disparity, counted)


def _kitti(sample: StereoSample, disparity: Disparity, _: float) -> Score:
    return _score(sample, fill_background(disparity), sample.valid & (sample.disparity > 0))


def _middlebury(sample: StereoSample, disparity: Disparity, _: float) -> Score:
    clipped = np.where(np.isfinite(disparity), np.maximum(disparity, 0), np.nan)
    errors = absolute_errors(clipped, sample.disparity, sample.valid)
    return replace(_score(sample, clipped, sample.valid), quantiles=quantiles(errors))


def _visible(measure: Measure) -> Measure:
    """Measure only the pixels that are visible in the right image."""

    def measured(sample: StereoSample, disparity: Disparity, limit: float) -> Score:
        if (visible := sample.masks.get("nonocc")) is None:
            return Score(sample.name, dropped=_NO_MASK)
        return measure(replace(sample, valid=sample.valid & visible), disparity, limit)

    return measured


# Averages -----------------------------------------------------------------------------------------


def _used(scores: Sequence[Score]) -> list[Score]:
    return [score for score in scores if not score.dropped]


def _pool(scores: Sequence[Score]) -> DisparityErrors:
    return sum((score.errors for score in scores), DisparityErrors())


def _mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    return float(np.average(values, weights=weights)) if len(values) else float("nan")


def _image_means(scores: Sequence[Score], *names: str) -> Figures:
    figures = [score.figures() for score in _used(scores)]
    return {name: _mean([each[name] for each in figures]) for name in names}


def _batches(scores: Sequence[Score], size: int) -> Iterator[Sequence[Score]]:
    for start in range(0, len(scores), size):
        yield scores[start : start + size]


def _all_pixels(scores: Sequence[Score], _: int) -> Figures:
    return _pool(scores).figures()


def _mean_of_batches(scores: Sequence[Score], size: int) -> Figures:
    pooled = [_pool(batch) for batch in _batches(scores, size)]
    return {"EPE": _mean([errors.epe if errors.pixels else 0.0 for errors in pooled])}


def _mean_of_batch_means(scores: Sequence[Score], size: int) -> Figures:
    names = ("EPE", "bad-1", "bad-2", "bad-3", "D1")
    nothing = dict.fromkeys(names, 0.0)
    batches = [
        _image_means(batch, *names) if _used(batch) else nothing for batch in _batches(scores, size)
    ]
    return {name: _mean([batch[name] for batch in batches]) for name in names}


def _raft(scores: Sequence[Score], _: int) -> Figures:
    return _image_means(scores, "EPE") | {"bad-1": _pool(_used(scores)).figures()["bad-1"]}


def _kitti_average(scores: Sequence[Score], _: int) -> Figures:
    return _image_means(scores, "EPE", "bad-3") | {"D1": _pool(scores).figures()["D1"]}


_HALF_WEIGHT = frozenset({"PianoL", "Playroom", "Playtable", "Shelves", "Vintage"})
"""The training pairs of version 3 that have half the weight in the average. Checked against an
independent reimplementation: `stereomideval.dataset` of stereo-mideval 1.0.28 (PyPI)."""


def _middlebury_average(scores: Sequence[Score], _: int) -> Figures:
    names = ("EPE", "RMSE", "bad-0.5", "bad-1", "bad-2", "bad-4", "median", "A90", "A95", "A99")
    used = _used(scores)
    weights = [0.5 if _HALF_WEIGHT & set(PurePosixPath(s.name).parts) else 1.0 for s in used]
    figures = [score.figures() for score in used]
    return {name: _mean([each[name] for each in figures], weights) for name in names}


_RAFT_IMAGES = 400


def _raft_choice(count: int) -> frozenset[int]:
    if count <= _RAFT_IMAGES:
        return frozenset(range(count))
    # The legacy generator draws the images of the published code.
    order = np.random.RandomState(1000).permutation(count)
    return frozenset(order[:_RAFT_IMAGES].tolist())


# The table ----------------------------------------------------------------------------------------

_KITTI_RULE = (
    "valid pixels with positive ground truth of any disparity, after holes are filled with the "
    "background; D1 over all pixels of all images (2015); EPE and bad-3 of each image, then their "
    "mean (2012's Avg and Out). Source: development kits of KITTI 2012 and 2015"
)
_MIDDLEBURY_RULE = (
    "every valid pixel; negative predictions count as 0 (the upper bound, a scene's number of "
    "disparities, is not known here and not applied); figures of each image, then their mean with "
    "half the weight for PianoL, Playroom, Playtable, Shelves and Vintage; a hole is a bad pixel, "
    "and not counted in the other figures. Source: vision.middlebury.edu/stereo/eval3 (version 3)"
)

PROTOCOLS = (
    Protocol(
        "psmnet",
        ALL,
        "ground truth below the limit, zero included (negative values too, but the readers here "
        "treat them as unknown, as they are wrong); mean over the pixels of a batch, then over "
        "batches; a batch without a pixel scores 0. Source: main.py of PSMNet, batches of 8; "
        "batches follow the dataset's order, there that of the directory",
        _below,
        _mean_of_batches,
    ),
    Protocol(
        "gwcnet",
        ALL,
        "the lower right 960 x 512 pixels, positive ground truth below the limit; an image is "
        "dropped if under 10 % of its positive ground truth lies below the limit; mean over the "
        "images of a batch, then over batches; a batch without an image scores 0. Here the network "
        "is given the whole image, there only the crop. Source: metrics.py and "
        "sceneflow_dataset.py of GwcNet (also ACVNet), batches of 8",
        _positive_below,
        _mean_of_batch_means,
    ),
    Protocol(
        "raft",
        ALL,
        "magnitude of the ground truth below the limit; EPE of each image, then their mean; bad-1, "
        "there called D1, over all pixels; of more than 400 images the 400 that NumPy's seed 1000 "
        "draws (a version of RAFT-Stereo lists 400 files instead); an image without a pixel is "
        "dropped (there it makes the mean NaN). Source: evaluate_stereo.py of RAFT-Stereo",
        _magnitude_below,
        _raft,
        _raft_choice,
    ),
    Protocol(
        "pooled",
        ALL,
        "ground truth below the limit; every pixel of every image counts once",
        _below,
        _all_pixels,
    ),
    Protocol("kitti", ALL, _KITTI_RULE, _kitti, _kitti_average),
    Protocol("kitti", NON_OCCLUDED, _KITTI_RULE, _visible(_kitti), _kitti_average),
    Protocol("middlebury", ALL, _MIDDLEBURY_RULE, _middlebury, _middlebury_average),
    Protocol(
        "middlebury", NON_OCCLUDED, _MIDDLEBURY_RULE, _visible(_middlebury), _middlebury_average
    ),
)
"""All protocols, in the order of reports."""
