"""Attention maps of one place in a network, for one pair: as numbers and pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from numpy.typing import NDArray
from torch import Tensor, nn

from ea_psmnet.attention import DotProductAttention, EfficientAttention
from ea_psmnet.figures import Bar, GridStyle, Row, fitted, panel_grid
from ea_psmnet.files import atomic_path, write_image
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.inference.outputs import arrows, colour_range, colourise, disparity_bar
from ea_psmnet.inference.pairs import as_pair
from ea_psmnet.models.psmnet import PSMNet
from ea_psmnet.ops.precision import widen

Pixel = tuple[int, int]


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Maps over the positions of a cost volume, and where they lie in the left image.

    Shapes: k maps, (D', H', W') the volume at the site, (H, W) the left image.
    """

    site: str
    """Name of the site, as `hourglass1.encoder`."""
    mechanism: str
    """`efficient`: a map for every key channel; `dot_product`: the map of `pixel`."""
    normalisation: str
    """Normalisation of the module; without softmax the maps are magnitudes of signed weights."""
    maps: NDArray[np.float32]
    """Maps (k, D', H', W'); each sums to one."""
    stride: int
    """Image pixels per position of the volume, in disparity, height and width."""
    left: NDArray[np.uint8]
    """Left image (H, W, 3), RGB."""
    disparity: NDArray[np.float32]
    """Predicted disparity (H, W) in pixels."""
    added: float
    """Norm of what the module adds to its input, relative to the norm of the input."""
    constant: float
    """Fraction of the energy (sum of squares) of what is added that is constant over all positions,
    like a bias; 1 if nothing depends on the position."""
    pixel: Pixel | None = None
    """Pixel (x, y) of the left image whose map this is; None for global maps."""

    @property
    def padding(self) -> tuple[int, int]:
        """Pixels above and to the right of the image that the volume covers."""
        rows, columns = (self.stride * side for side in self.maps.shape[2:])
        return rows - self.left.shape[0], columns - self.left.shape[1]

    def maximum(self, index: int) -> NDArray[np.float32]:
        """Maximum of a map over disparity (H', W')."""
        return self.maps[index].max(axis=0)

    def mean(self, index: int) -> NDArray[np.float32]:
        """Mean of a map over disparity (H', W')."""
        return self.maps[index].mean(axis=0)

    def peak(self, index: int) -> NDArray[np.float32]:
        """Disparity of a map's maximum (H', W'), in image pixels."""
        return (self.maps[index].argmax(axis=0) * self.stride).astype(np.float32)

    def over_image(
        self, plane: NDArray[np.float32], *, smooth: bool = False
    ) -> NDArray[np.float32]:
        """Resize from the volume (H', W') to the left image (H, W).

        Every position fills its `stride` x `stride` pixels; `smooth` interpolates instead.
        """
        rows, columns = plane.shape
        pixels = cv2.resize(
            np.ascontiguousarray(plane),
            (columns * self.stride, rows * self.stride),
            interpolation=cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST,
        )
        return np.asarray(pixels[self.padding[0] :, : self.left.shape[1]], np.float32)

    def height(self, index: int) -> float:
        """Maximum of a map, in units of a uniform map, 1 / n."""
        return float(self.maps[index].max() * self.maps[index].size)

    def extent(self, index: int) -> float:
        """Fraction of the volume that a map covers: exp(entropy) / n, 1 if uniform."""
        shares = self.maps[index].astype(np.float64)
        logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        return float(np.exp(-np.sum(shares * logs)) / shares.size)


