"""At which input size a network's memory crosses a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ea_psmnet.reports.comparison import Result

__all__ = ["Crossing", "crossing", "curves", "pixels"]


class Crossing(NamedTuple):
    """Where memory reaches the budget."""

    pixels: float
    """Of a whole batch."""
    bracketed: bool
    """Between two sizes that were tried, one of which fits; else beyond them, by extrapolation."""


def pixels(result: Result) -> int:
    """Pixels of the batch that a trial was given."""
    return math.prod(result.trial.shape or (0,))


def curves(results: Sequence[Result]) -> dict[tuple[str, int], list[Result]]:
    """Results on random images by network and batch, each in order of pixels."""
    grouped: dict[tuple[str, int], list[Result]] = {}
    for result in sorted((r for r in results if r.trial.shape), key=pixels):
        batch = result.trial.shape[0] if result.trial.shape else 0
        grouped.setdefault((result.trial.label, batch), []).append(result)
    return grouped


def crossing(curve: Sequence[Result], budget: int) -> Crossing | None:
    """Where the curve of one network crosses a budget.

    Between a size that fits and one that does not, memory goes as a power of pixels; what ran out
    counts with the least it would have needed, so the crossing may lie lower than stated, but not
    below the last size that fits. Beyond the last two sizes that fit it grows in a straight line,
    or where all pairs of positions are stored as b x + c x^2.

    Args:
        curve: of `curves`.
        budget: bytes.

    Returns:
        None where fewer than two sizes say how memory grows, or where it does not grow.
    """
    known = [(pixels(r), r.demand, r.outcome.end) for r in curve if r.demand]
    refused = [i for i, (_, _, end) in enumerate(known) if end == "out of memory"]
    last = refused[0] if refused else len(known) - 1
    if last < 1:
        return None
    (x0, y0, _), (x1, y1, _) = known[last - 1], known[last]
    if y1 <= y0:
        return None
    if refused:
        share = math.log(budget / y0) / math.log(y1 / y0)
        return Crossing(x0 * (x1 / x0) ** min(max(share, 0), 1), bracketed=True)
    slope = (y1 - y0) / (x1 - x0)
    bend = (y1 / x1 - y0 / x0) / (x1 - x0)
    if not curve[0].naive or bend <= 0:
        return Crossing(x1 + (budget - y1) / slope, bracketed=False)
    rise = y1 / x1 - bend * x1
    return Crossing((math.sqrt(rise**2 + 4 * bend * budget) - rise) / (2 * bend), bracketed=False)
