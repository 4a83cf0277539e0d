"""Attention maps as pictures: one sheet, a picture a map, and the numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from ea_psmnet.files import atomic_path, write_image
from ea_psmnet.inference.canvas import Bar, Canvas
from ea_psmnet.inference.outputs import colourise, disparity_bar
from ea_psmnet.reports.attention_maps import AttentionMaps

__all__ = ["map_picture", "map_sheet", "write_maps"]

Image = NDArray[np.uint8]

_SMALL, _LARGE = 320, 480  # a picture's longer side, in the sheet and alone
_FEW = 2  # so many maps are drawn large in the sheet too
_GAP, _LINE, _TITLE = 24, 28, 76
_CAPTION_WIDTH, _BAR_ROOM = 180, 84
_HEAT = colormaps["inferno"]
_RANGE = (1.0, 99.5)  # percentiles: a few hot positions must not darken all others
_CAPTIONS = ("maximum over disparity", "mean over disparity", "disparity of the peak")


def map_sheet(maps: AttentionMaps) -> Image:
    """Draw all maps over the left image in one grid, below the image and its prediction.

    A map has three pictures: its maximum and its mean over disparity, each in the colours of its
    own range, and the disparity at which it peaks, in the colours of the prediction.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    count = len(maps.maps)
    return _draw(maps, range(count), _LARGE if count <= _FEW else _SMALL)


def map_picture(maps: AttentionMaps, index: int) -> Image:
    """Draw one map as `map_sheet` does, larger."""
    return _draw(maps, [index], _LARGE)


def write_maps(folder: str | Path, maps: AttentionMaps) -> list[Path]:
    """Write `sheet.png`, `maps.npz` and, for every map, `map_00.png` and so on.

    All or nothing: the files appear once all are complete. Pictures of further maps, as an earlier
    run with more key channels left them, are removed then; other files stay.

    Returns:
        The paths, in that order.

    Raises:
        OSError: a file cannot be written.
    """
    names = [f"map_{index:02d}.png" for index in range(len(maps.maps))]
    paths = [Path(folder) / name for name in ("sheet.png", "maps.npz", *names)]
    with ExitStack() as stack:
        sheet, numbers, *pictures = (stack.enter_context(atomic_path(path)) for path in paths)
        write_image(sheet, map_sheet(maps))
        _write_numbers(numbers, maps)
        for index, picture in enumerate(pictures):
            write_image(picture, map_picture(maps, index))
    for path in Path(folder).iterdir():
        if re.fullmatch(r"map_\d{2,}\.png", path.name) and path not in paths and path.is_file():
            path.unlink()
    return paths


def _write_numbers(path: Path, maps: AttentionMaps) -> None:
    """The raw maps, and what places them over the image; loads without pickle."""
    np.savez(
        path,
        maps=maps.maps,
        stride=maps.stride,
        padding_top_right=maps.padding,
        image_height_width=maps.left.shape[:2],
        pixel=() if maps.pixel is None else maps.pixel,
        site=maps.site,
        mechanism=maps.mechanism,
        normalisation=maps.normalisation,
        added=maps.added,
        constant=maps.constant,
    )


# Drawing: cells of three pictures in a grid, all lengths in pixels --------------------------------


