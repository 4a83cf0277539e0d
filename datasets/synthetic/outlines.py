"""Silhouettes of cards: which points of the square [-1, 1]² belong to the card."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from datasets.synthetic.scene import Outline
from datasets.synthetic.stencils import FAMILIES, inside_stencil


def _disc(x: Tensor, y: Tensor, rows: list[list[float]]) -> Tensor:
    """An ellipse that touches the rectangle's sides."""
    return x * x + y * y <= 1


def _blob(x: Tensor, y: Tensor, rows: list[list[float]]) -> Tensor:
    """A closed curve with waves: row (amplitude, waves, phase, -) each adds one harmonic."""
    angle = torch.atan2(y, x)
    radius = torch.full_like(x, 1 - sum(abs(row[0]) for row in rows))
    for amplitude, waves, phase, _ in rows:
        radius += amplitude * torch.cos(waves * angle + phase)
    return x * x + y * y <= radius * radius


def _foliage(x: Tensor, y: Tensor, rows: list[list[float]]) -> Tensor:
    """Leaves and holes: the sum of plane waves (kx, ky, phase, level) is above the mean level."""
    total = torch.zeros_like(x)
    for kx, ky, phase, level in rows:
        total += torch.sin(kx * x + ky * y + phase) - level
    return (total >= 0) & (x * x + y * y <= 1)


def _lattice(x: Tensor, y: Tensor, rows: list[list[float]]) -> Tensor:
    """Bars: row (cells a unit in x, in y, width, phase) each adds one family of bars."""
    covered = torch.zeros_like(x, dtype=torch.bool)
    for per_x, per_y, width, phase in rows:
        position = per_x * x + per_y * y + phase
        covered |= position - torch.floor(position) < width
    return covered


def _stencil(x: Tensor, y: Tensor, rows: list[list[float]]) -> Tensor:
    """Drawn: the one row is (number of the stencil, -, -, -)."""
    return inside_stencil(int(rows[0][0]), x, y)


_INSIDE: dict[str, Callable[[Tensor, Tensor, list[list[float]]], Tensor]] = {
    "disc": _disc,
    "blob": _blob,
    "foliage": _foliage,
    "lattice": _lattice,
    "stencil": _stencil,
}


def covers(outline: Outline | None, x: Tensor, y: Tensor) -> Tensor:
    """Whether the points (x, y) of the card's plane belong to it, as (N,) booleans."""
    inside = (x.abs() <= 1) & (y.abs() <= 1)
    if outline is None or outline.kind == "rectangle":
        return inside
    # A ray along the plane meets it nowhere, at coordinates that are no numbers.
    x, y = x.where(inside, 0.0), y.where(inside, 0.0)
    return inside & _INSIDE[outline.kind](x, y, outline.coefficients.tolist())


def draw_outline(rng: np.random.Generator, kind: str) -> Outline:
    """Draw the coefficients of an outline of this kind."""
    if kind == "blob":
        count = int(rng.integers(2, 6))
        amplitude = rng.uniform(0.03, 0.5 / count, count)
        waves = rng.integers(2, 10, count)
        rows = np.stack([amplitude, waves, rng.uniform(0, 2 * np.pi, count), 0 * waves], 1)
    elif kind == "foliage":
        count = 6
        pace = np.exp(rng.uniform(np.log(6), np.log(22))) * rng.uniform(0.6, 1.5, count)
        angle = rng.uniform(0, np.pi, count)
        level = np.full(count, rng.uniform(-0.15, 0.1))
        phase = rng.uniform(0, 2 * np.pi, count)
        rows = np.stack([pace * np.cos(angle), pace * np.sin(angle), phase, level], 1)
    elif kind == "lattice":
        cells = np.exp(rng.uniform(np.log(2), np.log(10)))
        width = rng.uniform(0.12, 0.45)
        first = rng.uniform(0, np.pi) if rng.random() < 0.5 else 0.0
        turns = [first, first + np.pi / 2][: int(rng.integers(1, 3))]
        rows = np.array([[cells * np.cos(a), cells * np.sin(a), width, 0.3] for a in turns])
    elif kind == "stencil":
        family = str(rng.choice(list(FAMILIES)))
        return draw_stencil(rng, family)
    else:
        rows = np.zeros((0, 4))
    return Outline(kind, rows.astype(np.float64))


def draw_stencil(rng: np.random.Generator, family: str) -> Outline:
    """One of the stencils of a family, which is a key of `FAMILIES`."""
    number = rng.choice(FAMILIES[family])
    return Outline("stencil", np.array([[number, 0.0, 0.0, 0.0]]))
