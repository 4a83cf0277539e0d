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
    """Give axes the common style, with a title at the upper left and labels of `x` and `y`.

    The ticks of the axes in `grid` get grid lines, the title is `pad` points above the axes, and
    the frame is not drawn at the sides in `hide`.
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
_SIDE_BAR, _SIDE_STRIP = 14, 74
"""Pixels: width of a colour bar beside a row, and of the strip that holds it and its ticks."""
_END = 42
"""Pixels for the meaning of an end of a colour bar."""


Extend = Literal["neither", "min", "max", "both"]


class Bar(NamedTuple):
    """A colour bar."""

    label: str
    colours: ScalarMappable
    ticks: Sequence[float] | None = None
    extend: Extend = "neither"
    """Ends that get an arrow: there are values beyond, in the colour of the end."""
    ends: tuple[str, str] = ("", "")
    """Meaning of the first and the last colour."""


class _Canvas:
    """A figure addressed in pixels from its top left corner."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._figure = new_figure(width / _DPI, height / _DPI)

    def text(
        self, x: float, y: float, text: str, *, room: float | None = None, **style: Any
    ) -> None:
        """Write one line whose middle is at height y, smaller if it is wider than `room`.

        It starts at x unless `ha` in the style, which has options of matplotlib's `Text`, says
        otherwise; by default it may extend to the right border.
        """
        # Not parsed as mathematics: names of files may hold dollar signs.
        style = {"color": INK, "va": "center", "parse_math": False, **style}
        line = self._figure.text(*self._share(x, y), printable(text), **style)
        room, length = self._width - x - 4 if room is None else room, line.get_window_extent().width
        if length > room:  # widths are not quite in proportion
            line.set_fontsize(0.95 * float(line.get_fontsize()) * room / length)

    def image(self, x: int, y: int, image: Image) -> None:
        """Place an (h, w, 3) image, pixel for pixel."""
        self._figure.figimage(image, x, self._height - y - image.shape[0], origin="upper")

    def bar(self, x: int, y: int, width: int, bar: Bar) -> None:
        """Draw a colour bar with its ticks, and its label below between those of its ends."""
        left, bottom = self._share(x, y + _BAR)
        axes = self._figure.add_axes((left, bottom, width / self._width, _BAR / self._height))
        self._colours(axes, bar, "horizontal", labelsize=12)
        middle = y + _BAR_STRIP - _BAR_GAP - 12
        room = width - (2 * _END if any(bar.ends) else 0)
        self.text(x + width / 2, middle, bar.label, room=room, size=13, ha="center")
        for place, text, side in zip((x, x + width), bar.ends, ("left", "right"), strict=True):
            self.text(place, middle, text, room=_END, size=13, ha=side, style="italic")

    def side_bar(self, x: int, y: int, height: int, bar: Bar) -> None:
        """Draw an upright colour bar with its ticks and its ends, without its label."""
        for place, text in zip((y + height + 11, y - 10), bar.ends, strict=True):
            self.text(x, place, text, size=10, style="italic")
        left, bottom = self._share(x, y + height)
        shape = _SIDE_BAR / self._width, height / self._height
        self._colours(self._figure.add_axes((left, bottom, *shape)), bar, "vertical", labelsize=10)

    def _colours(
        self,
        axes: Axes,
        bar: Bar,
        orientation: Literal["horizontal", "vertical"],
        labelsize: float,
    ) -> None:
        colorbar = self._figure.colorbar(
            bar.colours,
            cax=axes,
            orientation=orientation,
            ticks=bar.ticks,
            format="%g",
            extend=bar.extend,
        )
        colorbar.outline.set_visible(False)
        colorbar.minorticks_off()
        axes.tick_params(labelsize=labelsize, colors=INK)

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
    bar: Bar | None = None
    """A colour bar beside the last image."""


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
    beside = _SIDE_STRIP if any(row.bar for row in rows) else 0
    canvas = _Canvas(style.gap + count * (style.width + style.gap) + beside, height)
    if title:
        _draw_title(canvas, style, title, details)
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


def _draw_title(canvas: _Canvas, style: GridStyle, title: str, details: str) -> None:
    middle = style.title * (1 / 3 if details else 0.6)
    canvas.text(style.gap, middle, title, size=style.title_size, weight="bold")
    canvas.text(style.gap, 0.7 * style.title, details, size=style.size)


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
    if row.bar is not None:
        height, width = row.images[-1].shape[:2]
        canvas.side_bar(places[len(row.images) - 1] + width + style.gap, y, height, row.bar)


def fitted(
    image: Image, width: int, height: int = 2**15, interpolation: int = cv2.INTER_NEAREST
) -> Image:
    """Resize an (H, W, 3) image to the largest size within a width and a height, in its shape.

    The default interpolation is that of the nearest pixel: averages would darken sparse ground
    truth to black.
    """
    rows, columns = image.shape[:2]
    scale = min(width / columns, height / rows)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)
