"""How much memory a prediction takes, before it starts, and how to make it fit.

The formulas count the bytes of the tensors that live at the worst moment of each stage of the
network as arranged for inference; their constants were fitted to counts of all tensors alive, for
both widths and both precisions. `SLACK` covers what allocators and convolutions take besides.

Shapes: K disparities, h and w at a quarter of the image, C = 32 * width channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch

from ea_psmnet.attention import closed_form
from ea_psmnet.inference.tiles import BLEND, Span, spans
from ea_psmnet.models.config import SCALE, SITES, PSMNetConfig
from ea_psmnet.models.volume import build_volume

__all__ = ["MemoryPlan", "pairs_at_once", "plan_memory", "whole_bytes"]

SLACK = 2.1
"""Resident memory over living tensors, at most, measured from 128 x 256 to 544 x 960 pixels:
fragments of freed memory that is kept, and convolutions' own buffers."""
_ROOM = 2**27
"""The same of the smallest pairs: what threads and the C library take in advance."""
_CELLS = {
    site: 1 if place in ("volume", "output") else 64 if place == "bottleneck" else 8
    for site in SITES
    for place in [site.rpartition(".")[2]]
}
"""Cells of the volume at a quarter of the image for each position at a place for attention."""


@dataclass(frozen=True)
class MemoryPlan:
    """How a pair is to be predicted."""

    rows: list[Span]
    """Of the tiles, along the height of the feature map."""
    columns: list[Span]
    """Along its width."""
    bytes: int
    """At most, above what is held before."""
    is_whole: bool = False
    """Whether the pair passes the network as one; otherwise the features of one image at a time,
    then the volume in tiles, be it a single one."""


@dataclass(frozen=True)
class _Stages:
    """Bytes of living tensors in each stage."""

    config: PSMNetConfig
    size: tuple[int, int]
    """Height and width of the images as padded."""
    itemsize: int
    """Of a number in the convolutions."""

    @property
    def cells(self) -> int:
        """Of the volume: K * h * w."""
        height, width = self.size
        return self.config.max_disparity * height * width // SCALE**3

    @property
    def is_guided(self) -> bool:
        """Whether further maps of the left image are kept."""
        return self.config.head == "learned" or self.config.excitation

    def features(self, images: int) -> float:
        """Of so many images at once, whatever came before them, and the two images themselves."""
        if self.config.features == "psmnet":
            pixel = self.config.channels(32) * (1.75 + 1.125 * self.itemsize) + 12
        else:
            pixel = 58 * self.itemsize + 12
        return self.size[0] * self.size[1] * (images * pixel + 24)

    def kept(self) -> float:
        """The images and their features, while the volume is aggregated."""
        if self.config.features == "psmnet":
            features = 2 * self.config.channels(32) * self.itemsize / SCALE**2
            features += self.is_guided * self.config.channels(24) * self.itemsize / 2
        else:
            features = 27 * self.itemsize
        return self.size[0] * self.size[1] * (features + 24)

    def aggregation(self, cells: int) -> float:
        """Of so many cells of the volume at once."""
        correlations = 0 if self.config.volume == "concat" else _volume_channels(self.config)
        channels = 4.3 * self.config.channels(32) + correlations
        convolutions = channels * self.itemsize + 24 + 12 * self.config.excitation
        maps = (self._map(cells // _CELLS[site]) for site in self.config.attention_sites)
        return cells * convolutions + max(maps, default=0)

    def head(self) -> float:
        """Scores, and scores as tall as the image."""
        if self.config.head == "learned":
            return 101 * self.size[0] * self.size[1] + 12 * self.cells
        return 28.0 * self.cells + 3 * 2**28 * self.config.align_corners

    def _map(self, positions: int) -> int:
        """Weights between all pairs of positions, where a mechanism has them, and their logits."""
        options = self.config.attention_options
        cost = closed_form(self.config.attention, (positions,), 32, **options)
        return 2 * 4 * cost.map_floats


def whole_bytes(config: PSMNetConfig, size: tuple[int, int], itemsize: int, pairs: int = 1) -> int:
    """Memory to predict pairs at once, untiled, at most, above what is held before.

    Args:
        config: the network.
        size: height and width of the images, padded to what the network takes.
        itemsize: bytes of a number in the convolutions: 4, or 2 for bfloat16.
        pairs: how many in the batch.
    """
    return pairs * _pair_bytes(config, size, itemsize) + _ROOM


def pairs_at_once(config: PSMNetConfig, size: tuple[int, int], itemsize: int, memory: int) -> int:
    """How many pairs fit together: the most whose `whole_bytes` are within `memory`; at least 1."""
    return max(1, (memory - _ROOM) // _pair_bytes(config, size, itemsize))


def plan_memory(
    config: PSMNetConfig, size: tuple[int, int], itemsize: int, memory: int
) -> MemoryPlan:
    """The fewest tiles that fit.

    Strips of full width come first: only windows narrower than the image need, at their left, the
    columns that their disparities reach.

    Args:
        config: the network.
        size: height and width of the images, padded to what the network takes.
        itemsize: bytes of a number in the convolutions.
        memory: bytes that may be taken above what is held.

    Raises:
        ValueError: the smallest tiles do not fit either.
    """
    height, width = (side // SCALE for side in size)
    least = whole_bytes(config, size, itemsize)
    if least <= memory:
        return MemoryPlan(spans(height, 1), spans(width, 1), least, is_whole=True)
    for plan in _tilings(_Stages(config, size, itemsize), height, width):
        if plan.bytes <= memory:
            return plan
        least = min(least, plan.bytes)
    raise ValueError(
        f"{size[1]} x {size[0]} pixels at {config.max_disparity} disparities take "
        f"{_gib(least)} GiB even in the smallest tiles, and {_gib(max(0, memory))} are left beside "
        "what the program holds: allow more, scale the images down, or lower --max-disparity"
    )


def _tilings(stages: _Stages, height: int, width: int) -> Iterator[MemoryPlan]:
    """All ways to cut, those with few columns first, and of each the tallest strips first."""
    reach = stages.config.levels
    most = (max(1, side // (3 * BLEND)) for side in (height, width))
    counts = sorted(product(*(range(1, n + 1) for n in most)), key=lambda pair: pair[1])
    for down, across in counts:
        rows, columns = spans(height, down), spans(width, across, reach=reach)
        yield MemoryPlan(rows, columns, _tiled_bytes(stages, rows, columns))


def _tiled_bytes(stages: _Stages, rows: list[Span], columns: list[Span]) -> int:
    tile = max(span.length for span in rows) * max(span.length for span in columns)
    depth = stages.config.levels
    kept = stages.kept() + 4 * stages.cells  # the scores put together
    aggregation = kept + stages.aggregation(depth * tile)
    return int(SLACK * max(stages.features(1), aggregation, kept + stages.head())) + _ROOM


def _volume_channels(config: PSMNetConfig) -> int:
    """Channels of the parts of the volume; those of the features hardly matter here."""
    with torch.device("meta"):
        return sum(build_volume(config, 64).parts)


def _pair_bytes(config: PSMNetConfig, size: tuple[int, int], itemsize: int) -> int:
    """What each pair of an untiled batch takes."""
    stages = _Stages(config, size, itemsize)
    aggregation = stages.kept() + stages.aggregation(stages.cells)
    return int(SLACK * max(stages.features(2), aggregation, stages.kept() + stages.head()))


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f}"