class _Layout(NamedTuple):
    """Where cells lie; a cell is a heading, three captions and three pictures."""

    height: int
    width: int
    columns: int
    """Cells in a row."""

    @property
    def step(self) -> int:
        """From a picture to the next in its cell."""
        return max(self.width, _CAPTION_WIDTH) + _GAP // 3

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of a cell with its margin."""
        return 2 * _LINE + self.height + _GAP, 3 * self.step + _GAP

    @property
    def header(self) -> int:
        """Height of title, left image, prediction and colour bars."""
        return _TITLE + _LINE + max(self.height, 2 * _BAR_ROOM) + _GAP

    def corner(self, index: int) -> tuple[int, int]:
        """Where a cell begins, (x, y)."""
        row, column = divmod(index, self.columns)
        return _GAP + column * self.cell[1], self.header + row * self.cell[0]


def _layout(shape: tuple[int, ...], count: int, side: int) -> _Layout:
    scale = side / max(shape[:2])
    height, width = (max(1, round(length * scale)) for length in shape[:2])
    cell_height, cell_width = _Layout(height, width, 1).cell
    columns = round((count * cell_height / cell_width) ** 0.5)  # about as wide as high
    return _Layout(height, width, max(1, columns))


def _draw(maps: AttentionMaps, indices: Sequence[int], side: int) -> Image:
    layout = _layout(maps.left.shape, len(indices), side)
    rows = -(-len(indices) // layout.columns)
    canvas = Canvas(
        width=_GAP + layout.columns * layout.cell[1], height=layout.header + rows * layout.cell[0]
    )
    _draw_header(canvas, maps, layout)
    for place, index in enumerate(indices):
        x, y = layout.corner(place)
        canvas.text(x, y + _LINE / 2, _heading(maps, index), size=12, weight="bold")
        pictures = zip(_CAPTIONS, _pictures(maps, index), strict=True)
        _draw_row(canvas, maps, layout, (x, y + _LINE), list(pictures))
    return canvas.pixels()


def _draw_header(canvas: Canvas, maps: AttentionMaps, layout: _Layout) -> None:
    canvas.text(_GAP, _TITLE / 3, f"{maps.site}: {_what(maps)}", size=16, weight="bold")
    depth, height, width = maps.maps.shape[1:]
    details = (
        f"volume of {depth} x {height} x {width} at 1/{maps.stride}; {_weights(maps)}; "
        "extent: exp(entropy) over the number of positions"
    )
    canvas.text(_GAP, _TITLE / 3 + _LINE, details, size=12)
    top = maps.stride * depth
    pictures = [
        ("left image", maps.left),
        ("predicted disparity", colourise(maps.disparity, 0, top)),
    ]
    _draw_row(canvas, maps, layout, (_GAP, _TITLE), pictures)
    heat = ScalarMappable(Normalize(0, 1), _HEAT)
    bars = [
        Bar("attention, each picture's range", heat, ()),
        Bar("disparity in pixels", disparity_bar(0, top).colours),
    ]
    for row, bar in enumerate(bars):
        y = _TITLE + _LINE + row * max(_BAR_ROOM, layout.height // 2)
        canvas.bar(_GAP + 2 * layout.step, y, layout.step - _GAP // 3, bar)


def _draw_row(
    canvas: Canvas,
    maps: AttentionMaps,
    layout: _Layout,
    corner: tuple[int, int],
    pictures: Sequence[tuple[str, Image]],
) -> None:
    x, y = corner
    for caption, picture in pictures:
        canvas.text(x, y + _LINE / 2 - 2, caption, size=11)
        size = (layout.width, layout.height)
        resized = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
        canvas.image(x, y + _LINE, _marked(resized, maps))
        x += layout.step


def _pictures(maps: AttentionMaps, index: int) -> tuple[Image, Image, Image]:
    """Maximum, mean and disparity of the peak over the grey left image, each (H, W, 3)."""
    depth = maps.maps.shape[1]
    peaks = colourise(maps.over_image(maps.peak(index)), 0, maps.stride * depth)
    opaque = np.full(peaks.shape[:2], 0.8, np.float32)
    return (
        _heat(maps, maps.maximum(index)),
        _heat(maps, maps.mean(index)),
        _blend(maps.left, peaks, opaque),
    )


def _heat(maps: AttentionMaps, plane: NDArray[np.float32]) -> Image:
    """Shares as heat: the brighter, the less of the image shines through."""
    shares = maps.over_image(plane, smooth=True)
    low, high = np.percentile(shares, _RANGE)
    level = np.clip((shares - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
    colours = (_HEAT(level)[..., :3] * 255).astype(np.uint8)
    return _blend(maps.left, colours, 0.45 + 0.45 * level)


def _blend(left: Image, colours: Image, opacity: NDArray[np.floating]) -> Image:
    grey = left.mean(axis=2, keepdims=True)
    mixed = grey + (colours - grey) * opacity[..., None]
    return np.rint(mixed).astype(np.uint8)


def _marked(picture: Image, maps: AttentionMaps) -> Image:
    """The picture with a cross at the pixel whose map is drawn."""
    if maps.pixel is None:
        return picture
    height, width = maps.left.shape[:2]
    x = round((maps.pixel[0] + 0.5) / width * picture.shape[1])
    y = round((maps.pixel[1] + 0.5) / height * picture.shape[0])
    marked = picture.copy()
    for colour, thickness in ((0, 5), (255, 2)):
        cv2.drawMarker(marked, (x, y), (colour,) * 3, cv2.MARKER_CROSS, 22, thickness)
    return marked


def _heading(maps: AttentionMaps, index: int) -> str:
    name = f"key channel {index}" if maps.pixel is None else f"pixel {maps.pixel}"
    extent = 100 * maps.extent(index)
    return f"{name}: up to {maps.height(index):,.1f} x uniform, extent {extent:.2g} %"


def _what(maps: AttentionMaps) -> str:
    if maps.pixel is None:
        return "global maps of efficient attention"
    return f"dot-product attention of pixel {maps.pixel}"


def _weights(maps: AttentionMaps) -> str:
    if maps.normalisation == "softmax":
        return "softmax over all positions"
    sign = "|K|" if maps.pixel is None else "|q K|"
    return f"normalisation '{maps.normalisation}' has signed weights: drawn is {sign} to sum 1"
