"""Aggregation of the cost volume in overlapping tiles, for pairs too large for the memory at hand.

Features are two-dimensional and cheap: they are computed for the whole image. The volume, which
grows with the disparities too, is aggregated window by window; scores, one channel of it, are
blended linearly where windows meet, and the head runs once over the whole.

Shapes: K disparities, h and w at a quarter of the image, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product, starmap
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ea_psmnet.inference.shared_context import SharedContexts
from ea_psmnet.models.psmnet import PairFeatures, PSMNet

__all__ = ["BLEND", "HALO", "Span", "Tile", "predict_in_tiles", "spans"]

BLEND = 8
"""Feature pixels on either side of a cut over which one tile fades into the next."""
HALO = 32
"""Feature pixels that a tile sees beyond its cuts: the blend, and a margin whose scores the tile's
own border has spoilt, and which count for nothing."""
_STEP = 4
"""Spans start and stop at multiples of this, for the hourglasses' two halvings."""


@dataclass(frozen=True)
class Span:
    """A tile along one side, in feature pixels."""

    start: int
    """First pixel of the window."""
    first: int
    """First pixel that is this tile's own; the blend reaches over it."""
    last: int
    """Behind its last own pixel."""
    stop: int
    """Behind the window."""

    @property
    def length(self) -> int:
        """Of the window."""
        return self.stop - self.start

    def weights(self, side: int) -> Tensor:
        """(length,) float32 shares in the result; those of all spans of a side add up to one."""
        place = torch.arange(self.start, self.stop) + 0.5
        share = torch.ones(self.length)
        if self.first > 0:
            share *= ((place - self.first) / (2 * BLEND) + 0.5).clamp(0, 1)
        if self.last < side:
            share *= ((self.last - place) / (2 * BLEND) + 0.5).clamp(0, 1)
        return share


def spans(side: int, count: int, *, reach: int = 0) -> list[Span]:
    """Cut a side of the feature map, a multiple of 4, into windows of like length.

    Args:
        side: in feature pixels.
        count: how many windows.
        reach: feature pixels that a window needs besides at its start: the disparities, along rows.

    Raises:
        ValueError: the own parts would be shorter than their blends.
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
        """Of a volume (..., h', w') of the window, at whatever scale, what no other tile owns."""
        scale = self.row.length // volume.shape[-2]
        rows, columns = (
            slice((span.first - span.start) // scale, (span.last - span.start) // scale)
            for span in self
        )
        return volume[..., rows, columns]

    def shares(self, height: int, width: int) -> Tensor:
        """(h, w) of the window: how much it counts in the whole map's height and width."""
        return self.row.weights(height)[:, None] * self.column.weights(width)


def predict_in_tiles(
    model: PSMNet, left: Tensor, right: Tensor, rows: Sequence[Span], columns: Sequence[Span]
) -> Tensor:
    """What `model` predicts in evaluation, with the volume of one tile at a time in memory.

    Efficient attention uses one context for all tiles, gathered in a first round over them; there
    each tile's later sites see features that came of its own context, so the result differs a
    little. Mechanisms other than efficient attention with a softmax see their tile alone.

    Args:
        model: in evaluation; one image passes its features at a time.
        left: (1, 3, H, W) as the model takes it.
        right: the same.
        rows: along the height of the feature map.
        columns: along its width; made with a `reach` of the disparities.

    Returns:
        Disparity (1, H, W).
    """
    features = _extract(model, left, right)
    tiles = list(starmap(Tile, product(rows, columns)))
    contexts = SharedContexts(model.aggregation)
    rounds = 2 if contexts.sites and len(tiles) > 1 else 1
    bar = tqdm(total=rounds * len(tiles), unit="tile", leave=False, disable=len(tiles) == 1)
    with bar, contexts.attached():
        if rounds > 1:
            _gather(model, features, tiles, contexts, bar)
        score = _aggregate(model, features, tiles, bar)
    return model.regress([score], features.guides).disparity


def _extract(model: PSMNet, left: Tensor, right: Tensor) -> PairFeatures:
    """`PSMNet.extract`, one image after the other, which takes less memory."""
    (of_left, guides), (of_right, _) = map(model.describe, (left, right))
    return PairFeatures(of_left, of_right, guides)


def _score(model: PSMNet, features: PairFeatures, tile: Tile) -> Tensor:
    """The best score (1, K, h', w') of a window."""
    window = features.window(*tile.window)
    return model.aggregate(model.build(window), window.guides)[-1]


def _gather(
    model: PSMNet,
    features: PairFeatures,
    tiles: Sequence[Tile],
    contexts: SharedContexts,
    bar: tqdm,
) -> None:
    """One round over the tiles for the contexts of all sites."""
    for tile in tiles:
        with contexts.gathering(tile.own):
            _score(model, features, tile)
        bar.update()
    contexts.finish()


def _aggregate(model: PSMNet, features: PairFeatures, tiles: Sequence[Tile], bar: tqdm) -> Tensor:
    """One round over the tiles for the score of the last classifier, (1, K, h, w)."""
    left = features.left
    height, width = left.shape[-2:]
    total = torch.zeros(1, model.config.levels, height, width, device=left.device)
    for tile in tiles:
        score = _score(model, features, tile)
        total[(..., *tile.window)] += score * tile.shares(height, width).to(total)
        bar.update()
    return total
