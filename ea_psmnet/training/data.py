"""Which sample comes when: a function of seed and position alone, so that any run can resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from datasets.transforms import random_crop
from ea_psmnet.sample import StereoSample

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

    @classmethod
    def stack(cls, samples: Sequence[StereoSample]) -> StereoBatch:
        """Stack samples of one size."""

        def images(view: str) -> Tensor:
            stacked = np.stack([getattr(s, view) for s in samples])  # (B, H, W, 3)
            return torch.from_numpy(stacked).permute(0, 3, 1, 2)

        return cls(
            left=images("left"),
            right=images("right"),
            disparity=torch.from_numpy(np.stack([s.disparity for s in samples])),
            valid=torch.from_numpy(np.stack([s.valid for s in samples])),
        )

    @classmethod
    def stack_or_error(cls, samples: Sequence[StereoSample | Exception]) -> StereoBatch | Exception:
        """Stack samples, or pass on the first error that stands in one's place."""
        good = [sample for sample in samples if isinstance(sample, StereoSample)]
        errors = (sample for sample in samples if isinstance(sample, Exception))
        return next(errors, None) or cls.stack(good)

    def to(self, device: torch.device) -> StereoBatch:
        """A copy on another device."""
        return StereoBatch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


class TrainingSamples(Dataset[StereoSample]):
    """Position in the run to randomly cropped sample: each epoch in an order of its own."""

    def __init__(self, base: Sequence[StereoSample], crop: tuple[int, int], seed: int) -> None:
        self.base = base
        self.crop = crop
        self.seed = seed
        self._order: tuple[int, np.ndarray] | None = None

    def __getitem__(self, position: int) -> StereoSample:
        """The sample at a position counted from the start of the run, over all epochs."""
        epoch, place = divmod(position, len(self.base))
        sample = self.base[int(self._permutation(epoch)[place])]
        return random_crop(sample, self.crop, np.random.default_rng([1, self.seed, position]))

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([0, self.seed, epoch])  # another stream than the crops'
            self._order = (epoch, rng.permutation(len(self.base)))
        return self._order[1]


class StepSampler(Sampler[list[int]]):
    """Positions of one process's micro-batches, step by step.

    Every step takes the next `batch` positions, dealt out into micro-batches like cards, and these
    among the processes. So the micro-batches are the same however many processes share them.
    """

    def __init__(
        self, start: int, stop: int, *, batch: int, micro: int, rank: int = 0, world: int = 1
    ) -> None:
        if batch % (micro * world):
            raise ValueError(
                f"batch {batch} is not a multiple of micro-batch {micro} x {world} processes"
            )
        self.steps = range(start, stop)
        self.batch, self.micro = batch, micro
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            positions = range(step * self.batch, (step + 1) * self.batch)
            piles = self.batch // self.micro
            for pile in range(self.rank, piles, self.world):
                yield list(positions[pile::piles])

    def __len__(self) -> int:
        return len(self.steps) * self.batch // (self.micro * self.world)
