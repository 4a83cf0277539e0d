"""What the attention at one place of a network looks at, for one pair: as numbers and pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray
from torch import Tensor, nn

from ea_psmnet.attention import DotProductAttention, EfficientAttention
from ea_psmnet.figures import Bar, Canvas
from ea_psmnet.files import atomic_path, write_image
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.inference.outputs import colourise, disparity_bar
from ea_psmnet.inference.pairs import as_pair
from ea_psmnet.models.psmnet import PSMNet
from ea_psmnet.ops.precision import widen

__all__ = [
    "AttentionMaps",
    "attention_maps",
    "attention_sites",
    "map_picture",
    "map_sheet",
    "write_maps",
]

Pixel = tuple[int, int]


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Maps over the positions of a cost volume, and where they lie in the left image.

    Shapes: k maps, (D', H', W') the volume at the site, (H, W) the left image.
    """

    site: str
    """Name of the place, as `hourglass1.encoder`."""
    mechanism: str
    """`efficient`: a map a key channel; `dot_product`: the one map of `pixel`."""
    normalisation: str
    """Of the module; other than with softmax the maps show sizes of signed weights."""
    maps: NDArray[np.float32]
    """(k, D', H', W'); each map sums to one."""
    stride: int
    """Image pixels a step of the volume, in disparity as in height and width."""
    left: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    disparity: NDArray[np.float32]
    """(H, W), the prediction, in pixels."""
    added: float
    """Size of what the module adds to its input, relative to that: the root of sums of squares."""
    constant: float
    """Which part of the added square sum is alike at every position, as a bias of the pair: at 1
    nothing depends on the position."""
    pixel: Pixel | None = None
    """(x, y) of the left image whose map this is; None for maps of the whole."""

    @property
    def padding(self) -> tuple[int, int]:
        """Image pixels above and to the right that the volume covers beyond the image."""
        rows, columns = (self.stride * side for side in self.maps.shape[2:])
        return rows - self.left.shape[0], columns - self.left.shape[1]

    def maximum(self, index: int) -> NDArray[np.float32]:
        """(H', W'): a map's highest share over disparity."""
        return self.maps[index].max(axis=0)

    def mean(self, index: int) -> NDArray[np.float32]:
        """(H', W'): a map's mean share over disparity."""
        return self.maps[index].mean(axis=0)

    def peak(self, index: int) -> NDArray[np.float32]:
        """(H', W'): the disparity of a map's highest share, in image pixels."""
        return (self.maps[index].argmax(axis=0) * self.stride).astype(np.float32)

    def over_image(
        self, plane: NDArray[np.float32], *, smooth: bool = False
    ) -> NDArray[np.float32]:
        """(H', W') of the volume to (H, W) of the left image.

        Every step fills its `stride` x `stride` pixels, or (`smooth`) is blended into the next.
        """
        rows, columns = plane.shape
        pixels = cv2.resize(
            np.ascontiguousarray(plane),
            (columns * self.stride, rows * self.stride),
            interpolation=cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST,
        )
        return np.asarray(pixels[self.padding[0] :, : self.left.shape[1]], np.float32)

    def height(self, index: int) -> float:
        """A map's highest share, in units of the uniform one, 1 / n."""
        return float(self.maps[index].max() * self.maps[index].size)

    def extent(self, index: int) -> float:
        """The part of the volume a map spreads over: exp(entropy) / n; 1 for a uniform map."""
        shares = self.maps[index].astype(np.float64)
        logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        return float(np.exp(-np.sum(shares * logs)) / shares.size)


def attention_sites(model: PSMNet) -> dict[str, nn.Module]:
    """The network's attention modules by the names of their sites, in network order."""
    found: dict[str, nn.Module] = {"volume": model.aggregation.attention}
    for index, hourglass in enumerate(getattr(model.aggregation, "hourglasses", ()), start=1):
        for place, module in hourglass.attention.items():
            found[f"hourglass{index}.{place}"] = module
    return {site: found[site] for site in model.config.attention_sites}


