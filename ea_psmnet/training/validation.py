"""Validation during training: every image once, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray

from ea_psmnet.datasets.workers import loaded
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.metrics import DISPARITY_BANDS, DisparityErrors, disparity_bands
from ea_psmnet.progress import Progress
from ea_psmnet.sample import StereoSample
from ea_psmnet.training.processes import StopRequest

_SHOWN = 4
_ALL = "all"


class Predicted(NamedTuple):
    """A pair, its predicted disparity, (H, W) in pixels, and the EPE of the counted pixels.

    Other pixels of the pair are marked as invalid.
    """

    sample: StereoSample
    disparity: NDArray[np.float32]
    epe: float


@dataclass(frozen=True)
class Validation:
    """Errors over all images, pooled over pixels, and some predictions of this process.

    Every validation shows the same images.
    """

    errors: DisparityErrors
    by_range: dict[str, DisparityErrors]
    """Errors by band of true disparity."""
    images: int
    shown: list[Predicted]


def spread(total: int, wanted: int | None) -> list[int]:
    """Indices of `wanted` images, evenly spread over `total`; all if `wanted` is None."""
    count = total if wanted is None else min(wanted, total)
    return [index * total // count for index in range(count)]


def validate(
    matcher: StereoMatcher,
    dataset: Sequence[StereoSample],
    indices: Sequence[int],
    accelerator: Accelerator,
    workers: int = 0,
    stop: StopRequest | None = None,
) -> Validation | None:
    """Predict whole images, distributed over the processes, and add up their errors.

    Processes communicate only at the end, so that they may have different numbers of images.

    Args:
        matcher: Network to validate, the same in all processes.
        dataset: Pairs with ground truth.
        indices: Indices of the pairs to predict.
        accelerator: Accelerator of the run.
        workers: Number of data workers.
        stop: After a signal to it, this process skips its remaining images.

    Returns:
        The errors; None if any process skipped images.

    Raises:
        OSError: An image cannot be read, or a data worker died.
        ValueError: A pair does not suit the network.
    """
    own = indices[accelerator.process_index :: accelerator.num_processes]
    errors = _added([])
    shown, to_show = [], spread(len(own), _SHOWN)
    stop = stop or StopRequest()
    hidden = not accelerator.is_main_process
    with (
        loaded(dataset, min(workers, len(own)), sampler=own, batch_size=None) as samples,
        Progress(
            total=len(own), desc="validation", unit="pair", leave=False, disable=hidden
        ) as bar,
    ):
        for number, sample in enumerate(stop.until_signal(samples)):
            disparity = matcher(sample.left, sample.right).disparity
            measured = _measured(sample, disparity, matcher.max_disparity)
            errors = _added([errors, measured])
            if number in to_show:
                counted = _only_counted(sample, matcher.max_disparity)
                shown.append(Predicted(counted, disparity, measured[_ALL].epe))
            bar.update()
    if any(gather_object([stop.number > 0])):
        return None
    by_range = _added(gather_object([errors]))
    return Validation(by_range.pop(_ALL), by_range, len(indices), shown)


def _only_counted(sample: StereoSample, limit: int) -> StereoSample:
    """Invalidate ground truth beyond the limit, which would stretch the colours of a picture."""
    counted = sample.counted(limit)
    known = np.where(counted, sample.disparity, np.float32(0))
    return replace(sample, disparity=known, valid=counted)


def _measured(
    sample: StereoSample, disparity: NDArray[np.float32], limit: int
) -> dict[str, DisparityErrors]:
    """Errors of all counted pixels, and by band of true disparity."""
    counted = sample.counted(limit)
    parts = {_ALL: counted} | disparity_bands(sample.disparity, counted)
    return {
        name: DisparityErrors.measure(disparity, sample.disparity, part)
        for name, part in parts.items()
    }


def _added(parts: Iterable[Mapping[str, DisparityErrors]]) -> dict[str, DisparityErrors]:
    """Add up errors; zeros if there are none."""
    known = list(parts)
    names = (_ALL, *DISPARITY_BANDS)
    return {name: sum((part[name] for part in known), DisparityErrors()) for name in names}
