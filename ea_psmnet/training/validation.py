"""Validation while training: every image once, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.workers import ErrorsAsValues, raise_errors
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.metrics import DISPARITY_BANDS, DisparityErrors, disparity_bands
from ea_psmnet.sample import StereoSample
from ea_psmnet.training.signals import ignore_signals

__all__ = ["Predicted", "Validation", "spread", "validate"]

_SHOWN = 4
_ALL = "all"


class Predicted(NamedTuple):
    """A pair, its predicted disparity, (H, W) in pixels, and the error of the counted pixels."""

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
) -> Validation:
    """Predict whole images, dealt out among the processes, and add up their errors.

    Processes meet once, at the end, so that it does not matter who has how many images.

    Args:
        matcher: the network to validate, the same in all processes.
        dataset: the pairs.
        indices: of those to predict.
        accelerator: knows the processes.
        workers: processes that load images ahead.

    Raises:
        OSError: an image cannot be read.
        ValueError: a pair does not suit the network; the message says why.
    """
    own = indices[accelerator.process_index :: accelerator.num_processes]
    loader = DataLoader(
        ErrorsAsValues(dataset),
        sampler=own,
        batch_size=None,
        num_workers=min(workers, len(own)),
        worker_init_fn=ignore_signals,
    )
    errors = _added([])
    shown, to_show = [], spread(len(own), _SHOWN)
    main = accelerator.is_main_process
    progress = tqdm(loader, desc="validation", unit="pair", leave=False, disable=not main)
    with closing(raise_errors(progress)) as samples:
        for number, sample in enumerate(samples):
            disparity = matcher(sample.left, sample.right).disparity
            measured = _measured(sample, disparity, matcher.max_disparity)
            errors = _added([errors, measured])
            if number in to_show:
                shown.append(Predicted(sample, disparity, measured[_ALL].epe))
    by_range = _added(gather_object([errors]))
    return Validation(by_range.pop(_ALL), by_range, len(indices), shown)


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
