"""The texture atlas: all textures and mip levels in one tensor, with filtered look-up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ea_psmnet.datasets.synthetic.patterns import PATTERNS, SIZE, Picture, spectral_noise
from ea_psmnet.files import IMAGE_SUFFIXES, read_image

_SEED = 20210105
"""Fixed, so that every process builds the same textures."""
_GRAINS = 8
"""Number of different grains; each texture has one of them, shifted at random."""
_LEVELS = SIZE.bit_length()
"""Number of mip levels, with sides 512, 256, ..., 1."""


class Atlas:
    """Textures of equal size that repeat, with trilinear filtering.

    A texel is four bytes (RGB and their mean) in one int32, so that a look-up gathers one number
    instead of three.
    """

    def __init__(self, pictures: Iterable[Picture], device: torch.device | str) -> None:
        """Build the mip levels of `pictures`, each (SIZE, SIZE, 3) in [0, 1]."""
        pyramids = [_pyramid(picture) for picture in pictures]
        texels = np.concatenate(pyramids)  # (M, 4) bytes
        self._texels = torch.from_numpy(texels).view(torch.int32)[:, 0].to(device)
        sides = torch.tensor([SIZE >> level for level in range(_LEVELS)])
        self._starts = torch.cat([torch.zeros(1, dtype=torch.int64), (sides**2).cumsum(0)[:-1]])
        self._starts = self._starts.to(torch.int32).to(device)
        self._stride = int((sides**2).sum())
        self._count = len(pyramids)

    def look_up(self, texture: Tensor, u: Tensor, v: Tensor, level: Tensor) -> Tensor:
        """Look up colours at texel positions.

        Args:
            texture: (N,) texture indices, taken modulo the number of textures.
            u: (N,) columns in texels of the finest level, of any size.
            v: (N,) rows in texels.
            level: (N,) mip level: base-2 logarithm of the number of texels that a sample covers.

        Returns:
            (3, N) float32 in [0, 1].
        """
        return torch.stack(self._trilinear(texture, u, v, level, (0, 1, 2)))

    def look_up_grey(self, texture: Tensor, u: Tensor, v: Tensor, level: Tensor) -> Tensor:
        """Look up the (N,) means of the three colours; faster than `look_up`."""
        return self._trilinear(texture, u, v, level, (3,))[0]

    def _trilinear(
        self, texture: Tensor, u: Tensor, v: Tensor, level: Tensor, channels: tuple[int, ...]
    ) -> list[Tensor]:
        base = (texture % self._count * self._stride).to(torch.int32)
        level = level.clamp(0, _LEVELS - 1.001)
        fine = level.to(torch.int32)
        blend = level - fine
        near = self._bilinear(base, u, v, fine, channels)
        far = self._bilinear(base, u, v, fine + 1, channels)
        return [torch.lerp(*pair, blend).div_(255) for pair in zip(near, far, strict=True)]

    def _bilinear(
        self, base: Tensor, u: Tensor, v: Tensor, level: Tensor, channels: tuple[int, ...]
    ) -> list[Tensor]:
        side = SIZE >> level
        share = side.float() / SIZE
        x, y = u * share - 0.5, v * share - 0.5
        left, top = torch.floor(x), torch.floor(y)
        fx, fy = x - left, y - top
        mask = side - 1
        x0, y0 = left.to(torch.int32), top.to(torch.int32)
        x1, y1 = (x0 + 1) & mask, (y0 + 1) & mask
        x0, y0 = x0 & mask, y0 & mask
        start = base + self._starts.index_select(0, level)
        row0, row1 = start + y0 * side, start + y1 * side
        corners = [self._fetch(row + column) for row in (row0, row1) for column in (x0, x1)]
        mixed = []
        for k in channels:
            a, b, c, d = (texels[:, k].float() for texels in corners)
            mixed.append(torch.lerp(torch.lerp(a, b, fx), torch.lerp(c, d, fx), fy))
        return mixed

    def _fetch(self, index: Tensor) -> Tensor:
        return self._texels.index_select(0, index).view(torch.uint8).view(-1, 4)


def _pyramid(picture: Picture) -> np.ndarray:
    """Return all mip levels of an image, concatenated as (M, 4) bytes."""
    levels = []
    for level in range(_LEVELS):
        side = SIZE >> level
        small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        rgb = np.round(small.clip(0, 1) * 255).reshape(-1, 3)
        grey = np.round(rgb @ np.ones(3, np.float32) / 3)
        levels.append(np.column_stack([rgb, grey]).astype(np.uint8))
    return np.concatenate(levels)


def _coloured(picture: Picture, rng: np.random.Generator) -> Picture:
    """Map a grey image to two to four random colours, and add fine grain to any image."""
    if picture.ndim == 2:
        count = int(rng.integers(2, 5))
        stops = np.linspace(0, 1, count)
        palette = rng.uniform(0, 1, 3) * 0.3 + rng.uniform(0, 0.7, (count, 1))
        palette = palette + rng.uniform(-0.25, 0.25, (count, 3))
        palette[[0, -1]] = np.sort(palette[[0, -1]], 0)[:: rng.choice([-1, 1])]
        picture = np.stack([np.interp(picture, stops, ink) for ink in palette.T], -1)
    grain = np.roll(_grains()[rng.integers(_GRAINS)], rng.integers(SIZE, size=2), (0, 1))
    # Stretched to full contrast, which materials reduce where needed.
    low, high = np.percentile(picture[::4, ::4], (2, 98))
    picture = 0.05 + 0.9 * (picture - low) / max(high - low, 0.1)
    return (picture + rng.uniform(0.02, 0.25) * grain[..., None]).astype(np.float32)


@lru_cache(maxsize=1)
def _grains() -> list[Picture]:
    """Return fine to coarse noise around 0, drawn once because Fourier transforms are slow."""
    rng = np.random.Generator(np.random.PCG64([_SEED, _GRAINS]))
    return [spectral_noise(rng, slope) - 0.5 for slope in np.linspace(0.2, 1.4, _GRAINS)]


def _procedural() -> Iterator[Picture]:
    """Yield the textures of `PATTERNS` one at a time, to save memory."""
    every = [
        (pattern, number, copy)
        for number, (pattern, count) in enumerate(PATTERNS.items())
        for copy in range(count)
    ]
    # Shuffled, so that neighbouring indices are different patterns.
    for k in np.random.Generator(np.random.PCG64(_SEED)).permutation(len(every)):
        pattern, number, copy = every[k]
        rng = np.random.Generator(np.random.PCG64([_SEED, number, copy]))
        yield _coloured(pattern(rng), rng)


def _photographs(folder: Path) -> list[Picture]:
    """Read the images below `folder`, sorted by path; files that cannot be read are skipped.

    Raises:
        FileNotFoundError: No image can be read.
    """
    pictures = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        with suppress(OSError, ValueError):
            pictures.append(_square(read_image(path, lambda _: None)))
    if not pictures:
        raise FileNotFoundError(
            f"{folder}: expected image files to use as textures "
            f"({', '.join(IMAGE_SUFFIXES)}), found none that can be read"
        )
    return pictures


def _square(image: np.ndarray) -> Picture:
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    middle = image[top : top + side, left : left + side]
    small = cv2.resize(middle, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return (small / 255).astype(np.float32)


@lru_cache(maxsize=2)
def load_atlas(textures: Path | None, device: str) -> Atlas:
    """Return the atlas of this process, built on the first call (a few seconds).

    The photographs in the folder `textures`, if given, are added to the procedural textures.
    """
    photographs = [] if textures is None else _photographs(textures)
    return Atlas(chain(_procedural(), photographs), device)
