"""Figure 3 of the paper, with every mechanism: memory and operations against positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from ea_psmnet.attention.base import Resources
from ea_psmnet.reports.resource_cases import case_resources
from ea_psmnet.reports.resource_meter import Measured
from ea_psmnet.reports.resources import DTYPES, VolumeReport

__all__ = ["resource_plot"]

_INK, _FAINT = "#222222", "#d8d8d8"

_STYLES: dict[str, tuple[str, str, str]] = {
    "table1-non-local": ("#d55e00", "--", "non-local, Table 1"),
    "dot_product": ("#d55e00", "-", "dot_product"),
    "dot_product-sdpa": ("#e69f00", "-", "dot_product, sdpa"),
    "table1-residual": ("#888888", "--", "residual block, Table 1"),
    "focused_linear-published": ("#cc79a7", ":", "focused_linear, published order"),
    "focused_linear": ("#cc79a7", "-", "focused_linear"),
    "hydra-published": ("#56b4e9", ":", "hydra, published order"),
    "hydra": ("#56b4e9", "-", "hydra"),
    "external-published": ("#009e73", ":", "external, published order"),
    "external": ("#009e73", "-", "external"),
    "efficient-published": ("#0072b2", ":", "efficient, published order"),
    "table1-efficient": ("#0072b2", "--", "efficient, Table 1"),
    "efficient": ("#000000", "-", "efficient"),
}
"""Colour (Okabe and Ito's, safe for the colour-blind), line and label; most expensive first.

Dashed is the paper's Table 1, dotted the order a mechanism was published in, solid what runs here.
"""


class _Quantity(NamedTuple):
    """What one panel shows, and how to get it."""

    title: str
    closed: Callable[[Resources], float]
    measured: Callable[[Measured], float]


def resource_plot(report: VolumeReport) -> NDArray[np.uint8]:
    """Draw closed forms as lines and what was measured as points, on logarithmic axes.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    itemsize = DTYPES[report.dtype].itemsize
    quantities = (
        _Quantity("Bytes; points: measured peak", lambda r: r.bytes(itemsize), _peak),
        _Quantity("Operations; points: counted products", lambda r: r.operations, _products),
    )
    figure = Figure(figsize=(15, 8), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for axes, quantity in zip(panels, quantities, strict=True):
        _lines(axes, report, quantity)
        _volumes(axes, report)
        _dress(axes, quantity.title)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=12)
    title = f"Attention on one volume, d = {report.channels}, d_k = {report.key_channels}"
    figure.suptitle(f"{title}, {report.dtype}", size=16, weight="bold", color=_INK)
    figure.subplots_adjust(left=0.055, right=0.985, top=0.79, bottom=0.215, wspace=0.12)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), np.uint8)[..., :3].copy()


def _peak(measured: Measured) -> float:
    return measured.peak_bytes


def _products(measured: Measured) -> float:
    return measured.products


def _lines(axes: Axes, report: VolumeReport, quantity: _Quantity) -> None:
    """A line a case over all sizes asked for, and its measured points.

    Some coincide: each is drawn thinner than the one before, so that all of them show.
    """
    counts = [row.positions for row in report.rows]
    span = max(2.0, min(counts) / 2), max(counts) * 2.0
    positions = [int(count) for count in np.geomspace(*span, 60)]
    asked = {row.case for row in report.rows}
    shown = [case for case in _STYLES if case in asked]
    for width, case in zip(np.linspace(4.5, 1.5, len(shown)), shown, strict=True):
        colour, line, label = _STYLES[case]
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
    """A hairline at every volume asked for, its sides above."""
    for volume, count in {row.volume: row.positions for row in report.rows}.items():
        axes.axvline(count, color=_FAINT, linewidth=1, zorder=0)
        axes.text(
            count, 1.015, volume, transform=axes.get_xaxis_transform(), rotation=55, color=_INK,
            fontsize=11, ha="left", va="bottom", rotation_mode="anchor",
        )  # fmt: skip


def _dress(axes: Axes, title: str) -> None:
    axes.set(xscale="log", yscale="log")
    axes.set_title(title, size=13, color=_INK, pad=70, loc="left")
    axes.set_xlabel("positions n", size=12, color=_INK)
    axes.margins(x=0)
    axes.tick_params(labelsize=11, colors=_INK, which="both")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(EngFormatter(sep=" "))
        axis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(numticks=12))
    axes.grid(True, axis="y", color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
