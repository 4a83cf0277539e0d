"""Silhouettes of cards: formulas and drawn stencils that say which points of [-1, 1]² belong.

A stencil (wires, twigs, leaves, letters, wheels, meshes) is stored as the signed distance to its
edge, so that the edge stays sharp at any scale.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ea_psmnet.datasets.synthetic.scene import Outline


def _disc(x: Tensor, y: Tensor, rows: list[list[float]]) -> Tensor:
    """An ellipse that touches the sides of the rectangle."""
    return x * x + y * y <= 1


def _blob(x: Tensor, y: Tensor, rows: list[list[float]]) -> Tensor:
    """A wavy closed curve: each row (amplitude, waves, phase, -) adds a harmonic."""
    angle = torch.atan2(y, x)
    radius = torch.full_like(x, 1 - sum(abs(row[0]) for row in rows))
    for amplitude, waves, phase, _ in rows:
        radius += amplitude * torch.cos(waves * angle + phase)
    return x * x + y * y <= radius * radius


def _foliage(x: Tensor, y: Tensor, rows: list[list[float]]) -> Tensor:
    """Leaves and holes: where the sum of plane waves (kx, ky, phase, level) is above the level."""
    total = torch.zeros_like(x)
    for kx, ky, phase, level in rows:
        total += torch.sin(kx * x + ky * y + phase) - level
    return (total >= 0) & (x * x + y * y <= 1)


def _lattice(x: Tensor, y: Tensor, rows: list[list[float]]) -> Tensor:
    """Bars: each row (cells per unit in x, in y, width, phase) adds parallel bars."""
    covered = torch.zeros_like(x, dtype=torch.bool)
    for per_x, per_y, width, phase in rows:
        position = per_x * x + per_y * y + phase
        covered |= position - torch.floor(position) < width
    return covered


def _stencil(x: Tensor, y: Tensor, rows: list[list[float]]) -> Tensor:
    """A drawn stencil: the only row is (index of the stencil, -, -, -)."""
    return inside_stencil(int(rows[0][0]), x, y)


_INSIDE: dict[str, Callable[[Tensor, Tensor, list[list[float]]], Tensor]] = {
    "disc": _disc,
    "blob": _blob,
    "foliage": _foliage,
    "lattice": _lattice,
    "stencil": _stencil,
}


def covers(outline: Outline | None, x: Tensor, y: Tensor) -> Tensor:
    """Return (N,) whether the points (x, y) of the card's plane belong to the card."""
    inside = (x.abs() <= 1) & (y.abs() <= 1)
    if outline is None or outline.kind == "rectangle":
        return inside
    # The coordinates are NaN for a ray parallel to the plane.
    x, y = x.where(inside, 0.0), y.where(inside, 0.0)
    return inside & _INSIDE[outline.kind](x, y, outline.coefficients.tolist())


def draw_outline(rng: np.random.Generator, kind: str) -> Outline:
    """Draw an outline of a kind with random coefficients."""
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
    """Draw a stencil of a family, a key of `FAMILIES`."""
    number = rng.choice(FAMILIES[family])
    return Outline("stencil", np.array([[number, 0.0, 0.0, 0.0]]))


Mask = NDArray[np.uint8]
SIDE = 256
"""Side of a stencil's distance field in cells."""
_FINE = 2 * SIDE
"""Side of the mask that a stencil is made from, in pixels."""
_SEED = 20210106
"""Fixed, so that every process draws the same stencils."""
_REACH = 16.0
"""Largest distance from the edge in the field, in cells."""


def _blank() -> Mask:
    return np.zeros((_FINE, _FINE), np.uint8)


def _stroke(mask: Mask, points: np.ndarray, width: float, ink: int = 255) -> None:
    """Draw a line through `points` (N, 2), columns and rows as shares of the side."""
    sixteenths = np.round(points * _FINE * 16).astype(np.int32)
    cv2.polylines(mask, [sixteenths], False, ink, max(1, round(width * _FINE)), cv2.LINE_8, 4)


