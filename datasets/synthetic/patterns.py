"""Procedural pictures that tile: the raw material of every surface of a scene.

Each pattern draws one (S, S) grey picture in [0, 1] or one (S, S, 3) colour picture in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]
SIZE = 512
"""Side of every picture in texels."""


def spectral_noise(rng: np.random.Generator, slope: float, stretch: float = 1.0) -> Picture:
    """Gaussian noise whose amplitude falls with frequency to the power of `-slope`."""
    fy = np.fft.fftfreq(SIZE)[:, None] * SIZE
    fx = np.fft.rfftfreq(SIZE)[None, :] * SIZE
    frequency = np.hypot(fx * stretch, fy / stretch)
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((SIZE, SIZE))) * frequency**-slope
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(SIZE, SIZE))
    return np.clip(0.5 + noise / (4 * noise.std()), 0, 1).astype(np.float32)


def _grid() -> tuple[Picture, Picture]:
    axis = np.arange(SIZE, dtype=np.float32) / SIZE
    return np.broadcast_to(axis, (SIZE, SIZE)), np.broadcast_to(axis[:, None], (SIZE, SIZE))


def clouds(rng: np.random.Generator) -> Picture:
    """Fractal noise, from rough to smooth."""
    return spectral_noise(rng, rng.uniform(0.6, 2.2), float(np.exp(rng.uniform(-0.7, 0.7))))


def marble(rng: np.random.Generator) -> Picture:
    """Sine waves bent by noise, or the contour lines of noise, as in wood."""
    x, y = _grid()
    bend = spectral_noise(rng, rng.uniform(1.5, 2.2), float(np.exp(rng.uniform(-1.2, 1.2))))
    phase = rng.integers(0, 8) * x + rng.integers(0, 8) * y + rng.uniform(2, 12) * bend
    wave = phase - np.floor(phase) if rng.random() < 0.5 else 0.5 + 0.5 * np.sin(2 * np.pi * phase)
    return (0.8 * wave + 0.2 * spectral_noise(rng, 0.8)).astype(np.float32)


def bricks(rng: np.random.Generator) -> Picture:
    """Courses of bricks with joints; each brick has its own shade."""
    x, y = _grid()
    rows, columns = 2 * int(rng.integers(2, 11)), int(rng.integers(2, 9))
    row = np.floor(y * rows)
    column = x * columns + rng.choice([0.0, 0.5, 1 / 3]) * (row % 2)
    shades = rng.uniform(0.3, 1.0, (rows, columns)).astype(np.float32)
    shade = shades[row.astype(int), np.floor(column).astype(int) % columns]
    joint = rng.uniform(0.03, 0.12)
    gap = ((y * rows) % 1 < joint * rows / columns) | (column % 1 < joint)
    return (np.where(gap, rng.uniform(0, 1), shade) + spectral_noise(rng, 0.7) * 0.3 - 0.15).clip(
        0, 1
    )


def tiles(rng: np.random.Generator) -> Picture:
    """A chessboard, or squares of random colours."""
    cells = 2 * int(rng.integers(2, 13))
    if rng.random() < 0.4:
        board = np.indices((cells, cells)).sum(0) % 2 * np.ones((3, 1, 1))
    else:
        board = rng.uniform(0, 1, (3, cells, cells))
    colours = board.transpose(1, 2, 0).astype(np.float32)
    return cv2.resize(colours, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST).astype(np.float32)


def stripes(rng: np.random.Generator) -> Picture:
    """Parallel stripes of random widths and colours, sometimes crossed as in a tartan."""

    def bands() -> Picture:
        edges = np.sort(rng.integers(0, SIZE // repeat, int(rng.integers(1, 10))))
        band = np.searchsorted(edges, np.arange(SIZE) % (SIZE // repeat))
        return rng.uniform(0, 1, (len(edges) + 1, 3)).astype(np.float32)[band]

    repeat = int(rng.choice([1, 2, 4, 8]))
    across = np.broadcast_to(bands()[None], (SIZE, SIZE, 3))
    if rng.random() < 0.5:
        return across
    return ((across + bands()[:, None]) / 2).astype(np.float32)


def cells(rng: np.random.Generator) -> Picture:
    """Voronoi cells: pebbles, cracks or spots."""
    count = int(np.exp(rng.uniform(np.log(20), np.log(900))))
    points = rng.integers(0, SIZE, (count, 2))
    mask = np.ones((SIZE, SIZE), np.uint8)
    mask[points[:, 0], points[:, 1]] = 0
    wrapped = np.pad(mask, SIZE // 4, mode="wrap")
    distance, label = cv2.distanceTransformWithLabels(
        wrapped, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    inner = slice(SIZE // 4, -SIZE // 4)
    distance = distance[inner, inner] / (SIZE / np.sqrt(count))
    style = rng.integers(3)
    if style == 0:
        return np.clip(distance * 1.4, 0, 1).astype(np.float32)
    if style == 1:
        return 0.9 * (distance < rng.uniform(0.2, 0.45)).astype(np.float32)
    # The label of a point in the margin differs from its twin's: name points by their shade.
    shades = rng.uniform(0, 1, (SIZE, SIZE, 3)).astype(np.float32)
    where = np.argwhere(wrapped == 0)
    order = np.zeros(label.max() + 1, int)
    order[label[where[:, 0], where[:, 1]]] = np.arange(len(where))
    origin = (where[order[label[inner, inner]]] - SIZE // 4) % SIZE
    return shades[origin[..., 0], origin[..., 1]] * (1 - 0.5 * np.clip(distance, 0, 1)[..., None])


def fabric(rng: np.random.Generator) -> Picture:
    """A weave of threads of uneven brightness."""
    x, y = _grid()
    threads = int(rng.integers(16, 80))
    weave = np.sin(2 * np.pi * threads * x) * np.sin(2 * np.pi * threads * y * rng.choice([1, 2]))
    uneven = spectral_noise(rng, 0.8, 4.0) + spectral_noise(rng, 0.8, 0.25)
    return (0.25 + 0.2 * weave + 0.3 * uneven).astype(np.float32).clip(0, 1)


def leaves(rng: np.random.Generator) -> Picture:
    """Overlapping ellipses and polygons of all sizes, whose statistics are those of photographs."""
    canvas = np.full((SIZE, SIZE, 3), rng.uniform(0, 1), np.float32)
    sizes = np.exp(rng.uniform(np.log(rng.uniform(2, 8)), np.log(rng.uniform(30, 110)), 500))
    tint = rng.uniform(0, 1, 3) * rng.uniform(0, 0.8)
    corners = int(rng.choice([0, 0, 3, 4, 6]))
    for size in np.sort(sizes)[::-1]:
        colour = (rng.uniform(0, 1, 3) * 0.4 + rng.uniform(0, 0.6)) * (1 - tint)
        spot = rng.uniform(0, SIZE, 2)
        axes, turn = size * rng.uniform(0.3, 1, 2), rng.uniform(0, 2 * np.pi)
        steps = np.linspace(0, 2 * np.pi, corners or 20, endpoint=False)
        ring = np.stack([axes[0] * np.cos(steps), axes[1] * np.sin(steps)], 1)
        spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        _fill_wrapped(canvas, ring @ spin.T + spot, size, colour)
    return canvas


def _fill_wrapped(canvas: Picture, ring: np.ndarray, size: float, colour: np.ndarray) -> None:
    """Fill a polygon and those of its copies one picture away that reach into this one."""
    for copy in product((-SIZE, 0, SIZE), repeat=2):
        moved = ring + np.array(copy)
        if (moved.min(0) < SIZE).all() and (moved.max(0) > 0).all():
            sixteenths = np.round(moved * 16).astype(np.int32)
            cv2.fillPoly(canvas, [sixteenths], colour.tolist(), cv2.LINE_AA, 4)


def writing(rng: np.random.Generator) -> Picture:
    """Lines of random characters, from headlines to small print."""
    page = np.full((SIZE, SIZE), 255, np.uint8)
    size, y = float(np.exp(rng.uniform(np.log(0.35), np.log(2.5)))), 0
    while y < SIZE:
        scale = size * float(rng.choice([1, 1, 1, 1.6]))
        y += int(34 * scale)
        text = "".join(chr(code) for code in rng.integers(33, 123, 90))
        font = int(rng.choice([0, 2, 3, 4, 6]))
        thickness = max(1, round(scale * rng.uniform(1, 3)))
        start = (int(rng.integers(-40, 40)), y)
        cv2.putText(page, text, start, font, scale, int(rng.integers(90)), thickness, cv2.LINE_AA)
    ink = 255 - page if rng.random() < 0.3 else page
    return (ink / 255).astype(np.float32)


def scratches(rng: np.random.Generator) -> Picture:
    """Thin lines over soft noise."""
    canvas = (0.35 + 0.5 * spectral_noise(rng, 1.6)).astype(np.float32)
    for _ in range(int(rng.integers(40, 400))):
        start, length = rng.integers(0, SIZE, 2), rng.normal(0, rng.uniform(20, 120), 2)
        end = (start + length).astype(int)
        shade = float(rng.uniform(0, 1))
        width = int(rng.integers(1, 4))
        cv2.line(canvas, start.tolist(), end.tolist(), shade, width, cv2.LINE_AA)
    return canvas


def facade(rng: np.random.Generator) -> Picture:
    """Rows of windows with frames, some of them lit or curtained."""
    rows, columns = int(rng.integers(2, 6)), int(rng.integers(2, 7))
    wall = np.full((SIZE, SIZE, 3), 1, np.float32) * rng.uniform(0.4, 0.95, 3).astype(np.float32)
    wall *= 0.8 + 0.4 * spectral_noise(rng, 1.2)[..., None]
    high, wide = SIZE / rows, SIZE / columns
    share = rng.uniform(0.35, 0.75, 2)
    frame, dark = rng.uniform(0.2, 1, 3), rng.uniform(0, 0.3, 3)
    for row in range(rows):
        for column in range(columns):
            middle = np.array([(column + 0.5) * wide, (row + 0.5) * high])
            reach = share * (wide, high) / 2
            for grow, colour in ((4, frame), (0, dark + rng.uniform(0, 0.5) * rng.random(3))):
                first, last = middle - reach - grow, middle + reach + grow
                first, last = first.astype(int).tolist(), last.astype(int).tolist()
                cv2.rectangle(wall, first, last, colour.tolist(), -1)
            bar = np.round([[middle[0], middle[1] + end * reach[1]] for end in (-1, 1)])
            top, bottom = bar.astype(int).tolist()
            cv2.line(wall, top, bottom, frame.tolist(), 3)
    return wall.clip(0, 1)


PATTERNS: dict[Callable[[np.random.Generator], Picture], int] = {
    clouds: 10,
    leaves: 16,
    cells: 9,
    marble: 6,
    bricks: 5,
    tiles: 4,
    stripes: 5,
    fabric: 4,
    writing: 6,
    scratches: 4,
    facade: 5,
}
"""How many pictures of each pattern an atlas holds."""
