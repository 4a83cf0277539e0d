"""Training and validation data: datasets, sampling order, batches.

The sample at a position of the run depends only on the seed and the position, so that a run can
resume anywhere and any number of processes draws the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ea_psmnet.datasets.augment import AUGMENTATIONS, Recipe, augment, pick
from ea_psmnet.datasets.builder import (
    build_dataset,
    detect_dataset,
    has_passes,
    measuring_split,
)
from ea_psmnet.datasets.names import Split
from ea_psmnet.losses import counted_pixels
from ea_psmnet.sample import StereoSample
from ea_psmnet.training.config import TrainingConfig


@dataclass(frozen=True, eq=False)
class StereoBatch:
    """A batch of samples as tensors."""

    left: Tensor
    """(B, 3, H, W) uint8."""
    right: Tensor
    """(B, 3, H, W) uint8."""
    disparity: Tensor
    """(B, H, W) float32, pixels."""
    valid: Tensor
    """(B, H, W) bool."""
    names: tuple[str, ...] = ()
    """Names of the samples."""

    @classmethod
    def stack(cls, samples: Sequence[StereoSample]) -> StereoBatch:
        """Stack samples of equal size."""
        left, right, disparity, valid = (
            np.stack([getattr(sample, name) for sample in samples])
            for name in ("left", "right", "disparity", "valid")
        )
        return _from_arrays(left, right, disparity, valid, tuple(s.name for s in samples))

    @classmethod
    def stack_or_error(cls, samples: Sequence[StereoSample | Exception]) -> StereoBatch | Exception:
        """Stack samples, or return the first error among them."""
        good = [sample for sample in samples if isinstance(sample, StereoSample)]
        errors = (sample for sample in samples if isinstance(sample, Exception))
        return next(errors, None) or cls.stack(good)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as arrays, see `ea_psmnet.datasets.workers.loaded`."""
        images = [view.permute(0, 2, 3, 1).numpy() for view in (self.left, self.right)]
        return _from_arrays, (*images, self.disparity.numpy(), self.valid.numpy(), self.names)

    def to(self, device: torch.device) -> StereoBatch:
        """Copy to a device."""
        parts = (self.left, self.right, self.disparity, self.valid)
        left, right, disparity, valid = (part.to(device) for part in parts)
        return StereoBatch(left, right, disparity, valid, self.names)

    def counted(self, max_disparity: int) -> Tensor:
        """Number of pixels that count in the loss."""
        return counted_pixels(self.disparity, self.valid, max_disparity).sum()


def _from_arrays(
    left: NDArray[np.uint8],
    right: NDArray[np.uint8],
    disparity: NDArray[np.float32],
    valid: NDArray[np.bool_],
    names: tuple[str, ...],
) -> StereoBatch:
    """Create a batch that shares memory with arrays: images (B, H, W, 3), others (B, H, W)."""
    return StereoBatch(
        left=torch.from_numpy(left).permute(0, 3, 1, 2),
        right=torch.from_numpy(right).permute(0, 3, 1, 2),
        disparity=torch.from_numpy(disparity),
        valid=torch.from_numpy(valid),
        names=names,
    )


class TrainingSamples(Dataset[StereoSample]):
    """Training samples by their position in the run, from one dataset or a mixture of several."""

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
        """The sample at a position, counted from the start of the run over all epochs."""
        place = self.order[position]
        return self._sample(place.source, place.sample, position)

    def check(self) -> None:
        """Load one sample of each dataset, so that errors show before the run starts."""
        for number in range(len(self.sources)):
            self._sample(number, 0, 0)

    def _sample(self, source: int, index: int, position: int) -> StereoSample:
        rng = np.random.default_rng([1, self.seed, position])  # not the order's stream
        sample = pick(self.sources[source], index, self.recipe, rng)
        return augment(sample, self.crop, self.recipe, rng)