def attention_sites(model: PSMNet) -> dict[str, nn.Module]:
    """Return the attention modules of a network by site, in network order."""
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
    """Compute the maps of one attention module from its input for a pair.

    Efficient attention has a map for every key channel (Shen et al., "Efficient Attention", WACV
    2021, figure 5). Dot-product attention has one for every position; only that of a pixel at its
    predicted disparity is computed.

    Args:
        matcher: Predicts, and has the network.
        left: Left image (H, W, 3), uint8 RGB.
        right: Right image, rectified.
        site: One of `attention_sites`.
        pixel: Pixel (x, y) of the left image; only for dot-product attention, which needs it.

    Raises:
        ValueError: There is no attention with maps at the site; the pixel is missing, not needed or
            outside the image; or `StereoMatcher` refuses the images.
    """
    left, right = as_pair((left, right))
    matcher = matcher.fitting(left.shape[1])
    height, width = left.shape[:2]
    if not matcher.plan(height, width).is_whole:
        raise ValueError(
            f"{width} x {height} pixels do not fit into memory at once, as the maps need: scale "
            "the images down, or lower --max-disparity"
        )
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
        site,
        matcher.model.config.attention,
        module.normalisation,
        maps.float().cpu().numpy(),
        stride,
        left,
        disparity,
        added,
        constant,
        pixel,
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
            "only efficient and dot_product have"
        )
    return module


def _check_pixel(module: nn.Module, pixel: Pixel | None, left: NDArray[np.uint8]) -> None:
    if isinstance(module, EfficientAttention):
        if pixel is not None:
            told = "efficient attention's maps are the same for all pixels: leave --pixel out"
            raise ValueError(told)
        return
    if pixel is None:
        told = "dot-product attention has a map for every pixel: name one, as --pixel X Y"
        raise ValueError(told)
    height, width = left.shape[:2]
    if not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
        raise ValueError(
            f"pixel ({pixel[0]}, {pixel[1]}) lies outside the image: "
            f"x goes from 0 to {width - 1}, y from 0 to {height - 1}"
        )


def _watch(
    matcher: StereoMatcher, module: nn.Module, left: NDArray[np.uint8], right: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], Tensor, float, float]:
    """Predict, and return disparity, the module's input and the two figures of `_added`."""
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
    """Return `AttentionMaps.added` and `constant` from volumes (1, C, D', H', W')."""
    before = widen(given)
    branch = widen(made) - before
    energy = branch.square().sum().item()
    alike = branch.mean(dim=(2, 3, 4)).square().sum().item() * branch[0, 0].numel()
    size = math.sqrt(energy / max(before.square().sum().item(), 1e-30))
    return size, alike / energy if energy > 0 else 0.0


def _position(
    pixel: Pixel, disparity: NDArray[np.float32], stride: int, size: torch.Size
) -> tuple[int, int, int]:
    """Return the position (d, y, x) of a pixel, at its predicted disparity, in a volume."""
    x, y = pixel
    above = stride * size[1] - disparity.shape[0]  # PSMNet pads at the top
    step = min(round(float(disparity[y, x]) / stride), size[0] - 1)
    return step, (y + above) // stride, x // stride


Image = NDArray[np.uint8]

# As pictures --------------------------------------------------------------------------------------

_SMALL, _LARGE = 320, 480
"""Pixels of a picture's longer side in a sheet of many maps, and of few."""
_FEW = 2
_CAPTION_WIDTH = 180
"""Pixels that a caption takes, at least."""
_HEAT = colormaps["inferno"]
_LEAST_HEAT = (0.5, 4.0)
"""Smallest range of heat, in units of a uniform map; sharper maps raise its upper end."""
_HOTTEST = 99.9
"""Percentile of the maxima of all maps at the end of the range."""
_CAPTIONS = ("maximum over disparity", "mean over disparity", "disparity of the peak")


