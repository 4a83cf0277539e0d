"""A picture made of images, captions and colour bars, placed in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ea_psmnet.files import printable

__all__ = ["Bar", "Canvas"]

_BAR = 22  # a colour bar's height
_DPI = 100
_INK = "#222222"


class Bar(NamedTuple):
    """A colour bar to draw under panels."""

    label: str
    colours: ScalarMappable
    ticks: Sequence[float] | None = None


class Canvas:
    """A matplotlib figure addressed in pixels from its top left corner; no pyplot, no state."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        self._agg = FigureCanvasAgg(self._figure)

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write one line; y is its middle."""
        # Not parsed as mathematics: names of files may hold dollar signs.
        style |= {"color": _INK, "va": "center", "parse_math": False}
        self._figure.text(*self._share(x, y), printable(text), **style)

    def image(self, x: int, y: int, image: NDArray[np.uint8]) -> None:
        """Place an (h, w, 3) image, pixel for pixel."""
        self._figure.figimage(image, x, self._height - y - image.shape[0], origin="upper")

    def bar(self, x: int, y: int, width: int, bar: Bar) -> None:
        """Draw a colour bar with its ticks and label below."""
        left, bottom = self._share(x, y + _BAR)
        axes = self._figure.add_axes((left, bottom, width / self._width, _BAR / self._height))
        colorbar = self._figure.colorbar(
            bar.colours, cax=axes, orientation="horizontal", ticks=bar.ticks, format="%g"
        )
        colorbar.set_label(bar.label, size=13, color=_INK)
        colorbar.outline.set_visible(False)
        axes.tick_params(labelsize=12, colors=_INK)

    def pixels(self) -> NDArray[np.uint8]:
        """The picture, (height, width, 3) RGB."""
        self._agg.draw()
        return np.asarray(self._agg.buffer_rgba(), np.uint8)[..., :3].copy()

    def _share(self, x: float, y: float) -> tuple[float, float]:
        """Pixels from the top left corner as matplotlib's shares from the bottom left."""
        return x / self._width, 1 - y / self._height
