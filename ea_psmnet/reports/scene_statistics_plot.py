"""The histograms of generated scenes and of other frames, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["statistics_plot"]

_INK = "#222222"
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7")


def statistics_plot(
    sets: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    disparity_bins: NDArray[np.float64],
    gradient_bins: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """Draw the disparity and gradient histograms of some sets.

    Args:
        sets: For each label the shares of the pixels in the bins of disparity and of gradient.
        disparity_bins: Edges of the bins in pixels.
        gradient_bins: Edges of the bins in grey levels a pixel.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    figure = Figure(figsize=(11, 4), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for (label, (disparity, gradient)), colour in zip(sets.items(), _COLOURS, strict=False):
        left.stairs(np.array(disparity) * 100, disparity_bins, label=label, color=colour, lw=1.6)
        right.stairs(np.array(gradient) * 100, gradient_bins, label=label, color=colour, lw=1.6)
    left.set_yscale("log")
    right.set_xscale("log")
    _label(left, "disparity in pixels")
    _label(right, "gradient of the left image, grey levels a pixel")
    left.legend(frameon=False)
    figure.tight_layout()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), np.uint8)[..., :3].copy()


def _label(axes: Axes, name: str) -> None:
    axes.set_xlabel(name, color=_INK)
    axes.set_ylabel("% of pixels", color=_INK)
    axes.grid(True, color="#eeeeee")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
