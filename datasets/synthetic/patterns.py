"""Procedural images that tile seamlessly, from which the textures of surfaces are made.

Each pattern draws an (S, S) grey or an (S, S, 3) colour image in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]
SIZE = 512
"""Side of every image in texels."""


def spectral_noise(rng: np.random.Generator, slope: float, stretch: float = 1.0) -> Picture:
    """Gaussian noise with amplitude proportional to frequency to the power of `-slope`."""
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
    """Sine waves distorted by noise, or contour lines of noise as in wood."""
    x, y = _grid()
    bend = spectral_noise(rng, rng.uniform(1.5, 2.2), float(np.exp(rng.uniform(-1.2, 1.2))))
    phase = rng.integers(0, 8) * x + rng.integers(0, 8) * y + rng.uniform(2, 12) * bend
    wave = phase - np.floor(phase) if rng.random() < 0.5 else 0.5 + 0.5 * np.sin(2 * np.pi * phase)
    return (0.8 * wave + 0.2 * spectral_noise(rng, 0.8)).astype(np.float32)


def bricks(rng: np.random.Generator) -> Picture:
    """A brick wall with joints; each brick has its own shade."""
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
    """Parallel stripes of random widths and colours, sometimes crossed as in tartan."""

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
    # A point in the margin has another label than its copy: identify points by their shade.
    shades = rng.uniform(0, 1, (SIZE, SIZE, 3)).astype(np.float32)
    where = np.argwhere(wrapped == 0)
    order = np.zeros(label.max() + 1, int)
    order[label[where[:, 0], where[:, 1]]] = np.arange(len(where))
    origin = (where[order[label[inner, inner]]] - SIZE // 4) % SIZE
    return shades[origin[..., 0], origin[..., 1]] * (1 - 0.5 * np.clip(distance, 0, 1)[..., None])


def fabric(rng: np.random.Generator) -> Picture:
    """Woven threads of uneven brightness."""
    x, y = _grid()
    threads = int(rng.integers(16, 80))
    weave = np.sin(2 * np.pi * threads * x) * np.sin(2 * np.pi * threads * y * rng.choice([1, 2]))
    uneven = spectral_noise(rng, 0.8, 4.0) + spectral_noise(rng, 0.8, 0.25)
    return (0.25 + 0.2 * weave + 0.3 * uneven).astype(np.float32).clip(0, 1)


def leaves(rng: np.random.Generator) -> Picture:
    """Overlapping ellipses and polygons of all sizes, with image statistics like photographs."""
    canvas = np.full((SIZE, SIZE, 3), rng.uniform(0, 1), np.float32)
    sizes = np.exp(rng.uniform(np.log(rng.uniform(2, 8)), np.log(rng.uniform(30, 110)), 500))
    tint = rng.uniform(0, 1, 3) * rng.uniform(0, 0.8)
    corners = int(rng.choice([0, 0, 3, 4, 6]))
    steps = np.linspace(0, 2 * np.pi, corners or 20, endpoint=False)
    circle = np.stack([np.cos(steps), np.sin(steps)], 1)
    for size in np.sort(sizes)[::-1]:
        colour = (rng.uniform(0, 1, 3) * 0.4 + rng.uniform(0, 0.6)) * (1 - tint)
        spot = rng.uniform(0, SIZE, 2)
        axes, turn = size * rng.uniform(0.3, 1, 2), rng.uniform(0, 2 * np.pi)
        spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        _fill_wrapped(canvas, (axes * circle) @ spin.T + spot, colour)
    return canvas


def _fill_wrapped(canvas: Picture, ring: np.ndarray, colour: np.ndarray) -> None:
    """Fill a polygon, and its copies shifted by one image side that overlap the image."""
    ends = zip(ring.min(0).tolist(), ring.max(0).tolist(), strict=True)
    copies = (-SIZE, 0, SIZE)
    shifts = ([s for s in copies if low + s < SIZE and high + s > 0] for low, high in ends)
    for shift in product(*shifts):
        sixteenths = np.round((ring + shift) * 16).astype(np.int32)
        cv2.fillPoly(canvas, [sixteenths], colour.tolist(), cv2.LINE_AA, 4)


def writing(rng: np.random.Generator) -> Picture:
    """Lines of random characters of different sizes."""
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
    """Thin lines over smooth noise."""
    canvas = (0.35 + 0.5 * spectral_noise(rng, 1.6)).astype(np.float32)
    for _ in range(int(rng.integers(40, 400))):
        start, length = rng.integers(0, SIZE, 2), rng.normal(0, rng.uniform(20, 120), 2)
        end = (start + length).astype(int)
        shade = float(rng.uniform(0, 1))
        width = int(rng.integers(1, 4))
        cv2.line(canvas, start.tolist(), end.tolist(), shade, width, cv2.LINE_AA)
    return canvas


def facade(rng: np.random.Generator) -> Picture:
    """Rows of windows with frames, some of them brighter."""
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


def _colours(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw (count, 3) colours around a common tone."""
    tone = rng.uniform(0.1, 0.9, 3)
    return (tone + rng.normal(0, 0.25, (count, 3))).clip(0, 1).astype(np.float32)


