"""Which sample comes when: a function of seed and position alone, so that any run can resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from datasets.augment import AUGMENTATIONS, Recipe, augment, pick
from ea_psmnet.losses import counted_pixels
from ea_psmnet.sample import StereoSample
from ea_psmnet.training.mixture import Order

__all__ = ["StepSampler", "StereoBatch", "TrainingSamples"]


@dataclass(frozen=True, eq=False)
class StereoBatch:
    """Samples stacked as tensors."""

    left: Tensor
    """(B, 3, H, W) uint8."""
    right: Tensor
    """(B, 3, H, W) uint8."""
    disparity: Tensor
    """(B, H, W) float32, pixels."""
    valid: Tensor
    """(B, H, W) bool."""
    names: tuple[str, ...] = ()
    """Of the samples."""

    @classmethod
    def stack(cls, samples: Sequence[StereoSample]) -> StereoBatch:
        """Stack samples of one size."""
        return _from_arrays(
            np.stack([s.left for s in samples]),
            np.stack([s.right for s in samples]),
            np.stack([s.disparity for s in samples]),
            np.stack([s.valid for s in samples]),
            tuple(s.name for s in samples),
        )

    @classmethod
    def stack_or_error(cls, samples: Sequence[StereoSample | Exception]) -> StereoBatch | Exception:
        """Stack samples, or pass on the first error that stands in one's place."""
        good = [sample for sample in samples if isinstance(sample, StereoSample)]
        errors = (sample for sample in samples if isinstance(sample, Exception))
        return next(errors, None) or cls.stack(good)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes as arrays: see `datasets.workers.loaded`."""
        images = [view.permute(0, 2, 3, 1).numpy() for view in (self.left, self.right)]
        return _from_arrays, (*images, self.disparity.numpy(), self.valid.numpy(), self.names)

    def to(self, device: torch.device) -> StereoBatch:
        """A copy on another device."""
        return replace(
            self,
            left=self.left.to(device),
            right=self.right.to(device),
            disparity=self.disparity.to(device),
            valid=self.valid.to(device),
        )

    def counted(self, max_disparity: int) -> Tensor:
        """How many pixels the loss looks at."""
        return counted_pixels(self.disparity, self.valid, max_disparity).sum()


def _from_arrays(
    left: NDArray[np.uint8],
    right: NDArray[np.uint8],
    disparity: NDArray[np.float32],
    valid: NDArray[np.bool_],
    names: tuple[str, ...],
) -> StereoBatch:
    """A batch on the memory of arrays: images (B, H, W, 3), the others (B, H, W)."""
    return StereoBatch(
        left=torch.from_numpy(left).permute(0, 3, 1, 2),
        right=torch.from_numpy(right).permute(0, 3, 1, 2),
        disparity=torch.from_numpy(disparity),
        valid=torch.from_numpy(valid),
        names=names,
    )


class TrainingSamples(Dataset[StereoSample]):
    """Position in the run to training sample, of one dataset or a mixture of several."""

    def __init__(
        self,
        sources: Sequence[Sequence[StereoSample]],
        crop: tuple[int, int],
        seed: int,
        *,
        weights: Sequence[float] = (1.0,),
        recipe: Recipe = AUGMENTATIONS["none"],
    ) -> None:
        self.sources = tuple(sources)
        self.crop = crop
        self.seed = seed
        self.recipe = recipe
        self.order = Order([len(source) for source in sources], weights, seed)

    def __getitem__(self, position: int) -> StereoSample:
        """The sample at a position counted from the start of the run, over all epochs."""
        place = self.order[position]
        return self._sample(place.source, place.sample, position)

    def check(self) -> None:
        """Make one sample of every dataset: what does not fit shows before the run starts."""
        for number in range(len(self.sources)):
            self._sample(number, 0, 0)

    def _sample(self, source: int, index: int, position: int) -> StereoSample:
        rng = np.random.default_rng([1, self.seed, position])  # another stream than the order's
        sample = pick(self.sources[source], index, self.recipe, rng)
        return augment(sample, self.crop, self.recipe, rng)


class StepSampler(Sampler[list[int]]):
    """Positions of one process's micro-batches, step by step.

    Every step takes the next `batch` positions and deals them out into micro-batches like cards. So
    these are the same however many processes share them, and what all processes hold at once is
    what one with larger micro-batches would hold: batch statistics that are shared agree, too.
    """

    def __init__(
        self, start: int, stop: int, *, batch: int, micro: int, rank: int = 0, world: int = 1
    ) -> None:
        if batch % (micro * world):
            raise ValueError(
                f"batch {batch} is not a multiple of micro-batch {micro} x {world} processes: "
                f"try --batch {-(-batch // (micro * world)) * micro * world}; "
                "a run that has begun needs another number of processes"
            )
        self.steps = range(start, stop)
        self.batch = batch
        self.accumulation = batch // (micro * world)
        """Micro-batches of a step that a process takes one after the other."""
        self.micro_batches = self.accumulation * world
        self.rank = rank

    def __iter__(self) -> Iterator[list[int]]:
        first = self.rank * self.accumulation
        for step in self.steps:
            positions = range(step * self.batch, (step + 1) * self.batch)
            for pile in range(first, first + self.accumulation):
                yield list(positions[pile :: self.micro_batches])

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation
