"""An ablation as a picture: means with deviations, and every seed."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ea_psmnet.reports.ablation import Ablation

__all__ = ["ablation_plot"]

_INK, _BLUE, _RED = "#222222", "#0072b2", "#b00020"


def ablation_plot(ablation: Ablation) -> NDArray[np.uint8]:
    """EPE of every variant, a panel for each test set.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    tests = ablation.tests or [""]
    height = 1.8 + 0.45 * len(ablation.variants)
    figure = Figure(figsize=(3 + 4.5 * len(tests), height), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(tests), squeeze=False, sharey=True)[0]
    for axes, test in zip(panels, tests, strict=True):
        for place, variant in enumerate(ablation.variants):
            _row(axes, ablation, variant, test, place)
        axes.set_xlabel(f"EPE in pixels: {test}", color=_INK)
        axes.grid(True, axis="x", color="#eeeeee")
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    panels[0].set_yticks(range(len(ablation.variants)), ablation.variants)
    panels[0].set_ylim(len(ablation.variants) - 0.5, -0.7)
    figure.suptitle(f"Ablation: {ablation.question}", weight="bold", color=_INK)
    figure.tight_layout()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), np.uint8)[..., :3].copy()


def _row(axes: Axes, ablation: Ablation, variant: str, test: str, place: int) -> None:
    """Mean and deviation, the seeds as small dots, and how many have no figure."""
    values = list(ablation.values(variant, test, "EPE").values())
    spread = ablation.spread(variant, test, "EPE")
    axes.plot(values, [place] * len(values), ".", color=_BLUE, alpha=0.5, markersize=6)
    if spread.mean is not None:
        error = spread.deviation or 0
        axes.errorbar(spread.mean, place, xerr=error, fmt="o", color=_BLUE, capsize=4)
    lost = len(ablation.of(variant)) - len(values)
    if lost:
        axes.text(
            0.99, place - 0.15, f"{lost} of {lost + len(values)} not finite", color=_RED,
            transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=9,
        )  # fmt: skip