def planks(rng: np.random.Generator) -> Picture:
    """Wooden boards with grain and dark joints; each board is cut from another place."""
    count = int(rng.choice([1, 4, 8, 16]))
    # Noise stretched along the rows, and rings where the grain bends.
    streaks = spectral_noise(rng, rng.uniform(0.9, 1.5), rng.uniform(3, 8))
    bend = spectral_noise(rng, 1.9, rng.uniform(2, 5))
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(5, 25) * bend)
    wood = (0.65 * streaks + 0.35 * rings).astype(np.float32)
    high = SIZE // count
    for board in range(count):
        rows = slice(board * high, (board + 1) * high)
        wood[rows] = np.roll(wood[rows], int(rng.integers(SIZE)), 1) * rng.uniform(0.75, 1.05)
        if count > 1:
            wood[rows.start : rows.start + max(1, high // 40)] *= rng.uniform(0.2, 0.7)
            if rng.random() < 0.5:  # where two boards meet end to end
                end = int(rng.integers(SIZE - 3))
                wood[rows, end : end + 2] *= 0.4
    return wood


def plaster(rng: np.random.Generator) -> Picture:
    """Two coats of different smoothness, the upper one with patches missing."""
    level = rng.uniform(0.35, 0.6)
    patches = spectral_noise(rng, rng.uniform(1.2, 2.0))
    edge = ((patches - level) * rng.uniform(8, 60)).clip(0, 1)[..., None]
    low, high = _colours(rng, 2)
    under = low * (0.6 + 0.8 * spectral_noise(rng, rng.uniform(0.2, 1.0))[..., None])
    over = high * (0.85 + 0.3 * spectral_noise(rng, rng.uniform(0.5, 2.0))[..., None])
    return (under + (over - under) * edge).clip(0, 1).astype(np.float32)


def lawn(rng: np.random.Generator) -> Picture:
    """Thousands of short strokes of similar colours: grass, fur, straw or carpet."""
    dark, bright = _colours(rng, 2)
    canvas = np.full((SIZE, SIZE, 3), dark * 0.6, np.float32)
    lean, length = rng.uniform(0, np.pi), rng.uniform(6, 40)
    for _ in range(3000):
        start = rng.integers(0, SIZE, 2)
        turn = lean + rng.normal(0, 0.5)
        end = start + length * rng.uniform(0.5, 1.5) * np.array([np.cos(turn), np.sin(turn)])
        colour = dark + (bright - dark) * rng.random() * rng.uniform(0.6, 1.2)
        cv2.line(canvas, start.tolist(), end.astype(int).tolist(), colour.tolist(), 1, cv2.LINE_AA)
    return canvas


def slope(rng: np.random.Generator) -> Picture:
    """A smooth gradient, as of a sky, enamel or a lampshade."""
    soft = spectral_noise(rng, rng.uniform(2.5, 3.5))[..., None]
    low, high = _colours(rng, 2)
    return (low + (high - low) * soft).astype(np.float32)


def collage(rng: np.random.Generator) -> Picture:
    """Overlapping shaded pieces of other patterns, as on a crowded shelf."""
    canvas = np.full((SIZE, SIZE, 3), rng.uniform(0.1, 0.9), np.float32)
    sources = [_inked(rng, make(rng)) for make in (leaves, marble, plaster)]
    for _ in range(int(rng.integers(30, 90))):
        source = sources[int(rng.integers(len(sources)))]
        high, wide = np.exp(rng.uniform(np.log(16), np.log(240), 2)).astype(int)
        top, left = rng.integers(0, SIZE - high), rng.integers(0, SIZE - wide)
        row, column = rng.integers(0, SIZE - high), rng.integers(0, SIZE - wide)
        first, last = rng.uniform(0.4, 1.1, 2)
        shade = np.linspace(first, last, wide, dtype=np.float32)[:, None]
        piece = source[row : row + high, column : column + wide] * shade
        canvas[top : top + high, left : left + wide] = piece
    return canvas.clip(0, 1)


def _inked(rng: np.random.Generator, picture: Picture) -> Picture:
    """Map a grey image to a range between two colours; return a colour image unchanged."""
    if picture.ndim == 3:
        return picture
    low, high = _colours(rng, 2)
    return low + (high - low) * picture[..., None]


def newspaper(rng: np.random.Generator) -> Picture:
    """Columns of small print with headlines and pictures, black on white or coloured."""
    paper, ink, spot = _colours(rng, 3)
    if rng.random() < 0.6:
        paper, ink = np.full(3, 0.93, np.float32), np.full(3, 0.1, np.float32)
    page = np.tile(paper, (SIZE, SIZE, 1)).astype(np.float32)
    columns = int(rng.integers(2, 6))
    wide = SIZE // columns
    source = cv2.resize(_inked(rng, leaves(rng) if rng.random() < 0.5 else clouds(rng)), (200, 200))
    for column in range(columns):
        y, left = int(rng.integers(0, 30)), column * wide + 4
        while y < SIZE - 40:
            kind = rng.random()
            if kind < 0.25:
                high = int(rng.integers(30, 130))
                inset = cv2.resize(np.roll(source, y, 0), (wide - 8, high))[: SIZE - y]
                page[y : y + high, left : left + wide - 8] = 0.8 * inset + 0.2 * spot
            else:
                high = _lines(rng, page, (left, y, wide - 8), ink, headline=kind > 0.8)
            y += high + int(rng.integers(4, 16))
    return page


def _lines(
    rng: np.random.Generator,
    page: Picture,
    place: tuple[int, int, int],
    ink: np.ndarray,
    *,
    headline: bool,
) -> int:
    """Draw lines of random letters from `place` (x, y, width); return their height."""
    left, top, wide = place
    scale = rng.uniform(0.7, 1.4) if headline else rng.uniform(0.25, 0.4)
    pitch, count = int(32 * scale), 1 if headline else int(rng.integers(4, 16))
    block = np.zeros((pitch * count + 8, wide), np.uint8)
    for line in range(count):
        text = "".join(chr(code) for code in rng.integers(97, 123, 60))
        text = "".join(" " if rng.random() < 0.17 else letter for letter in text)
        foot = (0, int(pitch * (line + 0.8)))
        cv2.putText(block, text, foot, 2 if headline else 0, scale, 255, 1 + headline, cv2.LINE_AA)
    block = block[: SIZE - top]
    share = (block / np.float32(255))[..., None]
    area = page[top : top + len(block), left : left + wide]
    area += (ink - area) * share
    return pitch * count


def wallpaper(rng: np.random.Generator) -> Picture:
    """A repeated motif, in rows or staggered: the hardest pattern to match."""
    repeats = int(rng.choice([4, 8, 16, 32]))
    side = SIZE // repeats
    ground, *inks = _colours(rng, 4)
    motif = np.tile(ground, (128, 128, 1)).astype(np.float32)
    for ink in inks[: int(rng.integers(1, 4))]:
        corners = int(rng.integers(3, 9))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radii = rng.uniform(8, 54, corners)[:, None]
        ring = rng.uniform(50, 78, 2) + radii * np.stack([np.cos(angles), np.sin(angles)], 1)
        cv2.fillPoly(motif, [np.round(ring).astype(np.int32)], ink.tolist(), cv2.LINE_AA)
    small = cv2.resize(motif, (side, side), interpolation=cv2.INTER_AREA)
    rows = [np.tile(small, (1, repeats, 1)) for _ in range(2)]
    if rng.random() < 0.5:
        rows[1] = np.roll(rows[1], side // 2, 1)
    return np.tile(np.concatenate(rows), (repeats // 2, 1, 1))


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
    planks: 6,
    plaster: 5,
    lawn: 4,
    slope: 4,
    collage: 6,
    newspaper: 4,
    wallpaper: 6,
}
"""Number of images of each pattern in an atlas; the order decides the random draws."""
