"""The memory that a prediction takes, and tiles that make it fit.

The formulas count the bytes of the tensors that are alive at the peak of each stage of the network
as arranged for inference. Their constants were fitted to counts of all living tensors, for both
widths and both precisions; those of feature networks and heads are methods of these modules.
`SLACK` covers the overhead of allocators and convolutions.

Shapes: K disparities, h and w at a quarter of the image, C = 32 * width channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import torch

from ea_psmnet.attention import VolumeAttention, weightless
from ea_psmnet.inference.tiles import BLEND, Span, spans
from ea_psmnet.models.config import SCALE, PSMNetConfig
from ea_psmnet.models.head import HEADS
from ea_psmnet.models.psmnet import FEATURES
from ea_psmnet.models.volume import build_volume

SLACK = 2.1
"""Upper bound of resident memory over the bytes of living tensors, measured from 128 x 256 to
544 x 960 pixels: fragments of freed memory, and buffers of convolutions."""
_ROOM = 2**27
"""Memory of the smallest pairs, which threads and the C library allocate in advance."""


@dataclass(frozen=True)
class MemoryPlan:
    """How a pair will be predicted."""

    rows: list[Span]
    """Spans of the tiles along the height of the feature map."""
    columns: list[Span]
    """Spans of the tiles along its width."""
    bytes: int
    """Upper bound of the additional memory."""
    is_whole: bool = False
    """Whether the pair passes the network as a whole; otherwise features are extracted one image at
    a time, and the volume is aggregated in one or more tiles."""


@dataclass(frozen=True)
class _Stages:
    """Bytes of living tensors in each stage."""

    config: PSMNetConfig
    size: tuple[int, int]
    """Height and width of the padded images."""
    itemsize: int
    """Bytes of a number in the convolutions."""

    @property
    def pixels(self) -> int:
        """H * W."""
        return self.size[0] * self.size[1]

    @property
    def cells(self) -> int:
        """Cells of the volume: K * h * w."""
        return self.config.max_disparity * self.pixels // SCALE**3

    def features(self, images: int) -> float:
        """Features of a number of images at once, and both images themselves."""
        pixel = FEATURES[self.config.features].working_bytes(self.config, self.itemsize)
        return self.pixels * (images * pixel + 24)

    def kept(self) -> float:
        """The images and their features, while the volume is aggregated."""
        guided = HEADS[self.config.head].guided or self.config.excitation
        network = FEATURES[self.config.features]
        return self.pixels * (network.kept_bytes(self.config, self.itemsize, guided=guided) + 24)

    def aggregation(self, cells: int) -> float:
        """Aggregation of a number of cells of the volume at once."""
        alive = 4.3 * self.config.channels(32) + self._stored_channels
        convolutions = alive * self.itemsize + 24 + 12 * self.config.excitation
        # Weights between all pairs of positions, if the mechanism has them, and their logits.
        maps = (
            2 * 4 * module.cost((cells * SCALE**3 // scale**3,)).map_floats
            for scale, module in self._sites
        )
        return cells * convolutions + max(maps, default=0)

    def head(self) -> float:
        """Scores to disparity."""
        return HEADS[self.config.head].working_bytes(self.config, self.pixels, self.cells)

    @cached_property
    def _stored_channels(self) -> int:
        """Channels of the cost volume that is stored."""
        with torch.device("meta"):
            features = FEATURES[self.config.features].channels(self.config)
            return build_volume(self.config, features).stored_channels

    @cached_property
    def _sites(self) -> list[tuple[int, VolumeAttention]]:
        """Scale and module of each attention site."""
        config = self.config
        sites = (config.site(name) for name in config.attention_sites)
        return [
            (scale, weightless(config.attention, channels, **config.attention_options))
            for scale, channels in sites
        ]


def whole_bytes(config: PSMNetConfig, size: tuple[int, int], itemsize: int, pairs: int = 1) -> int:
    """Upper bound of the additional memory for an untiled batch; arguments as `plan_memory`."""
    return pairs * _pair_bytes(config, size, itemsize) + _ROOM


def pairs_at_once(config: PSMNetConfig, size: tuple[int, int], itemsize: int, memory: int) -> int:
    """The largest batch of pairs whose `whole_bytes` are at most `memory`; at least 1."""
    return max(1, (memory - _ROOM) // _pair_bytes(config, size, itemsize))


def plan_memory(
    config: PSMNetConfig, size: tuple[int, int], itemsize: int, memory: int
) -> MemoryPlan:
    """Find the smallest number of tiles that fits into memory.

    Strips of full width are preferred, because narrower windows need further columns at their left
    for the range of disparities.

    Args:
        config: Configuration of the network.
        size: Height and width of the padded images.
        itemsize: Bytes of a number in the convolutions: 4, or 2 for bfloat16.
        memory: Bytes that may be allocated in addition to the memory that is held.

    Raises:
        ValueError: The smallest tiles do not fit.
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
    """Yield all tilings, those with few columns first, then those with tall strips first."""
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


@lru_cache(maxsize=16)
def _pair_bytes(config: PSMNetConfig, size: tuple[int, int], itemsize: int) -> int:
    """Memory for each pair of an untiled batch."""
    stages = _Stages(config, size, itemsize)
    aggregation = stages.kept() + stages.aggregation(stages.cells)
    return int(SLACK * max(stages.features(2), aggregation, stages.kept() + stages.head()))


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f}"
