"""The curves of a run as one picture: loss, error, learning rate, validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from ea_psmnet.files import atomic_path

__all__ = ["binned", "write_curves"]

_INK, _LINE = "#222222", "#0072b2"
_BANDS = ("#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#888888")
"""Okabe and Ito's, safe for the colour-blind."""
_BINS = 200
"""Points of a curve; a long run has more steps than a picture has columns."""

Records = Sequence[dict[str, Any]]


def write_curves(path: Path, records: Records) -> None:
    """Draw the records of a `metrics.jsonl` as a PNG, atomically.

    A training curve is a mean over bins of steps, with the tenth to ninetieth percentile around it.
    """
    steps = [record for record in records if record["kind"] == "step"]
    validations = [record for record in records if record["kind"] == "validation"]
    figure = Figure(figsize=(13, 8), dpi=100, facecolor="white")
    (loss, epe), (rate, validation) = figure.subplots(2, 2)
    figure.subplots_adjust(
        left=0.06, right=0.985, top=0.955, bottom=0.065, hspace=0.25, wspace=0.14
    )
    _training(loss, steps, "loss", "Training loss")
    _training(epe, steps, "epe", "Training EPE, px")
    _training(rate, steps, "lr", "Learning rate", logarithmic=False)
    _validation(validation, validations)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def binned(values: NDArray[np.floating], bins: int = _BINS) -> NDArray[np.float64]:
    """Means, tenth and ninetieth percentiles of consecutive values, NaN left out.

    Args:
        values: (N,), at least one.
        bins: of almost equally many values, in order.

    Returns:
        (3, min(bins, N)); NaN where a bin holds nothing else.
    """
    parts = [part[np.isfinite(part)] for part in np.array_split(values, min(bins, len(values)))]
    columns = [(p.mean(), *np.quantile(p, (0.1, 0.9))) if p.size else (np.nan,) * 3 for p in parts]
    return np.array(columns, np.float64).T


def _training(
    axes: Axes, steps: Records, name: str, title: str, *, logarithmic: bool = True
) -> None:
    taken = np.array([record["step"] for record in steps], np.float64)
    if len(steps):
        at, (mean, low, high) = binned(taken)[0], binned(_column(steps, name))
        axes.fill_between(at, low, high, color=_LINE, alpha=0.2, linewidth=0)
        axes.plot(at, mean, color=_LINE, linewidth=1.6, marker="" if len(at) > 30 else ".")
    _dress(axes, title, logarithmic=logarithmic)
    if not logarithmic:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:g}")


def _validation(axes: Axes, validations: Records) -> None:
    """EPE over all pixels, thick, and by true disparity, thin; a ring is the best."""
    at = [record["step"] for record in validations]
    bands = list(validations[0]["by_range"]) if validations else []
    for band, colour in zip(bands, _BANDS, strict=False):
        values = _column([record["by_range"].get(band, {}) for record in validations], "EPE")
        if np.isfinite(values).any():
            axes.plot(at, values, color=colour, marker=".", linewidth=1, label=band)
    total = _column(validations, "EPE")
    if np.isfinite(total).any():
        axes.plot(at, total, color="black", marker=".", linewidth=2, label="all pixels")
        best = int(np.nanargmin(total))
        axes.plot(at[best], total[best], "o", color="black", markersize=11, fillstyle="none")
        axes.legend(frameon=False, fontsize=9, ncols=2)
    _dress(axes, "Validation EPE, px", logarithmic=True)


def _column(records: Records, name: str) -> NDArray[np.float64]:
    """(N,), NaN where a record has no number."""
    return np.array([record.get(name) for record in records], np.float64)


def _dress(axes: Axes, title: str, *, logarithmic: bool) -> None:
    axes.set_title(title, size=13, color=_INK, loc="left")
    axes.set_xlabel("steps", size=11, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if not axes.lines:
        axes.text(0.5, 0.5, "no figures", transform=axes.transAxes, ha="center", color=_INK)
    elif logarithmic and all((_heights(axes) > 0).tolist()):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=10, colors=_INK, which="both")
    axes.grid(True, color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _heights(axes: Axes) -> NDArray[np.float64]:
    """Every finite height that is drawn."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in axes.lines])
    return drawn[np.isfinite(drawn)]
