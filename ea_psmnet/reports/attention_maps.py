"""What the attention at one place of a network looks at, for one pair."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ea_psmnet.attention import DotProductAttention, EfficientAttention
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.inference.pairs import as_pair
from ea_psmnet.models.psmnet import PSMNet
from ea_psmnet.ops.precision import widen

__all__ = ["AttentionMaps", "attention_maps", "attention_sites"]

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