def _fill(mask: Mask, points: np.ndarray, ink: int = 255) -> None:
    cv2.fillPoly(mask, [np.round(points * _FINE * 16).astype(np.int32)], ink, cv2.LINE_8, 4)


def _ellipse(centre: np.ndarray, axes: np.ndarray, turn: float) -> np.ndarray:
    steps = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = np.stack([axes[0] * np.cos(steps), axes[1] * np.sin(steps)], 1)
    c, s = np.cos(turn), np.sin(turn)
    return ring @ np.array([[c, s], [-s, c]]) + centre


def wires(rng: np.random.Generator) -> Mask:
    """A few bent wires or cables."""
    mask = _blank()
    for _ in range(int(rng.integers(1, 5))):
        knots = np.linspace(0, 1, int(rng.integers(4, 8)))
        bend = rng.normal(0, 0.3, (len(knots), 2)).cumsum(0)
        bend = 0.5 + 0.44 * bend / np.abs(bend).max()
        steps = np.linspace(0, 1, 80)
        curve = np.stack([_smooth(steps, knots, bend[:, k]) for k in range(2)], 1)
        _stroke(mask, curve, rng.uniform(0.008, 0.03))
    return mask


def _smooth(steps: np.ndarray, knots: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Evaluate the polynomial through the knots at `steps`, clipped to the mask."""
    fitted = np.polynomial.Polynomial.fit(knots, values, len(knots) - 1)(steps)
    return np.clip(fitted, 0.02, 0.98)


def twigs(rng: np.random.Generator) -> Mask:
    """A bare branch that forks and thins."""
    mask = _blank()
    spread, shrink = rng.uniform(0.25, 0.7), rng.uniform(0.62, 0.8)
    ends = [(np.array([0.5, 0.99]), -np.pi / 2, rng.uniform(0.2, 0.3), rng.uniform(0.02, 0.04))]
    for _ in range(6):
        forks = []
        for start, heading, length, width in ends:
            step = length * np.array([np.cos(heading), np.sin(heading)])
            _stroke(mask, np.stack([start, start + step]), width)
            for side in (-1, 1):
                turn = heading + side * spread * rng.uniform(0.4, 1.4)
                reach = length * shrink * rng.uniform(0.8, 1.2)
                forks.append((start + step, turn, reach, max(width * 0.7, 0.006)))
        ends = forks
    return mask


def foliage(rng: np.random.Generator) -> Mask:
    """Many small leaves, more of them towards the middle."""
    mask = _blank()
    size = float(np.exp(rng.uniform(np.log(0.015), np.log(0.07))))
    thin = rng.uniform(0.25, 0.7)
    for _ in range(int(min(0.28 / (size * size * thin), 500))):
        centre = 0.5 + rng.uniform(0, 0.46) ** 0.8 * _heading(rng)
        axes = size * rng.uniform(0.6, 1.2) * np.array([1, thin])
        _fill(mask, _ellipse(centre, axes, rng.uniform(0, np.pi)))
    return mask


def _heading(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def frond(rng: np.random.Generator) -> Mask:
    """A stem with narrow leaves on both sides, as of a fern or a palm."""
    mask = _blank()
    sag = rng.uniform(-0.3, 0.3)
    height = np.linspace(0.98, 0.04, int(rng.integers(12, 40)))
    stem = np.stack([0.5 + sag * (1 - height) ** 2, height], 1)
    _stroke(mask, stem, 0.012)
    length, slope = rng.uniform(0.2, 0.42), rng.uniform(-0.6, 0.2)
    for k, foot in enumerate(stem):
        reach = length * np.sin(np.pi * (0.15 + 0.8 * k / len(stem)))
        for side in (-1, 1):
            tip = foot + reach * np.array([side, slope])
            middle = (foot + tip) / 2
            half = np.array([0, rng.uniform(0.006, 0.02)])
            _fill(mask, np.stack([foot, middle + half, tip, middle - half]))
    return mask


def grass(rng: np.random.Generator) -> Mask:
    """Blades of grass from the lower edge."""
    mask = _blank()
    width = rng.uniform(0.004, 0.016)
    for _ in range(int(rng.integers(25, 110))):
        foot = np.array([rng.uniform(0.1, 0.9), 1.0])
        tip = foot - np.array([rng.normal(0, 0.15), rng.uniform(0.35, 0.98)])
        knee = (foot + tip) / 2 + np.array([rng.normal(0, 0.04), 0])
        side = np.array([width, 0])
        _fill(mask, np.stack([foot - side, knee - side * 0.7, tip, knee + side * 0.7, foot + side]))
    return mask


def letters(rng: np.random.Generator) -> Mask:
    """One to four big characters."""
    mask = _blank()
    count = int(rng.integers(1, 5))
    text = "".join(rng.choice(list("ABCDEFGHKLMNOPRSTUVXYZ0123456789&?$@"), count))
    font, thick = int(rng.choice([0, 2, 3, 4])), int(rng.integers(12, 40))
    (wide, high), _ = cv2.getTextSize(text, font, 10.0, thick)
    canvas = np.zeros((high + 2 * thick, wide + 2 * thick), np.uint8)
    cv2.putText(canvas, text, (thick, high + thick // 2), font, 10.0, 255, thick)
    mask[:] = cv2.resize(canvas, (_FINE, _FINE), interpolation=cv2.INTER_AREA)
    return mask


def wheel(rng: np.random.Generator) -> Mask:
    """Rings with spokes, or a cog."""
    mask = _blank()
    middle, radius = np.full(2, 0.5), rng.uniform(0.4, 0.48)
    spokes, width = int(rng.integers(0, 19)), rng.uniform(0.006, 0.03)
    for angle in 2 * np.pi * np.arange(spokes) / max(spokes, 1):
        heading = np.array([np.cos(angle), np.sin(angle)])
        _stroke(mask, np.stack([middle, middle + radius * heading]), width)
    ring = _ellipse(middle, np.full(2, radius), 0)
    _stroke(mask, np.concatenate([ring, ring[:1]]), rng.uniform(0.015, 0.07))
    _fill(mask, _ellipse(middle, np.full(2, rng.uniform(0.02, 0.12)), 0))
    return mask


def mesh(rng: np.random.Generator) -> Mask:
    """A wire fence, a ladder, bars, or a window frame."""
    mask = _blank()
    width = rng.uniform(0.006, 0.025)
    lean = rng.choice([0.0, 0.0, rng.uniform(0.2, 1.2)])
    across, down = int(rng.integers(2, 16)), int(rng.integers(0, 16))
    for k in range(-across, 2 * across):
        foot = (k + 0.5) / across
        _stroke(mask, np.array([[foot, -0.02], [foot + lean, 1.02]]), width)
    for k in range(down if lean == 0 else across * 3):
        foot = (k + 0.5) / (across if lean else down)
        ends = [[foot, -0.02], [foot - lean, 1.02]] if lean else [[-0.02, foot], [1.02, foot]]
        _stroke(mask, np.array(ends), width * rng.uniform(0.8, 1.5))
    if rng.random() < 0.6:
        frame = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * 0.98 + 0.01
        _stroke(mask, frame, rng.uniform(0.02, 0.06))
    return mask


def shard(rng: np.random.Generator) -> Mask:
    """A star-shaped polygon with random corners, like a splinter or a rock."""
    mask = _blank()
    corners = int(rng.integers(5, 40))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = 0.49 * rng.uniform(rng.uniform(0.25, 0.85), 1, corners)
    _fill(mask, 0.5 + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1))
    return mask


def perforated(rng: np.random.Generator) -> Mask:
    """A plate with holes, in rows or at random."""
    mask = np.full((_FINE, _FINE), 255, np.uint8)
    rows = int(rng.integers(2, 12))
    size = rng.uniform(0.2, 0.44) / rows
    even = rng.random() < 0.5
    for row in range(rows):
        for column in range(rows):
            spot = (np.array([column, row]) + 0.5) / rows if even else rng.uniform(0.05, 0.95, 2)
            _fill(mask, _ellipse(spot, np.full(2, size), 0), 0)
    return mask


def gadget(rng: np.random.Generator) -> Mask:
    """A union of ellipses, plates and arms, like the profile of a tool or lamp."""
    mask = _blank()
    spot = rng.uniform(0.3, 0.7, 2)
    for _ in range(int(rng.integers(3, 8))):
        axes = np.exp(rng.uniform(np.log(0.03), np.log(0.2), 2))
        turn = rng.uniform(0, np.pi)
        ring = _ellipse(spot, axes, turn)
        _fill(mask, ring if rng.random() < 0.5 else ring[::6])
        after = rng.uniform(0.1, 0.9, 2)
        _stroke(mask, np.stack([spot, after]), rng.uniform(0.01, 0.05))
        spot = after
    return mask


STENCILS: dict[Callable[[np.random.Generator], Mask], int] = {
    wires: 8,
    twigs: 6,
    foliage: 10,
    frond: 4,
    grass: 5,
    letters: 8,
    wheel: 5,
    mesh: 8,
    shard: 5,
    perforated: 4,
    gadget: 8,
}
"""Number of stencils of each family; the order decides the random draws."""

FAMILIES: dict[str, range] = {}
"""Indices of the stencils of each family, by its name."""
for _painter, _count in STENCILS.items():
    _first = sum(len(numbers) for numbers in FAMILIES.values())
    FAMILIES[_painter.__name__] = range(_first, _first + _count)


def _field(mask: Mask) -> NDArray[np.float32]:
    """Return (SIDE, SIDE) distances to the edge of the mask in cells, positive inside.

    The mask is stretched to fill the square except for a margin.
    """
    x, y, wide, high = cv2.boundingRect(mask)
    filled = cv2.resize(mask[y : y + high, x : x + wide], (_FINE - 4, _FINE - 4))
    inside = np.pad((filled > 127).astype(np.uint8), 2)
    within, beyond = (cv2.distanceTransform(x, cv2.DIST_L2, 5) for x in (inside, 1 - inside))
    small = cv2.resize(within - beyond, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return (small * SIDE / _FINE).clip(-_REACH, _REACH).astype(np.float32)


@lru_cache(maxsize=4)
def _fields(device: torch.device) -> Tensor:
    """Return all distance fields, (stencils * SIDE * SIDE,) float32, on the device."""
    fields = []
    for family, (painter, count) in enumerate(STENCILS.items()):
        for copy in range(count):
            rng = np.random.Generator(np.random.PCG64([_SEED, family, copy]))
            fields.append(_field(painter(rng)))
    with torch.inference_mode(False):
        return torch.from_numpy(np.stack(fields)).flatten().to(device)


def inside_stencil(number: int, x: Tensor, y: Tensor) -> Tensor:
    """Return (N,) whether points (x, y) of the square [-1, 1]² are inside a stencil."""
    fields = _fields(x.device)
    column = ((x + 1) * (SIDE / 2) - 0.5).clamp(0, SIDE - 1.001)
    row = ((y + 1) * (SIDE / 2) - 0.5).clamp(0, SIDE - 1.001)
    left, top = column.to(torch.int32), row.to(torch.int32)
    fx, fy = column - left, row - top
    corner = number * SIDE * SIDE + top * SIDE + left
    a, b, c, d = (fields.index_select(0, corner + k) for k in (0, 1, SIDE, SIDE + 1))
    return torch.lerp(torch.lerp(a, b, fx), torch.lerp(c, d, fx), fy) > 0