def map_sheet(maps: AttentionMaps) -> Image:
    """Draw all maps over the left image in one grid, below the image and the prediction.

    A map has three pictures: its maximum and its mean over disparity, and the disparity of its
    maximum, in the colours of the prediction. All maps share one logarithmic range of heat, in
    units of a uniform map, so that equal colours are equal attention.

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

    The files appear once all of them are complete. Pictures of further maps, from an earlier run
    with more key channels, are removed then; other files stay.

    Returns:
        The paths, in that order.

    Raises:
        OSError: A file cannot be written.
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
    """Write the maps, and what is needed to place them over the image; loads without pickle."""
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


def _draw(maps: AttentionMaps, indices: Sequence[int], side: int) -> Image:
    """Draw image and prediction in the first row, and cells of three pictures in the others."""
    size = fitted(maps.left, side, side).shape
    width = max(size[1], _CAPTION_WIDTH)
    style = GridStyle(width, gap=24, row_gap=24, line=28, size=12, title=76, title_size=16)
    cells = _cells_in_a_row(len(indices), (size[0] + 80, 3 * (width + style.gap)))
    colours = colour_range(maps.disparity)
    first = (maps.left, colourise(maps.disparity, *colours))
    rows = [Row(_placed(first, maps, side), captions=("left image", "predicted disparity"))]
    for start in range(0, len(indices), cells):
        row = indices[start : start + cells]
        pictures = [picture for index in row for picture in _pictures(maps, index)]
        headings = [text for index in row for text in (_heading(maps, index), "", "")]
        rows.append(Row(_placed(pictures, maps, side), headings, _CAPTIONS * len(row)))
    peaks = [maps.peak(index) for index in indices]
    bars = [_heat_bar(maps, indices), None, disparity_bar(*colours, maps.disparity, *peaks)]
    depth, height, breadth = maps.maps.shape[1:]
    details = (
        f"volume of {depth} x {height} x {breadth} at 1/{maps.stride}; {_weights(maps)}; "
        "extent: exp(entropy) over the number of positions"
    )
    title = f"{maps.site}: {_what(maps)}"
    return panel_grid(rows, style, title=title, details=details, bars=bars)


def _cells_in_a_row(count: int, cell: tuple[int, int]) -> int:
    """Number of cells (height, width) in a row that makes a sheet about as wide as high."""
    return max(1, round((count * cell[0] / cell[1]) ** 0.5))


def _placed(pictures: Sequence[Image], maps: AttentionMaps, side: int) -> list[Image]:
    """Resize pictures, and mark the pixel whose map is drawn."""
    return [_marked(fitted(p, side, side, cv2.INTER_AREA), maps) for p in pictures]


def _pictures(maps: AttentionMaps, index: int) -> tuple[Image, Image, Image]:
    """Draw maximum, mean and disparity of the maximum over the grey left image, each (H, W, 3)."""
    peaks = colourise(maps.over_image(maps.peak(index)), *colour_range(maps.disparity))
    opaque = np.full(peaks.shape[:2], 0.8, np.float32)
    return (
        _heat(maps, maps.maximum(index)),
        _heat(maps, maps.mean(index)),
        _blend(maps.left, peaks, opaque),
    )


def _heat_range(maps: AttentionMaps) -> LogNorm:
    """Logarithmic range of heat of all maps, in units of a uniform map."""
    low, least = _LEAST_HEAT
    top = np.percentile(maps.maps.max(axis=1), _HOTTEST) * maps.maps[0].size
    return LogNorm(low, max(float(top), least), clip=True)


def _heat_bar(maps: AttentionMaps, indices: Sequence[int]) -> Bar:
    norm, drawn = _heat_range(maps), maps.maps[list(indices)] * maps.maps[0].size
    low, high = float(norm.vmin or 0), float(norm.vmax or 0)
    ticks = [step * 10.0**power for power in range(-1, 8) for step in (1, 2, 5)]
    few = [tick for tick in ticks if low <= tick <= high]
    return Bar(
        "attention in units of a uniform map",
        ScalarMappable(norm, _HEAT),
        few if len(few) <= _MOST_TICKS else few[1::3],
        extend=arrows((drawn.mean(axis=1) < low).any(), (drawn.max(axis=1) > high).any()),
    )


_MOST_TICKS = 7


def _heat(maps: AttentionMaps, plane: NDArray[np.float32]) -> Image:
    """Draw a plane as heat: the brighter, the more opaque."""
    level = np.asarray(_heat_range(maps)(maps.over_image(plane, smooth=True) * maps.maps[0].size))
    colours = (_HEAT(level)[..., :3] * 255).astype(np.uint8)
    return _blend(maps.left, colours, 0.45 + 0.45 * level)


def _blend(left: Image, colours: Image, opacity: NDArray[np.floating]) -> Image:
    grey = left.mean(axis=2, keepdims=True)
    mixed = grey + (colours - grey) * opacity[..., None]
    return np.rint(mixed).astype(np.uint8)


def _marked(picture: Image, maps: AttentionMaps) -> Image:
    """Draw a cross at the pixel whose map is drawn."""
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
    return f"normalisation '{maps.normalisation}' has signed weights: drawn is {sign}, with sum 1"
