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
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ea_psmnet.inference.shared_context import SharedContexts
from ea_psmnet.models.psmnet import HeadOptions, PSMNet
from ea_psmnet.ops.factored_volume import PairVolume
from ea_psmnet.ops.soft_argmin import soft_argmin, soft_argmin_reference

__all__ = ["BLEND", "HALO", "Span", "Tile", "predict_in_tiles", "spans"]

BLEND = 8
"""Feature pixels on either side of a cut over which one tile fades into the next."""
HALO = 32
"""Feature pixels that a tile sees beyond its cuts: the blend, and a margin whose scores the tile's
own border has spoilt, and which count for nothing."""
_STEP = 4
"""Spans start and stop at multiples of this, for the hourglasses' two halvings."""
_HEAD_BYTES = 2**28


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
    def place(self) -> tuple[Any, ...]:
        """Index of the window in a map (..., h, w)."""
        return (
            ...,
            slice(self.row.start, self.row.stop),
            slice(self.column.start, self.column.stop),
        )

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
    features = [model.features((image - model.mean) / model.std) for image in (left, right)]
    pair = PairVolume(features[0], features[1], model.config.max_disparity // 4)
    tiles = list(starmap(Tile, product(rows, columns)))
    contexts = SharedContexts(model.aggregation)
    rounds = 2 if contexts.sites and len(tiles) > 1 else 1
    bar = tqdm(total=rounds * len(tiles), unit="tile", leave=False, disable=len(tiles) == 1)
    with bar, contexts.attached():
        if rounds > 1:
            _gather(model, pair, tiles, contexts, bar)
        score = _aggregate(model, pair, tiles, bar)
    return _head(score, model.config.max_disparity, model.head_options)


def _window(pair: PairVolume, tile: Tile) -> PairVolume:
    return PairVolume(pair.left[tile.place], pair.right[tile.place], pair.disparities)


def _gather(
    model: PSMNet, pair: PairVolume, tiles: Sequence[Tile], contexts: SharedContexts, bar: tqdm
) -> None:
    """One round over the tiles for the contexts of all sites."""
    for tile in tiles:
        with contexts.gathering(tile.own):
            model.aggregation(_window(pair, tile))
        bar.update()
    contexts.finish()


def _aggregate(model: PSMNet, pair: PairVolume, tiles: Sequence[Tile], bar: tqdm) -> Tensor:
    """One round over the tiles for the score of the last classifier, (1, K, h, w)."""
    height, width = pair.left.shape[-2:]
    total = torch.zeros(1, pair.disparities, height, width, device=pair.left.device)
    for tile in tiles:
        score = model.aggregation(_window(pair, tile))[-1]
        total[tile.place] += score * tile.shares(height, width).to(total)
        bar.update()
    return total


def _head(score: Tensor, max_disparity: int, options: HeadOptions) -> Tensor:
    """`soft_argmin`, in slabs of rows where it would fill a volume.

    Height is interpolated before; a slab as tall as its result keeps its rows.
    """
    height, width = (4 * side for side in score.shape[-2:])
    if not options["align_corners"]:
        return soft_argmin(score, (max_disparity, height, width), **options)
    tall = F.interpolate(
        score, (height, score.shape[-1]), mode="bilinear", align_corners=True
    )  # (1, K, H, w)
    rows = max(1, _HEAD_BYTES // (4 * max_disparity * width))
    slabs = [
        soft_argmin_reference(part, (max_disparity, part.shape[-2], width), **options)
        for part in tall.split(rows, dim=-2)
    ]
    return torch.cat(slabs, dim=1)
