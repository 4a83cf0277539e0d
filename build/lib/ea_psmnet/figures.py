"""Pictures for reports: one style of plots, and images in a grid with captions and colour bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ea_psmnet.files import printable

__all__ = [
    "COLOURS",
    "FAINT",
    "INK",
    "WARNING",
    "Bar",
    "GridStyle",
    "Row",
    "dress",
    "fitted",
    "new_figure",
    "panel_grid",
    "to_image",
]

Image = NDArray[np.uint8]
"""(h, w, 3) RGB."""

INK, FAINT, WARNING = "#222222", "#eeeeee", "#b00020"
"""Colours of text, of grids, and of what needs attention, such as a limit."""

COLOURS = (
    "#000000", "#0072b2", "#d55e00", "#e69f00", "#cc79a7", "#009e73", "#56b4e9", "#888888",
)  # fmt: skip
"""Colours of lines: the palette of Okabe and Ito, safe for the colour-blind."""

_DPI = 100


# Plots --------------------------------------------------------------------------------------------


def new_figure(width: float, height: float) -> Figure:
    """A white matplotlib figure, in units of 100 pixels; without pyplot and its global state."""
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def to_image(figure: Figure) -> Image:
    """Draw a figure as (h, w, 3) uint8 RGB."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg), "made by `new_figure`"
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), np.uint8)[..., :3].copy()


def dress(
    axes: Axes,
    *,
    title: str = "",
    x: str = "",
    y: str = "",
    grid: Literal["x", "y", "both"] = "both",
    pad: float | None = None,
    hide: Sequence[str] = ("top", "right"),
) -> None:
    """Give axes the common style.

    Args:
        axes: The axes, with or without lines.
        title: Title at the upper left.
        x: Label of the x axis.
        y: Label of the y axis.
        grid: Axes whose ticks get grid lines.
        pad: Distance of the title from the axes, in points.
        hide: Sides whose frame is not drawn.
    """
    axes.set_title(title, size=13, color=INK, loc="left", pad=pad)
    axes.set_xlabel(x, size=11, color=INK)
    axes.set_ylabel(y, size=11, color=INK)
    axes.tick_params(labelsize=10, colors=INK, which="both")
    axes.grid(True, axis=grid, color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in hide:
        axes.spines[side].set_visible(False)


# Images with captions, placed in pixels -----------------------------------------------------------

_BAR = 22
_BAR_STRIP, _BAR_GAP = 92, 18
"""Pixels: height of a colour bar, of the strip that holds it and its label, and above the bar."""


class Bar(NamedTuple):
    """A colour bar."""

    label: str
    colours: ScalarMappable
    ticks: Sequence[float] | None = None


class _Canvas:
    """A figure addressed in pixels from its top left corner."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._figure = new_figure(width / _DPI, height / _DPI)

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write one line whose middle is at height y."""
        # Not parsed as mathematics: names of files may hold dollar signs.
        style |= {"color": INK, "va": "center", "parse_math": False}
        self._figure.text(*self._share(x, y), printable(text), **style)

    def image(self, x: int, y: int, image: Image) -> None:
        """Place an (h, w, 3) image, pixel for pixel."""
        self._figure.figimage(image, x, self._height - y - image.shape[0], origin="upper")

    def bar(self, x: int, y: int, width: int, bar: Bar) -> None:
        """Draw a colour bar with its ticks and its label below."""
        left, bottom = self._share(x, y + _BAR)
        axes = self._figure.add_axes((left, bottom, width / self._width, _BAR / self._height))
        colorbar = self._figure.colorbar(
            bar.colours, cax=axes, orientation="horizontal", ticks=bar.ticks, format="%g"
        )
        colorbar.set_label(bar.label, size=13, color=INK)
        colorbar.outline.set_visible(False)
        axes.tick_params(labelsize=12, colors=INK)

    def pixels(self) -> Image:
        """The picture, (height, width, 3) RGB."""
        return to_image(self._figure)

    def _share(self, x: float, y: float) -> tuple[float, float]:
        """Pixels from the top left corner as matplotlib's fractions from the bottom left."""
        return x / self._width, 1 - y / self._height


class GridStyle(NamedTuple):
    """Lengths of a grid of images, in pixels, and font sizes."""

    width: int
    """Width of a column."""
    gap: int
    """Space between columns and around the grid."""
    row_gap: int
    """Space below a row."""
    line: int
    """Height of a line of text."""
    size: float
    """Font size of captions."""
    title: int
    """Height of the title."""
    title_size: float
    """Font size of the title."""


class Row(NamedTuple):
    """One row of a grid."""

    images: Sequence[Image]
    """Images of one height, at most as wide as the columns."""
    headings: Sequence[str] = ()
    """A line above the captions: texts at the columns, which may run over several."""
    captions: Sequence[str] = ()
    """A caption above every image."""


def panel_grid(
    rows: Sequence[Row],
    style: GridStyle,
    *,
    title: str = "",
    details: str = "",
    columns: Sequence[str] = (),
    bars: Sequence[Bar | None] = (),
) -> Image:
    """Draw images in rows and columns.

    Args:
        rows: The rows, from top to bottom.
        style: Lengths and font sizes.
        title: A line above everything; nothing leaves no space for it.
        details: A second line below the title.
        columns: A name above every column.
        bars: Colour bars below the columns; None leaves a column without.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    count = max(len(row.images) for row in rows)
    steps = [_row_height(row, style) for row in rows]
    top = (style.title if title else 0) + (style.line if columns else 0)
    height = top + sum(steps) + (_BAR_STRIP if bars else 0)
    places = [style.gap + column * (style.width + style.gap) for column in range(count)]
    canvas = _Canvas(style.gap + count * (style.width + style.gap), height)
    if title:
        middle = style.title * (1 / 3 if details else 0.6)
        canvas.text(style.gap, middle, title, size=style.title_size, weight="bold")
        canvas.text(style.gap, 0.7 * style.title, details, size=style.size)
    for x, name in zip(places, columns, strict=False):
        canvas.text(x, top - style.line / 2, name, size=style.size, style="italic")
    y = top
    for row, step in zip(rows, steps, strict=True):
        _draw_row(canvas, row, style, places, y)
        y += step
    for x, bar in zip(places, bars, strict=False):
        if bar is not None:
            canvas.bar(x, y + _BAR_GAP, style.width, bar)
    return canvas.pixels()


def _row_height(row: Row, style: GridStyle) -> int:
    lines = bool(row.headings) + bool(row.captions)
    return lines * style.line + row.images[0].shape[0] + style.row_gap


def _draw_row(canvas: _Canvas, row: Row, style: GridStyle, places: Sequence[int], y: int) -> None:
    for texts, weight in ((row.headings, "bold"), (row.captions, "normal")):
        for x, text in zip(places, texts, strict=False):
            canvas.text(x, y + style.line / 2, text, size=style.size, weight=weight)
        y += style.line if texts else 0
    for x, image in zip(places, row.images, strict=False):
        canvas.image(x, y, image)


def fitted(
    image: Image, width: int, height: int = 2**15, interpolation: int = cv2.INTER_NEAREST
) -> Image:
    """Resize an image to the largest size within a width and a height that keeps its shape.

    Args:
        image: (H, W, 3).
        width: Largest width, in pixels.
        height: Largest height, in pixels.
        interpolation: One of OpenCV's; averages would darken sparse ground truth to black.
    """
    rows, columns = image.shape[:2]
    scale = min(width / columns, height / rows)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)
