"""Memory against input size, with the budget and where every network crosses it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from ea_psmnet.reports.comparison import Comparison, Result
from ea_psmnet.reports.crossing import crossing, curves, pixels
from ea_psmnet.tables import format_bytes

__all__ = ["comparison_plot"]

_INK, _FAINT = "#222222", "#e4e4e4"
_COLOURS = (
    "#000000", "#0072b2", "#d55e00", "#e69f00", "#cc79a7", "#009e73", "#56b4e9", "#888888",
)  # fmt: skip
"""Okabe and Ito's, safe for the colour-blind."""
_STYLES = ("-", "--", ":", "-.")

_MARKS = (
    "dot: fits    triangle: out of memory, at the least it would have needed    "
    "diamond: crosses the budget, open where extrapolated"
)
_PANELS = {"inference": "Prediction", "training": "Training step"}


def comparison_plot(comparison: Comparison) -> NDArray[np.uint8] | None:
    """Draw peaks on logarithmic axes, a panel for each kind of work on random images.

    A dot fits; an open triangle ran out of memory, at the least it would have needed. A diamond is
    where the budget is crossed, open where the line is extrapolated.

    Returns:
        (h, w, 3) uint8 RGB; None where there is nothing to compare: no work has two points.
    """
    works = [work for work in _PANELS if sum(bool(r.demand) for r in comparison.of(work)) > 1]
    if not works:
        return None
    figure = Figure(figsize=(3.5 + 6 * len(works), 7), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(works), squeeze=False)[0]
    for axes, work in zip(panels, works, strict=True):
        _panel(axes, comparison.of(work), comparison.budget.bytes)
        axes.set_title(_PANELS[work], size=13, color=_INK, loc="left", pad=12)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.text(0.5, 0.012, _MARKS, ha="center", size=9, color=_INK)
    figure.legend(handles, labels, loc="center right", frameon=False, fontsize=10)
    figure.suptitle(
        f"Peak memory above the network; budget {comparison.budget}",
        size=14, weight="bold", color=_INK,
    )  # fmt: skip
    right = 1 - 3.2 / figure.get_figwidth()
    figure.subplots_adjust(left=0.9 / figure.get_figwidth(), right=right, top=0.84, bottom=0.12)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), np.uint8)[..., :3].copy()


def _panel(axes: Axes, results: Sequence[Result], budget: int) -> None:
    axes.axhline(budget, color="#b00020", linewidth=1.2, linestyle=(0, (6, 3)), zorder=1)
    batches = sorted({batch for _, batch in curves(results)})
    looks = _looks(list(dict.fromkeys(result.trial.label for result in results)))
    for (label, batch), curve in curves(results).items():
        name = label if len(batches) == 1 else f"{label}, batch {batch}"
        _curve(axes, curve, budget, *looks[label], name)
    _dress(axes, results, budget)


def _looks(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and style of each line: a colour a mechanism, a style a place or option of it."""
    families: dict[str, list[str]] = {}
    for label in labels:
        families.setdefault(re.split("[@,]", label)[0], []).append(label)
    return {
        label: (
            _COLOURS[family % len(_COLOURS)],
            _STYLES[(family // len(_COLOURS) + place) % len(_STYLES)],
        )
        for family, members in enumerate(families.values())
        for place, label in enumerate(members)
    }


def _curve(
    axes: Axes, curve: Sequence[Result], budget: int, colour: str, style: str, name: str
) -> None:
    known = [(pixels(r), r.demand, r.outcome.end == "fits") for r in curve if r.demand]
    x, y = [count for count, _, _ in known], [demand for _, demand, _ in known]
    axes.plot(x, y, style, color=colour, linewidth=1.6, label=name)
    for wanted, marker, face in ((True, "o", colour), (False, "^", "white")):
        points = [(count, demand) for count, demand, fits in known if fits == wanted]
        at = np.array(points).reshape(-1, 2)
        axes.plot(at[:, 0], at[:, 1], marker, color=colour, markerfacecolor=face, markersize=7)
    crossed = crossing(curve, budget)
    if crossed is not None:
        face = colour if crossed.bracketed else "white"
        axes.plot(crossed.pixels, budget, "D", color=colour, markerfacecolor=face, zorder=4)
        if not crossed.bracketed:
            axes.plot([x[-1], crossed.pixels], [y[-1], budget], ":", color=colour, linewidth=1)


def _dress(axes: Axes, results: Sequence[Result], budget: int) -> None:
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("pixels of the batch", size=11, color=_INK)
    sizes = {pixels(result): _shape(result) for result in results}
    for count in sizes:
        axes.axvline(count, color=_FAINT, linewidth=1, zorder=0)
    top = axes.secondary_xaxis("top")
    top.set_xticks(list(sizes), list(sizes.values()), fontsize=9, rotation=30, ha="left")
    top.xaxis.set_minor_locator(NullLocator())
    top.tick_params(length=0, pad=1, colors=_INK)
    top.spines["top"].set_visible(False)
    axes.text(
        1.01, budget, format_bytes(budget), transform=axes.get_yaxis_transform(),
        color="#b00020", fontsize=9, va="center",
    )  # fmt: skip
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
    axes.yaxis.set_major_locator(LogLocator(base=4, numticks=12))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=10, colors=_INK, which="both")
    axes.grid(True, axis="y", color="#f0f0f0", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _shape(result: Result) -> str:
    batch, height, width = result.trial.shape or (0, 0, 0)
    return f"{height}x{width}" if batch == 1 else f"{batch} x {height}x{width}"
