"""Plots of comparisons, ablations, and of what attention costs; all as (h, w, 3) uint8 RGB."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    EngFormatter,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)
from numpy.typing import NDArray

from ea_psmnet.attention.base import Resources
from ea_psmnet.experiments.ablation import Ablation
from ea_psmnet.experiments.compare import Comparison, Result, crossing, curves, pixels
from ea_psmnet.experiments.resources import (
    CASES,
    DTYPES,
    TABLE_1,
    Measured,
    VolumeReport,
    case_resources,
)
from ea_psmnet.figures import COLOURS, FAINT, INK, WARNING, dress, new_figure, to_image
from ea_psmnet.tables import format_bytes

__all__ = ["ablation_plot", "comparison_plot", "line_styles", "resource_plot"]


# Comparison: memory against input size, and where every network crosses the budget ----------------

_LINES = ("-", "--", ":", "-.")
_MARKS = (
    "dot: fits    triangle: out of memory, at the least that was needed    "
    "diamond: crosses the budget, open if extrapolated"
)
_PANELS = {"inference": "Prediction", "training": "Training step"}


def comparison_plot(comparison: Comparison) -> NDArray[np.uint8] | None:
    """Draw peaks on logarithmic axes, a panel for every kind of work on random images.

    A dot fits; an open triangle ran out of memory, at the least that was needed. A diamond is where
    the budget is crossed, open if the line is extrapolated.

    Returns:
        The picture; None if no work has two points.
    """
    works = [work for work in _PANELS if sum(bool(r.demand) for r in comparison.of(work)) > 1]
    if not works:
        return None
    width = 3.5 + 6 * len(works)
    figure = new_figure(width, 7)
    panels = figure.subplots(1, len(works), squeeze=False)[0]
    for axes, work in zip(panels, works, strict=True):
        _panel(axes, comparison.of(work), comparison.budget.bytes, _PANELS[work])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.text(0.5, 0.012, _MARKS, ha="center", size=9, color=INK)
    figure.legend(handles, labels, loc="center right", frameon=False, fontsize=10)
    title = f"Peak memory in addition to the network; budget {comparison.budget}"
    figure.suptitle(title, size=14, weight="bold", color=INK)
    figure.subplots_adjust(left=0.9 / width, right=1 - 3.2 / width, top=0.84, bottom=0.12)
    return to_image(figure)


def _panel(axes: Axes, results: Sequence[Result], budget: int, title: str) -> None:
    axes.axhline(budget, color=WARNING, linewidth=1.2, linestyle=(0, (6, 3)), zorder=1)
    batches = sorted({batch for _, batch in curves(results)})
    looks = line_styles(list(dict.fromkeys(result.trial.label for result in results)))
    for (label, batch), curve in curves(results).items():
        name = label if len(batches) == 1 else f"{label}, batch {batch}"
        _curve(axes, curve, budget, *looks[label], name)
    dress(axes, title=title, x="pixels of the batch", grid="y", pad=12)
    _scales(axes, results, budget)


def line_styles(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Choose colour and style of lines: a colour for a mechanism, a style for a place or option."""
    families: dict[str, list[str]] = {}
    for label in labels:
        families.setdefault(re.split("[@,]", label)[0], []).append(label)
    return {
        label: (
            COLOURS[family % len(COLOURS)],
            _LINES[(family // len(COLOURS) + place) % len(_LINES)],
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


def _scales(axes: Axes, results: Sequence[Result], budget: int) -> None:
    """Logarithmic scales: bytes, and pixels with the sizes of images above."""
    axes.set(xscale="log", yscale="log")
    sizes = {pixels(result): _size(result) for result in results}
    for count in sizes:
        axes.axvline(count, color=FAINT, linewidth=1, zorder=0)
    top = axes.secondary_xaxis("top")
    top.set_xticks(list(sizes), list(sizes.values()), fontsize=9, rotation=30, ha="left")
    top.xaxis.set_minor_locator(NullLocator())
    top.tick_params(length=0, pad=1, colors=INK)
    top.spines["top"].set_visible(False)
    axes.text(
        1.01, budget, format_bytes(budget), transform=axes.get_yaxis_transform(),
        color=WARNING, fontsize=9, va="center",
    )  # fmt: skip
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
    axes.yaxis.set_major_locator(LogLocator(base=4, numticks=12))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _size(result: Result) -> str:
    batch, height, width = result.trial.shape or (0, 0, 0)
    return f"{height}x{width}" if batch == 1 else f"{batch} x {height}x{width}"


# Resources: Figure 3 of the paper, with every mechanism -------------------------------------------

_FORMS = {"": ("-", ""), "published": (":", ", published order"), "sdpa": ("-.", ", sdpa")}
"""Line and label of the forms of a mechanism: solid is the one that runs here."""


def _look(case: str) -> tuple[str, str, str]:
    """Colour, line and label of a case: a mechanism has one colour; Table 1 is dashed."""
    families = list(dict.fromkeys(_family(name) for name in CASES))
    colour = COLOURS[families.index(_family(case)) % len(COLOURS)]
    if case in TABLE_1:
        return colour, "--", f"{_family(case)}, Table 1"
    line, told = _FORMS[case.partition("-")[2]]
    return colour, line, f"{_family(case)}{told}"


def _family(case: str) -> str:
    return case.removeprefix("table1-") if case in TABLE_1 else case.partition("-")[0]


class _Quantity(NamedTuple):
    """A quantity of a panel: its title, its closed form, and its measurement."""

    title: str
    closed: Callable[[Resources], float]
    measured: Callable[[Measured], float]


def resource_plot(report: VolumeReport) -> NDArray[np.uint8]:
    """Draw closed forms as lines and measurements as points, on logarithmic axes."""
    itemsize = DTYPES[report.dtype].itemsize
    quantities = (
        _Quantity(
            "Bytes; points: measured peak", lambda r: r.bytes(itemsize), lambda m: m.peak_bytes
        ),
        _Quantity(
            "Operations; points: counted products", lambda r: r.operations, lambda m: m.products
        ),
    )
    figure = new_figure(15, 8)
    panels = figure.subplots(1, 2)
    for axes, quantity in zip(panels, quantities, strict=True):
        _lines(axes, report, quantity)
        _volumes(axes, report)
        dress(axes, title=quantity.title, x="positions n", grid="y", pad=70)
        axes.set(xscale="log", yscale="log")
        axes.margins(x=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(EngFormatter(sep=" "))
            axis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(LogLocator(numticks=12))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=12)
    title = f"Attention on one volume, d = {report.channels}, d_k = {report.key_channels}"
    figure.suptitle(f"{title}, {report.dtype}", size=16, weight="bold", color=INK)
    figure.subplots_adjust(left=0.055, right=0.985, top=0.79, bottom=0.215, wspace=0.12)
    return to_image(figure)


def _lines(axes: Axes, report: VolumeReport, quantity: _Quantity) -> None:
    """Draw a line for every case over all sizes, and its measurements.

    Some lines coincide: each is thinner than the one before, so that all of them are visible.
    """
    counts = [row.positions for row in report.rows]
    span = max(2.0, min(counts) / 2), max(counts) * 2.0
    positions = [int(count) for count in np.geomspace(*span, 60)]
    largest = max(report.rows, key=lambda row: row.positions).volume
    rows = [row for row in report.rows if row.volume == largest]
    rows.sort(key=lambda row: row.resources.operations, reverse=True)
    for width, case in zip(np.linspace(4.5, 1.5, len(rows)), [r.case for r in rows], strict=True):
        colour, line, label = _look(case)
        costs = [
            case_resources(case, (n,), report.channels, report.key_channels) for n in positions
        ]
        values = [quantity.closed(cost) for cost in costs]
        axes.plot(positions, values, line, color=colour, label=label, linewidth=width)
        points = [
            (row.positions, quantity.measured(row.measured))
            for row in report.rows
            if row.case == case and row.measured
        ]
        face = colour if line == "-" else "white"
        x, y = zip(*points, strict=True) if points else ((), ())
        axes.plot(x, y, "o", markersize=4 + width, color=colour, markerfacecolor=face)


def _volumes(axes: Axes, report: VolumeReport) -> None:
    """Draw a thin line at every volume, with its size above."""
    for volume, count in {row.volume: row.positions for row in report.rows}.items():
        axes.axvline(count, color=FAINT, linewidth=1, zorder=0)
        axes.text(
            count, 1.015, volume, transform=axes.get_xaxis_transform(), rotation=55, color=INK,
            fontsize=11, ha="left", va="bottom", rotation_mode="anchor",
        )  # fmt: skip


# Ablation: means with deviations, and every seed --------------------------------------------------

_BLUE = COLOURS[1]


def ablation_plot(ablation: Ablation) -> NDArray[np.uint8]:
    """Draw the EPE of every variant, a panel for every test set."""
    tests = ablation.tests or [""]
    figure = new_figure(3 + 4.5 * len(tests), 1.8 + 0.45 * len(ablation.variants))
    panels = figure.subplots(1, len(tests), squeeze=False, sharey=True)[0]
    for axes, test in zip(panels, tests, strict=True):
        for place, variant in enumerate(ablation.variants):
            _spread(axes, ablation, variant, test, place)
        dress(axes, x=f"EPE in pixels: {test}", grid="x", hide=("top", "right", "left"))
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(ablation.variants)), ablation.variants)
    panels[0].set_ylim(len(ablation.variants) - 0.5, -0.7)
    figure.suptitle(f"Ablation: {ablation.question}", weight="bold", color=INK)
    figure.tight_layout()
    return to_image(figure)


def _spread(axes: Axes, ablation: Ablation, variant: str, test: str, place: int) -> None:
    """Draw mean and deviation, seeds as small dots, and the number of seeds without a figure."""
    values = list(ablation.values(variant, test, "EPE").values())
    spread = ablation.spread(variant, test, "EPE")
    axes.plot(values, [place] * len(values), ".", color=_BLUE, alpha=0.5, markersize=6)
    if spread.mean is not None:
        error = spread.deviation or 0
        axes.errorbar(spread.mean, place, xerr=error, fmt="o", color=_BLUE, capsize=4)
    lost = len(ablation.of(variant)) - len(values)
    if lost:
        axes.text(
            0.99, place - 0.15, f"{lost} of {lost + len(values)} not finite", color=WARNING,
            transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=9,
        )  # fmt: skip
