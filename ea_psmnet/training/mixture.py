"""Which dataset, and which sample of it, comes at a position of the run; without importing torch.

Everything is a function of seed and position alone, so that a run resumes anywhere and any number
of processes draws the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast, get_args

from datasets.names import DatasetName

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Order", "Place", "Source", "parse_source"]

_BLOCK = 1000
"""Positions within which the weights are met exactly, to one sample a dataset."""


@dataclass(frozen=True)
class Source:
    """A dataset to draw from."""

    name: DatasetName
    root: Path | None
    weight: float


def parse_source(text: str) -> Source:
    """Read NAME:ROOT:WEIGHT; the root of `synthetic` is empty.

    Raises:
        ValueError: it has another form, an unknown name or an impossible weight.
    """
    name, _, rest = text.partition(":")
    root, separator, number = rest.rpartition(":")
    if not separator:
        raise ValueError(f"mix '{text}': expected NAME:ROOT:WEIGHT, as sceneflow:/data:3")
    if name not in get_args(DatasetName):
        names = ", ".join(get_args(DatasetName))
        raise ValueError(f"mix '{text}': no dataset '{name}'; choose one of {names}")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ValueError(f"mix '{text}': the weight '{number}' must be a positive number")
    return Source(cast(DatasetName, name), Path(root) if root else None, weight)


class Place(NamedTuple):
    """Where a sample comes from."""

    source: int
    """Number of the dataset."""
    sample: int
    """Number of the sample in it."""


class Order:
    """Position in the run to sample: each dataset's samples all come once before one comes again.

    Every block of 1000 positions holds each dataset in proportion to its weight, in an order of its
    own; so does every pass over a dataset.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int) -> None:
        self.lengths = tuple(lengths)
        self.seed = seed
        self._shares = _shares(weights)
        self._block: tuple[int, np.ndarray] | None = None
        self._passes: dict[int, tuple[int, np.ndarray]] = {}

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
        """The sample of a dataset after so many of it were drawn."""
        number, place = divmod(drawn, self.lengths[source])
        known = self._passes.get(source)
        if known is None or known[0] != number:
            # The source stands last: of a single dataset the order does not depend on it.
            rng = _generator(0, self.seed, number, source)
            known = (number, rng.permutation(self.lengths[source]))
            self._passes[source] = known
        return Place(source, int(known[1][place]))

    def _sources(self, block: int) -> np.ndarray:
        import numpy as np

        if self._block is None or self._block[0] != block:
            everyone = np.repeat(np.arange(len(self._shares)), self._shares)
            self._block = (block, _generator(2, self.seed, block).permutation(everyone))
        return self._block[1]


def _generator(*words: int) -> np.random.Generator:
    import numpy as np

    return np.random.default_rng(words)


def _shares(weights: Sequence[float]) -> list[int]:
    """Positions of a block for each weight: the largest remainders get what rounding leaves."""
    exact = [_BLOCK * weight / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: _BLOCK - sum(shares)]:
        shares[i] += 1
    if min(shares) == 0:
        raise ValueError(f"mix: weights {list(weights)} differ by more than {_BLOCK} to one")
    return shares
