"""Plots of comparisons, ablations and the cost of attention; all as (h, w, 3) uint8 RGB."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
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

from ea_psmnet.attention.base import TABLE_1, Resources
from ea_psmnet.experiments.ablation import Ablation
from ea_psmnet.experiments.compare import Comparison, Result, crossing, curves, pixels
from ea_psmnet.experiments.resources import (
    CASES,
    DTYPES,
    Measured,
    VolumeReport,
    case_resources,
)
from ea_psmnet.figures import COLOURS, FAINT, INK, WARNING, dress, new_figure, to_image
from ea_psmnet.tables import format_bytes

# Comparison: memory against input size, and where every network crosses the budget ----------------

_LINES = ("-", "--", ":", "-.")
_MARKS = (
    "dot: fits    triangle: out of memory, at the least that was needed\n"
    "diamond: largest batch in the budget, open if extrapolated"
)
_PANELS = {"inference": "Prediction", "training": "Training step"}


def comparison_plot(comparison: Comparison) -> NDArray[np.uint8] | None:
    """Draw peaks of memory, and the input sizes at which they cross the budget.

    There is a column of panels for every kind of work on random images: above, memory against
    pixels on logarithmic axes; below, a row for every network, which is also the legend. Open
    triangles ran out of memory, at the least that was needed.

    Returns:
        The picture; None if no work has two points.
    """
    works = [work for work in _PANELS if sum(bool(r.demand) for r in comparison.of(work)) > 1]
    if not works:
        return None
    found = {work: curves(comparison.of(work)) for work in works}
    names = list(dict.fromkeys(key for each in found.values() for key in each))
    looks = line_styles(list(dict.fromkeys(label for label, _ in names)))
    width, below = 2.8 + 5.2 * len(works), 0.7 + 0.3 * len(names)
    figure = new_figure(width, 6.6 + below)
    panels = figure.subplots(2, len(works), squeeze=False, height_ratios=(4.6, below))
    for (upper, lower), work in zip(panels.T, works, strict=True):
        _memory_panel(upper, found[work], looks, comparison.budget.bytes, _PANELS[work])
        _crossing_panel(lower, found[work], looks, comparison.budget.bytes, names)
    batches = {batch for _, batch in names}
    texts = [name if len(batches) == 1 else f"{name}, batch {batch}" for name, batch in names]
    panels[1, 0].set_yticks(range(len(names)), texts)
    panels[0, 0].set_ylabel("peak memory beyond the network", size=11, color=INK)
    title = f"Memory of networks; budget {comparison.budget}"
    figure.suptitle(title, size=14, weight="bold", color=INK, x=0.02, ha="left")
    figure.text(0.02, 0.015, _MARKS, size=9, color=INK)
    figure.tight_layout(rect=(0, 0.055, 1, 0.995))
    return to_image(figure)


def _memory_panel(
    axes: Axes, found: _Curves, looks: dict[str, tuple[str, str]], budget: int, title: str
) -> None:
    axes.axhline(budget, color=WARNING, linewidth=1.2, linestyle=(0, (6, 3)), zorder=1)
    for (label, _), curve in found.items():
        _curve(axes, curve, *looks[label])
    dress(axes, title=title, x="pixels of the batch", grid="y", pad=12)
    _scales(axes, [result for curve in found.values() for result in curve])
    axes.text(
        0.99, budget, "budget", transform=axes.get_yaxis_transform(), color=WARNING,
        fontsize=9, va="bottom", ha="right",
    )  # fmt: skip


def _crossing_panel(
    axes: Axes,
    found: _Curves,
    looks: dict[str, tuple[str, str]],
    budget: int,
    names: Sequence[tuple[str, int]],
) -> None:
    """Draw a row for every network up to the size that fills the budget."""
    crossings = {name: crossing(curve, budget) for name, curve in found.items()}
    known = [each.pixels for each in crossings.values() if each is not None]
    start = min(known, default=1.0) / 2
    for row, (label, batch) in enumerate(names):
        crossed, (colour, style) = crossings.get((label, batch)), looks[label]
        if crossed is None:
            known_sizes = found.get((label, batch), [])
            axes.text(start, row, _uncrossed(known_sizes), va="center", fontsize=9, color=INK)
            continue
        axes.plot([start, crossed.pixels], [row, row], style, color=colour, linewidth=1.6)
        face = colour if crossed.bracketed else "white"
        axes.plot(crossed.pixels, row, "D", color=colour, markerfacecolor=face, markersize=6)
        axes.annotate(
            _MEGAPIXELS(crossed.pixels), (crossed.pixels, row), (8, 0),
            textcoords="offset points", va="center", fontsize=9, color=INK,
        )  # fmt: skip
    dress(axes, title="Largest batch in the budget", x="pixels of the batch", grid="x")
    axes.set_xscale("log")
    axes.set(xlim=(start, max(known, default=2.0) * 2), ylim=(len(names) - 0.5, -0.5), yticks=())
    _pixel_ticks(axes)


def _uncrossed(curve: Sequence[Result]) -> str:
    """Why there is no crossing."""
    if not curve:
        return " not measured"
    if curve[0].outcome.end == "out of memory":
        return f" below {_MEGAPIXELS(pixels(curve[0]))}"
    return " unknown: too few sizes"


_Curves = dict[tuple[str, int], list[Result]]
"""Results in order of pixels by network and batch."""
_MEGAPIXELS = EngFormatter(unit="px", places=1, sep=" ")


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


def _curve(axes: Axes, curve: Sequence[Result], colour: str, style: str) -> None:
    known = [(pixels(r), r.demand, r.outcome.end == "fits") for r in curve if r.demand]
    x, y = [count for count, _, _ in known], [demand for _, demand, _ in known]
    axes.plot(x, y, style, color=colour, linewidth=1.6)
    for wanted, marker, face in ((True, "o", colour), (False, "^", "white")):
        points = [(count, demand) for count, demand, fits in known if fits == wanted]
        at = np.array(points).reshape(-1, 2)
        axes.plot(at[:, 0], at[:, 1], marker, color=colour, markerfacecolor=face, markersize=7)


def _scales(axes: Axes, results: Sequence[Result]) -> None:
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
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
    axes.yaxis.set_major_locator(LogLocator(base=4, numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    _pixel_ticks(axes)


def _pixel_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axes.xaxis.set_major_formatter(EngFormatter(unit="px", sep=" "))
    axes.xaxis.set_minor_formatter(NullFormatter())


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
    """A quantity of a panel: its title, its unit, its closed form, and its measurement."""

    title: str
    unit: str
    closed: Callable[[Resources], float]
    measured: Callable[[Measured], float]


def resource_plot(report: VolumeReport) -> NDArray[np.uint8]:
    """Draw costs against the size of volumes, and of all forms of a mechanism for the largest one.

    Above are the forms that run here, closed forms as lines and measurements as points, on
    logarithmic axes; below a row for every case.
    """
    itemsize = DTYPES[report.dtype].itemsize
    operations = "Multiplications and additions"
    quantities = (
        _Quantity("Memory in bytes", "B", lambda r: r.bytes(itemsize), lambda m: m.peak_bytes),
        _Quantity(operations, "", lambda r: r.operations, lambda m: m.products),
    )
    largest = max(row.positions for row in report.rows)
    rows = [row for row in report.rows if row.positions == largest]
    rows.sort(key=lambda row: row.resources.operations, reverse=True)
    cases = [row.case for row in rows]
    below = 0.9 + 0.27 * len(cases)
    figure = new_figure(15, 6.8 + below)
    panels = figure.subplots(2, 2, height_ratios=(5.2, below))
    for (upper, lower), quantity in zip(panels.T, quantities, strict=True):
        _cost_lines(upper, report, quantity, cases)
        _cost_rows(lower, report, quantity, cases)
    panels[1, 0].set_yticks(range(len(cases)), [_look(case)[2] for case in cases])
    title = f"Attention on one volume, d = {report.channels}, d_k = {report.key_channels}"
    figure.suptitle(
        f"{title}, {report.dtype}", size=16, weight="bold", color=INK, x=0.02, ha="left"
    )
    note = "line: closed form    dot: measured peak of memory, counted products of matrices"
    figure.text(0.02, 0.012, note, size=11, color=INK)
    figure.tight_layout(rect=(0, 0.03, 1, 0.99))
    return to_image(figure)


def _cost_lines(
    axes: Axes, report: VolumeReport, quantity: _Quantity, cases: Sequence[str]
) -> None:
    """Draw a line for every form that runs here, or for all if none does, with its measurements."""
    counts = [row.positions for row in report.rows]
    positions = [int(n) for n in np.geomspace(max(2.0, min(counts) / 1.5), max(counts) * 1.5, 60)]
    ends: dict[str, float] = {}
    for case in [case for case in cases if _look(case)[1] == "-"] or cases:
        colour, line, _ = _look(case)
        values = [quantity.closed(_costs(report, case, n)) for n in positions]
        axes.plot(positions, values, line, color=colour, linewidth=2)
        axes.plot(*_measured(report, quantity, case), "o", color=colour, markersize=6)
        ends[case] = float(values[-1])
    _volumes(axes, report)
    dress(axes, title=quantity.title, x="positions n of the volume", grid="y", pad=62)
    axes.set(xscale="log", yscale="log", xlim=(float(positions[0]), float(positions[-1])))
    for axis, unit in ((axes.xaxis, ""), (axes.yaxis, quantity.unit)):
        axis.set_major_formatter(EngFormatter(unit=unit, sep=" "))
        axis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(numticks=12))
    _label_ends(axes, ends)


def _label_ends(axes: Axes, ends: Mapping[str, float]) -> None:
    """Write the names of lines to the right of their ends, one above the other."""
    last = -1.0
    for case in sorted(ends, key=lambda case: ends[case]):
        colour, _, name = _look(case)
        place = axes.transAxes.inverted().transform(axes.transData.transform((1, ends[case])))[1]
        last = max(float(place), last + _LABEL_STEP)
        axes.text(
            1.01, last, name, transform=axes.transAxes, color=colour, fontsize=11, va="center"
        )


_LABEL_STEP = 0.045
"""Least distance of the names of lines, as a fraction of the height of a panel."""


def _cost_rows(axes: Axes, report: VolumeReport, quantity: _Quantity, cases: Sequence[str]) -> None:
    """Draw a row for every case: closed form and measurement for the largest volume."""
    largest = max(report.rows, key=lambda row: row.positions)
    for place, case in enumerate(cases):
        colour = _look(case)[0]
        value = quantity.closed(_costs(report, case, largest.positions))
        axes.plot(value, place, "|", color=colour, markersize=13, markeredgewidth=3)
        at, costs = _measured(report, quantity, case)
        axes.axhline(place, color=FAINT, linewidth=0.8, zorder=0)
        drawn = [cost for n, cost in zip(at, costs, strict=True) if n == largest.positions]
        axes.plot(drawn, [place] * len(drawn), "o", color=colour, markersize=7)
    dress(axes, title=f"{quantity.title} for {largest.volume}", grid="x")
    axes.set(xscale="log", ylim=(len(cases) - 0.5, -0.5), yticks=())
    axes.xaxis.set_major_formatter(EngFormatter(unit=quantity.unit, sep=" "))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _costs(report: VolumeReport, case: str, positions: int) -> Resources:
    return case_resources(case, (positions,), report.channels, report.key_channels)


def _measured(
    report: VolumeReport, quantity: _Quantity, case: str
) -> tuple[list[int], list[float]]:
    """Numbers of positions, and what was measured there."""
    rows = [row for row in report.rows if row.case == case and row.measured]
    values = [quantity.measured(row.measured) for row in rows if row.measured]
    return [row.positions for row in rows], values


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
    height = 2.2 + 0.5 * len(ablation.variants)
    figure = new_figure(3 + 4.5 * len(tests), height)
    panels = figure.subplots(1, len(tests), squeeze=False, sharey=True)[0]
    for axes, test in zip(panels, tests, strict=True):
        for place, variant in enumerate(ablation.variants):
            _spread(axes, ablation, variant, test, place)
        dress(axes, title=test, x="EPE in pixels", grid="x", hide=("top", "right", "left"))
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(ablation.variants)), ablation.variants)
    panels[0].set_ylim(len(ablation.variants) - 0.5, -0.7)
    title = f"Ablation: {ablation.question}"
    figure.suptitle(title, weight="bold", color=INK, x=0.02, ha="left")
    note = "dot with bar: mean and standard deviation over the seeds    small dots: seeds"
    figure.text(0.02, 0.1 / height, note, size=9, color=INK)
    figure.tight_layout(rect=(0, 0.3 / height, 1, 1))
    return to_image(figure)


def _spread(axes: Axes, ablation: Ablation, variant: str, test: str, place: int) -> None:
    """Draw mean and deviation, seeds as small dots, and the number of seeds without a figure."""
    values = list(ablation.values(variant, test, "EPE").values())
    spread = ablation.spread(variant, test, "EPE")
    axes.plot(values, [place] * len(values), ".", color=_BLUE, alpha=0.5, markersize=6)
    if spread.mean is not None:
        axes.errorbar(spread.mean, place, xerr=spread.deviation, fmt="o", color=_BLUE, capsize=4)
    lost = len(ablation.of(variant)) - len(values)
    if lost:
        middle, scale = (
            (0.02, axes.get_yaxis_transform())
            if spread.mean is None
            else (spread.mean, axes.transData)
        )
        axes.annotate(
            f"{lost} of {lost + len(values)} seeds not finite", (middle, place), (0, 6),
            xycoords=scale, textcoords="offset points", color=WARNING, fontsize=9,
            ha="left" if spread.mean is None else "center", va="bottom",
        )  # fmt: skip
