"""Validation while training: every image once, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from tqdm import tqdm

from datasets.workers import loaded
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.metrics import DISPARITY_BANDS, DisparityErrors, disparity_bands
from ea_psmnet.sample import StereoSample
from ea_psmnet.training.signals import StopRequest

__all__ = ["Predicted", "Validation", "spread", "validate"]

_SHOWN = 4
_ALL = "all"


class Predicted(NamedTuple):
    """A pair, its predicted disparity, (H, W) in pixels, and the error of the counted pixels.

    Pixels that do not count are unknown in it.
    """

    sample: StereoSample
    disparity: NDArray[np.float32]
    epe: float


@dataclass(frozen=True)
class Validation:
    """Errors over all images, pooled over pixels, and some predictions of this process.

    The same images are shown at every validation.
    """

    errors: DisparityErrors
    by_range: dict[str, DisparityErrors]
    """By the name of the band of true disparity."""
    images: int
    shown: list[Predicted]


def spread(total: int, wanted: int | None) -> list[int]:
    """Numbers of as many images as wanted, evenly over a dataset; None wants all."""
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
    """Predict whole images, dealt out among the processes, and add up their errors.

    Processes meet once, at the end, so that it does not matter who has how many images.

    Args:
        matcher: the network to validate, the same in all processes.
        dataset: the pairs.
        indices: of those to predict.
        accelerator: knows the processes.
        workers: processes that load images ahead.
        stop: a signal that comes to it lets this process leave out the images to come.

    Returns:
        What came of it; None if it was cut off in any process.

    Raises:
        OSError: an image cannot be read, or a process that loads them has died.
        ValueError: a pair does not suit the network; the message says why.
    """
    own = indices[accelerator.process_index :: accelerator.num_processes]
    errors = _added([])
    shown, to_show = [], spread(len(own), _SHOWN)
    stop = stop or StopRequest()
    hidden = not accelerator.is_main_process
    with (
        loaded(dataset, min(workers, len(own)), sampler=own, batch_size=None) as samples,
        tqdm(total=len(own), desc="validation", unit="pair", leave=False, disable=hidden) as bar,
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
    """A sample without the truth beyond the limit, which would stretch a picture's colours."""
    counted = sample.counted(limit)
    known = np.where(counted, sample.disparity, np.float32(0))
    return replace(sample, disparity=known, valid=counted)


def _measured(
    sample: StereoSample, disparity: NDArray[np.float32], limit: int
) -> dict[str, DisparityErrors]:
    """Errors of all counted pixels and of each band of true disparity."""
    counted = sample.counted(limit)
    parts = {_ALL: counted} | disparity_bands(sample.disparity, counted)
    return {
        name: DisparityErrors.measure(disparity, sample.disparity, part)
        for name, part in parts.items()
    }


def _added(parts: Iterable[Mapping[str, DisparityErrors]]) -> dict[str, DisparityErrors]:
    """Sums over parts, or over no part."""
    known = list(parts)
    names = (_ALL, *DISPARITY_BANDS)
    return {name: sum((part[name] for part in known), DisparityErrors()) for name in names}