def attention_maps(
    matcher: StereoMatcher,
    left: NDArray[np.uint8],
    right: NDArray[np.uint8],
    site: str,
    pixel: Pixel | None = None,
) -> AttentionMaps:
    """The maps of one attention module, computed from what it is given for a pair.

    Efficient attention has a map for every key channel (Shen et al., "Efficient Attention", WACV
    2021, figure 5); dot-product attention one for every position: that of the pixel at its
    predicted disparity is computed, without the others.

    Args:
        matcher: predicts, and holds the network.
        left: (H, W, 3) uint8 RGB.
        right: the same, rectified against it.
        site: one of `attention_sites`.
        pixel: (x, y) in the left image; for dot-product attention, and only there.

    Raises:
        ValueError: no attention with maps at that site; a pixel that is missing, not wanted or
            outside the image; images as `StereoMatcher` refuses them.
    """
    left, right = as_pair((left, right))
    matcher = matcher.fitting(left.shape[1])
    module = _module_at(matcher.model, site)
    _check_pixel(module, pixel, left)
    disparity, volume, added, constant = _watch(matcher, module, left, right)
    stride = matcher.max_disparity // volume.shape[2]
    with torch.inference_mode():
        if isinstance(module, EfficientAttention):
            maps = module.global_maps(volume)[0]  # (k, D', H', W')
        else:
            assert isinstance(module, DotProductAttention)
            assert pixel is not None
            position = _position(pixel, disparity, stride, volume.shape[2:])
            maps = module.map_of(volume, position)  # (1, D', H', W')
    return AttentionMaps(
        site=site,
        mechanism=matcher.model.config.attention,
        normalisation=module.normalisation,
        maps=maps.float().cpu().numpy(),
        stride=stride,
        left=left,
        disparity=disparity,
        added=added,
        constant=constant,
        pixel=pixel,
    )


def _module_at(model: PSMNet, site: str) -> EfficientAttention | DotProductAttention:
    sites = attention_sites(model)
    if not sites:
        raise ValueError("this checkpoint's network has no attention: there are no maps to draw")
    if site not in sites:
        raise ValueError(f"no attention at '{site}': this network has it at {', '.join(sites)}")
    module = sites[site]
    if not isinstance(module, EfficientAttention | DotProductAttention):
        raise ValueError(
            f"{model.config.attention} attention has no maps over the volume: "
            "efficient and dot_product have"
        )
    return module


def _check_pixel(module: nn.Module, pixel: Pixel | None, left: NDArray[np.uint8]) -> None:
    if isinstance(module, EfficientAttention):
        if pixel is not None:
            raise ValueError(
                "efficient attention's maps are the same for all pixels: leave --pixel out"
            )
        return
    if pixel is None:
        raise ValueError(
            "dot-product attention has a map for every pixel: say which, as --pixel X Y"
        )
    height, width = left.shape[:2]
    if not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
        raise ValueError(
            f"pixel ({pixel[0]}, {pixel[1]}) lies outside the image: "
            f"x goes from 0 to {width - 1}, y from 0 to {height - 1}"
        )


def _watch(
    matcher: StereoMatcher, module: nn.Module, left: NDArray[np.uint8], right: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], Tensor, float, float]:
    """Predict, and catch what a module is given, the volume of the padded images, and adds."""
    caught: list[tuple[Tensor, float, float]] = []

    def catch(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        caught.append((given[0], *_added(given[0], made)))

    handle = module.register_forward_hook(catch)
    try:
        disparity = matcher(left, right).disparity
    finally:
        handle.remove()
    ((volume, added, constant),) = caught
    return disparity, volume, added, constant


def _added(given: Tensor, made: Tensor) -> tuple[float, float]:
    """`AttentionMaps.added` and `constant`, of (1, C, D', H', W') volumes."""
    before = widen(given)
    branch = widen(made) - before
    energy = branch.square().sum().item()
    alike = branch.mean(dim=(2, 3, 4)).square().sum().item() * branch[0, 0].numel()
    size = math.sqrt(energy / max(before.square().sum().item(), 1e-30))
    return size, alike / energy if energy > 0 else 0.0


def _position(
    pixel: Pixel, disparity: NDArray[np.float32], stride: int, size: torch.Size
) -> tuple[int, int, int]:
    """(d, y, x) in a volume of the size (D', H', W') of a pixel at its predicted disparity."""
    x, y = pixel
    above = stride * size[1] - disparity.shape[0]  # PSMNet pads at the top
    step = min(round(float(disparity[y, x]) / stride), size[0] - 1)
    return step, (y + above) // stride, x // stride


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