class StepSampler(Sampler[list[int]]):
    """Positions of the samples in the micro-batches of one process.

    Each step distributes the next `batch` positions over the micro-batches of all processes round
    robin. The micro-batches are therefore the same for any number of processes, and the samples
    that all processes hold at once are those of one process with larger micro-batches, which gives
    equal synchronised batch statistics.
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
        """Micro-batches per step that a process takes one after the other."""
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


# The order of a mixture ---------------------------------------------------------------------------


_BLOCK = 1000
"""Number of consecutive positions that match the weights, to within one sample per dataset."""


class Place(NamedTuple):
    """Where a sample comes from."""

    source: int
    """Index of the dataset."""
    sample: int
    """Index of the sample in the dataset."""


class Order:
    """Order in which samples are drawn: all samples of a dataset come once before any comes again.

    Every block of 1000 positions holds the datasets in proportion to their weights, in a random
    order. Every pass over a dataset has a random order as well.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int) -> None:
        self.lengths = tuple(lengths)
        self.seed = seed
        self._shares = _shares(weights)
        self._block: tuple[int, NDArray[np.int_]] | None = None
        self._passes: dict[int, tuple[int, NDArray[np.int_]]] = {}

    def __getitem__(self, position: int) -> Place:
        """The sample at a position counted from the start of the run."""
        if len(self.lengths) == 1:
            return self._place(0, position)
        block, place = divmod(position, _BLOCK)
        sources = self._sources(block)
        source = int(sources[place])
        before = block * self._shares[source] + int((sources[:place] == source).sum())
        return self._place(source, before)

    def _place(self, source: int, drawn: int) -> Place:
        """The sample of a dataset that follows `drawn` others."""
        number, place = divmod(drawn, self.lengths[source])
        known = self._passes.get(source)
        if known is None or known[0] != number:
            # With the source last, the order of a single dataset does not depend on it.
            rng = np.random.default_rng((0, self.seed, number, source))
            known = (number, rng.permutation(self.lengths[source]))
            self._passes[source] = known
        return Place(source, int(known[1][place]))

    def _sources(self, block: int) -> NDArray[np.int_]:
        if self._block is None or self._block[0] != block:
            everyone = np.repeat(np.arange(len(self._shares)), self._shares)
            rng = np.random.default_rng((2, self.seed, block))
            self._block = (block, rng.permutation(everyone))
        return self._block[1]


def _shares(weights: Sequence[float]) -> list[int]:
    """Positions of a block for each weight, by the largest remainder method."""
    exact = [_BLOCK * weight / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: _BLOCK - sum(shares)]:
        shares[i] += 1
    if min(shares) == 0:
        raise ValueError(f"mix: weights {list(weights)} differ by more than {_BLOCK} to one")
    return shares


# Datasets -----------------------------------------------------------------------------------------


SCENE_FLOW_SAMPLES = 35_454
"""Number of training pairs of Scene Flow, also the length of an epoch of rendered scenes."""

_VALIDATION_SCENES = 20


def training_samples(config: TrainingConfig) -> tuple[TrainingSamples, int]:
    """The training samples of a run, and its number of steps.

    Raises:
        FileNotFoundError: A dataset is missing.
        ValueError: A dataset's first image is smaller than the crop, or an option does not suit it.
    """
    wanted = config.sources()
    stored = [
        None
        if source.name == "synthetic"
        else _read(config, source.name, source.root, "train", lenient=len(wanted) > 1)
        for source in wanted
    ]
    epoch = sum(SCENE_FLOW_SAMPLES if pairs is None else len(pairs) for pairs in stored)
    steps = config.steps or max(1, config.epochs * epoch // config.batch)
    samples = TrainingSamples(
        [_scenes(config, steps) if pairs is None else pairs for pairs in stored],
        config.crop,
        config.seed,
        weights=[source.weight for source in wanted],
        recipe=AUGMENTATIONS[config.augment],
    )
    samples.check()
    return samples, steps


def validation_samples(config: TrainingConfig) -> Sequence[StereoSample]:
    """The pairs to validate on: the test split, or all pairs of a `validate_root` without one.

    Raises:
        FileNotFoundError: The dataset is missing.
        ValueError: The training data have no test split, and no other data are given.
    """
    name: str = config.validate_data or config.sources()[0].name
    if name == "synthetic" and config.validate_root is not None:
        if config.validate_data is not None:
            raise ValueError("validate_data synthetic is rendered: it has no --validate-root")
        name = "auto"
    if name == "synthetic":
        return build_dataset(
            "synthetic",
            split="test",
            seed=config.seed,
            size=config.scene_size or config.crop,
            count=config.validate_count or _VALIDATION_SCENES,
            max_disparity=config.max_disparity,
        )
    root = config.validate_root or _training_root(config, name)
    if name == "auto" and root is not None:
        name = detect_dataset(root)
    split = "train" if root is None else measuring_split(name, root)
    if config.validate_root is None and split == "train":
        raise ValueError(f"data '{name}' has no test split: give other pairs by --validate-root")
    return _read(config, name, root, split, lenient=True)


def _training_root(config: TrainingConfig, name: str) -> Path | None:
    roots = [source.root for source in config.sources() if source.name == name]
    if not roots:
        raise ValueError(f"validate_data '{name}' needs --validate-root, its folder")
    return roots[0]


def _read(
    config: TrainingConfig, name: str, root: Path | None, split: Split, *, lenient: bool
) -> Sequence[StereoSample]:
    """Open a dataset on disk; `lenient` ignores the render pass if the dataset has none."""
    if name == "auto" and root is not None:
        name = detect_dataset(root)
    ignored = lenient and not has_passes(name)
    render_pass = "clean" if ignored else config.render_pass
    return build_dataset(name, root or "", split=split, render_pass=render_pass)


def _scenes(config: TrainingConfig, steps: int) -> Sequence[StereoSample]:
    """As many scenes as the run draws, so that none comes twice."""
    return build_dataset(
        "synthetic",
        seed=config.seed,
        size=config.scene_size or config.crop,
        count=steps * config.batch,
        max_disparity=config.max_disparity,
    )
