"""More pictures that tile: planks, plaster, lawns, and what is printed on paper and cloth."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from datasets.synthetic.patterns import SIZE, Picture, clouds, leaves, marble, spectral_noise


def _colours(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3) colours around a common tone."""
    tone = rng.uniform(0.1, 0.9, 3)
    return (tone + rng.normal(0, 0.25, (count, 3))).clip(0, 1).astype(np.float32)


def planks(rng: np.random.Generator) -> Picture:
    """Boards of wood: streaks along the grain, each board cut from another place, dark joints."""
    count = int(rng.choice([1, 4, 8, 16]))
    # Noise that is drawn out along the rows, and rings where the grain bends.
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
    """Two coats of different smoothness; the upper one has come off in patches."""
    level = rng.uniform(0.35, 0.6)
    patches = spectral_noise(rng, rng.uniform(1.2, 2.0))
    edge = ((patches - level) * rng.uniform(8, 60)).clip(0, 1)[..., None]
    low, high = _colours(rng, 2)
    under = low * (0.6 + 0.8 * spectral_noise(rng, rng.uniform(0.2, 1.0))[..., None])
    over = high * (0.85 + 0.3 * spectral_noise(rng, rng.uniform(0.5, 2.0))[..., None])
    return (under + (over - under) * edge).clip(0, 1).astype(np.float32)


def lawn(rng: np.random.Generator) -> Picture:
    """Thousands of short strokes of like colours: grass, fur, straw or a carpet."""
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
    """Hardly more than soft shades: skies, enamel, the screen of a lamp."""
    soft = spectral_noise(rng, rng.uniform(2.5, 3.5))[..., None]
    low, high = _colours(rng, 2)
    return (low + (high - low) * soft).astype(np.float32)


def collage(rng: np.random.Generator) -> Picture:
    """Pieces of other pictures side by side and over one another, each shaded: a crowded shelf."""
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
    """A grey picture between two colours; a coloured one as it is."""
    if picture.ndim == 3:
        return picture
    low, high = _colours(rng, 2)
    return low + (high - low) * picture[..., None]


def newspaper(rng: np.random.Generator) -> Picture:
    """Columns of small print with headlines and pictures, in black on white or in colours."""
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
    """Lines of random letters from `place` (x, y, width) on; returns their height."""
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
    """One motif over and over, in rows or staggered: the hardest pattern to match."""
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


PRINTS: dict[Callable[[np.random.Generator], Picture], int] = {
    planks: 6,
    plaster: 5,
    lawn: 4,
    slope: 4,
    collage: 6,
    newspaper: 4,
    wallpaper: 6,
}
"""How many pictures of each an atlas holds."""
