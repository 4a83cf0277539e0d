"""Aggregation of the cost volume in overlapping tiles, for pairs that exceed the memory.

Features are two-dimensional and cheap, so they are computed for the whole image. The volume, which
also grows with the disparities, is aggregated window by window. Its scores, a single channel, are
blended linearly where windows meet, and the head runs once over the whole.

Shapes: K disparities, h and w at a quarter of the image, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product, starmap
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ea_psmnet.attention import VolumeAttention
from ea_psmnet.models.psmnet import PairFeatures, PSMNet, StereoOutput
from ea_psmnet.progress import Progress

BLEND = 8
"""Feature pixels on either side of a cut over which one tile fades into the next."""
HALO = 32
"""Feature pixels of a window beyond its cuts: the blend, and a margin whose scores are discarded
because the window's border affects them."""
_STEP = 4
"""Spans start and stop at multiples of this, because hourglasses halve the volume twice."""


@dataclass(frozen=True)
class Span:
    """A tile along one side, in feature pixels."""

    start: int
    """First pixel of the window."""
    first: int
    """First pixel that only this tile owns; the blend extends to both sides of it."""
    last: int
    """One after the last pixel that it owns."""
    stop: int
    """One after the last pixel of the window."""

    @property
    def length(self) -> int:
        """Length of the window."""
        return self.stop - self.start

    def weights(self, side: int) -> Tensor:
        """Weights (length,) in the blended result; the weights of all spans add up to one."""
        place = torch.arange(self.start, self.stop) + 0.5
        share = torch.ones(self.length)
        if self.first > 0:
            share *= ((place - self.first) / (2 * BLEND) + 0.5).clamp(0, 1)
        if self.last < side:
            share *= ((self.last - place) / (2 * BLEND) + 0.5).clamp(0, 1)
        return share


def spans(side: int, count: int, *, reach: int = 0) -> list[Span]:
    """Cut a side of the feature map, a multiple of 4, into windows of similar length.

    Args:
        side: Length in feature pixels.
        count: Number of windows.
        reach: Further feature pixels that a window needs at its start, such as disparities.

    Raises:
        ValueError: The parts that the tiles own would be shorter than their blends.
    """
    cuts = [_STEP * round(side * i / count / _STEP) for i in range(count + 1)]
    own = list(pairwise(cuts))
    if count > 1 and min(last - first for first, last in own) < 2 * BLEND:
        raise ValueError(f"{count} tiles along {side} feature pixels are too many to blend")
    return [
        Span(max(0, first - HALO - reach), first, last, min(side, last + HALO))
        for first, last in own
    ]


class Tile(NamedTuple):
    """A window of the feature map."""

    row: Span
    column: Span

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the window."""
        return slice(self.row.start, self.row.stop), slice(self.column.start, self.column.stop)

    def own(self, volume: Tensor) -> Tensor:
        """Crop a volume (..., h', w') of the window, at any scale, to what only this tile owns."""
        scale = self.row.length // volume.shape[-2]
        rows, columns = (
            slice((span.first - span.start) // scale, (span.last - span.start) // scale)
            for span in self
        )
        return volume[..., rows, columns]

    def shares(self, height: int, width: int) -> Tensor:
        """Weights (h, w) of the window in a blended map of a height and a width."""
        return self.row.weights(height)[:, None] * self.column.weights(width)


def predict_in_tiles(
    model: PSMNet, left: Tensor, right: Tensor, rows: Sequence[Span], columns: Sequence[Span]
) -> StereoOutput:
    """Predict a pair with the volume of one tile at a time in memory.

    Attention that `shares_context` uses one context for all tiles, gathered in a first round. In
    that round later sites of a tile read features that were made with the tile's own context, so
    the result differs slightly. Other attention is restricted to a tile.

    Args:
        model: A network in evaluation mode; features are extracted one image at a time.
        left: (1, 3, H, W), as for `PSMNet.forward`.
        right: (1, 3, H, W).
        rows: Spans along the height of the feature map.
        columns: Spans along its width, made with a `reach` of the disparities.

    Returns:
        Output for the whole images, with the blended scores.
    """
    features = model.extract_apart(left, right)
    tiles = list(starmap(Tile, product(rows, columns)))
    contexts = SharedContexts(model.aggregation)
    rounds = 2 if contexts.sites and len(tiles) > 1 else 1
    bar = Progress(total=rounds * len(tiles), unit="tile", leave=False, disable=len(tiles) == 1)
    height, width = features.left.shape[-2:]
    blended = torch.zeros(1, model.config.levels, height, width, device=features.left.device)
    with bar, contexts.attached():
        if rounds > 1:
            for tile in tiles:
                with contexts.gathering(tile.own):
                    _score(model, features, tile)
                bar.update()
            contexts.finish()
        for tile in tiles:
            score = _score(model, features, tile)
            blended[(..., *tile.window)] += score * tile.shares(height, width).to(blended)
            bar.update()
    return model.regress([blended], features.guides)


def _score(model: PSMNet, features: PairFeatures, tile: Tile) -> Tensor:
    """Score (1, K, h', w') of the last classifier for a window."""
    window = features.window(*tile.window)
    return model.aggregate(model.build(window), window.guides)[-1]


# Contexts that tiles share ------------------------------------------------------------------------


class _GatheredError(Exception):
    """Raised after the last site has gathered its part of a tile, to skip the rest."""


class _Site:
    """An attention module whose context is shared by tiles."""

    def __init__(self, module: VolumeAttention) -> None:
        self.module = module
        self.parts: list[tuple[Tensor, ...]] = []
        self.context: Tensor | None = None
        """The context of the whole volume, once it is known."""

    def forward(self, volume: Tensor) -> Tensor:
        """Output of the module for a tile, with the tile's own context until the whole is known."""
        if self.context is None:
            return type(self.module).forward(self.module, volume)
        return self.module.spread_context(volume, self.context)


class SharedContexts:
    """The attention modules of a network whose contexts tiles can share.

    Their context is a sum over all positions (for efficient attention: Shen et al., WACV 2021,
    section 3.2). Tiles gather their parts of it one by one; then each tile uses the whole.
    """

    def __init__(self, network: nn.Module) -> None:
        self.sites = [
            _Site(module)
            for module in network.modules()
            if isinstance(module, VolumeAttention) and module.shares_context
        ]
        self._own: Callable[[Tensor], Tensor] | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let the modules share contexts within this block."""
        for site in self.sites:
            site.module.__dict__["forward"] = partial(self._forward, site)
        try:
            yield
        finally:
            for site in self.sites:
                del site.module.__dict__["forward"]

    @contextmanager
    def gathering(self, own: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Gather from the tile that the network processes now; stop it after the last site.

        Args:
            own: Function that crops a site's volume to the part that only this tile owns.
        """
        self._own = own
        try:
            yield
        except _GatheredError:
            pass
        finally:
            self._own = None

    def finish(self) -> None:
        """Use the gathered contexts from here on."""
        for site in self.sites:
            site.context = site.module.merge_contexts(site.parts)
            site.parts.clear()

    def _forward(self, site: _Site, volume: Tensor) -> Tensor:
        if self._own is not None:
            site.parts.append(site.module.gather_context(self._own(volume)))
            if site is self.sites[-1]:
                raise _GatheredError
        return site.forward(volume)
