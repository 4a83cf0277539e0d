"""Validation while training: every image once, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.workers import ErrorsAsValues, raise_errors
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.metrics import DisparityErrors
from ea_psmnet.sample import StereoSample
from ea_psmnet.training.record import Predicted
from ea_psmnet.training.signals import ignore_signals

__all__ = ["Validation", "spread", "validate"]

_SHOWN = 4


@dataclass(frozen=True)
class Validation:
    """Errors over all images, pooled over pixels, and some predictions of this process."""

    errors: DisparityErrors
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
    errors = DisparityErrors()
    shown: list[Predicted] = []
    main = accelerator.is_main_process
    for sample in raise_errors(
        tqdm(loader, desc="validation", unit="pair", leave=False, disable=not main)
    ):
        disparity = matcher(sample.left, sample.right).disparity
        counted = sample.valid & (sample.disparity < matcher.max_disparity)
        errors += DisparityErrors.measure(disparity, sample.disparity, counted)
        if len(shown) < _SHOWN:
            shown.append((sample, disparity))
    parts = gather_object([errors])
    return Validation(sum(parts, DisparityErrors()), len(indices), shown)
