"""Pictures of the network benchmark: where time goes, and how time and memory grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter
from numpy.typing import NDArray

from ea_psmnet.reports.network_cases import NetworkCase
from ea_psmnet.reports.network_results import NetworkResults, Record

__all__ = ["growth_plot", "layer_plot"]

_SHADES = {
    "features": ("#08306b", "#4292c6", "#c6dbef"),
    "volume": ("#d55e00", "#d55e00"),
    "aggregation": ("#00441b", "#41ab5d", "#c7e9c0"),
    "head": ("#cc79a7", "#cc79a7"),
}
"""From the first to the last layer of a step."""
_LINES = {"plain": ("#d55e00", "plain"), "fast": ("#0072b2", "fast")}


def layer_plot(results: NetworkResults) -> NDArray[np.uint8]:
    """A bar a case of inference, stacked by layer, grouped by size; (h, w, 3) uint8 RGB."""
    records = [r for r in results.records if r.measured.layers]
    largest = max(r.case.max_disparity for r in records)
    records = [r for r in records if r.case.max_disparity == largest]
    sizes = sorted({r.case.size for r in records}, key=lambda size: -size[0] * size[1])[:2]
    figure = Figure(figsize=(15, 6.5), dpi=100, facecolor="white")
    panels = np.atleast_1d(figure.subplots(1, len(sizes)))
    for axes, size in zip(panels, sizes, strict=True):
        _bars(axes, [r for r in records if r.case.size == size])
        axes.set_title(f"{size[0]} x {size[1]}, D = {largest}", loc="left")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", frameon=False, reverse=True)
    figure.subplots_adjust(left=0.05, right=0.82, top=0.93, bottom=0.14, wspace=0.15)
    return _drawn(figure)


def _bars(axes: Axes, records: Sequence[Record]) -> None:
    names = [
        f"{r.case.form}\n{'kept' if r.case.keep_memory else 'default'}\n{r.case.network}"
        for r in records
    ]
    bottom = np.zeros(len(records))
    for layer, colour in _colours(list(records[0].measured.layers)).items():
        heights = np.array([r.measured.layers.get(layer, 0.0) for r in records])
        axes.bar(names, heights, bottom=bottom, color=colour, label=layer, width=0.7)
        bottom += heights
    axes.set_ylabel("seconds")
    _undress(axes)


def _colours(layers: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Shades of its step's colours for each layer."""
    found: dict[str, NDArray[np.float64]] = {}
    for step, shades in _SHADES.items():
        own = [layer for layer in layers if layer.startswith(f"{step}/")]
        scale = LinearSegmentedColormap.from_list(step, shades)
        found |= {layer: np.array(scale(i / max(1, len(own) - 1))) for i, layer in enumerate(own)}
    return found


def growth_plot(results: NetworkResults) -> NDArray[np.uint8]:
    """Time and memory against pixels and against disparities, log-log; (h, w, 3) uint8 RGB."""
    figure = Figure(figsize=(13, 9), dpi=100, facecolor="white")
    records = [r for r in results.records if not r.case.training and r.case.network == "psmnet"]
    deepest = max(r.case.max_disparity for r in records)
    size = max(
        sorted({r.case.size for r in records}),
        key=lambda s: len({r.case.max_disparity for r in records if r.case.size == s}),
    )
    by_pixels = [r for r in records if r.case.max_disparity == deepest]
    by_disparities = [r for r in records if r.case.size == size]
    across: list[tuple[str, list[Record], Callable[[NetworkCase], int]]] = [
        (f"pixels, D = {deepest}", by_pixels, lambda case: case.size[0] * case.size[1]),
        (f"disparities, {size[0]} x {size[1]}", by_disparities, lambda case: case.max_disparity),
    ]
    panels = figure.subplots(2, 2)
    for column, (label, chosen, place) in enumerate(across):
        _lines(panels[0, column], chosen, place, "seconds", lambda r: r.measured.seconds)
        _lines(panels[1, column], chosen, place, "peak, bytes", lambda r: max(1, r.measured.peak))
        panels[1, column].set_xlabel(label)
    panels[0, 0].legend(frameon=False)
    figure.subplots_adjust(left=0.08, right=0.98, top=0.97, bottom=0.07, wspace=0.2, hspace=0.15)
    return _drawn(figure)


def _lines(
    axes: Axes,
    records: Sequence[Record],
    place: Callable[[NetworkCase], int],
    label: str,
    value: Callable[[Record], float],
) -> None:
    for form, (colour, name) in _LINES.items():
        for kept, line in ((True, "-"), (False, "--")):
            chosen = [r for r in records if r.case.form == form and r.case.keep_memory == kept]
            points = sorted((place(r.case), value(r)) for r in chosen)
            if points:
                allocator = "kept" if kept else "default allocator"
                axes.plot(
                    *zip(*points, strict=True),
                    line,
                    marker="o",
                    color=colour,
                    label=f"{name}, {allocator}",
                )
    axes.set(xscale="log", yscale="log", ylabel=label)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(EngFormatter(sep=" "))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="both", color="#eeeeee", linewidth=0.8)
    _undress(axes)


def _undress(axes: Axes) -> None:
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _drawn(figure: Figure) -> NDArray[np.uint8]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), np.uint8)[..., :3].copy()
