"""The siamese feature network with spatial pyramid pooling (PSMNet, section 3.2, table 1).

Shapes: B images, H and W of the image.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ea_psmnet.models.config import SCALE, PSMNetConfig
from ea_psmnet.models.layers import conv2d_bn

Guides = Mapping[int, Tensor]
"""Guide maps: further maps of an image by their scale, s for (B, channels, H / s, W / s)."""

_POOLS = (64, 32, 16, 8)


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, with no activation after the sum."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            conv2d_bn(inputs, outputs, stride=stride, dilation=dilation), nn.ReLU(inplace=True)
        )
        self.conv2 = conv2d_bn(outputs, outputs, dilation=dilation)
        changes = stride != 1 or inputs != outputs
        self.shortcut = conv2d_bn(inputs, outputs, 1, stride=stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        # In place: no backward needs the output of the normalisation.
        return self.conv2(self.conv1(x)).add_(self.shortcut(x))


def _stage(
    inputs: int, outputs: int, blocks: int, *, stride: int = 1, dilation: int = 1
) -> nn.Module:
    first = ResidualBlock(inputs, outputs, stride=stride, dilation=dilation)
    rest = (ResidualBlock(outputs, outputs, dilation=dilation) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class FeatureNetwork(nn.Module):
    """Images to features at a quarter of their resolution, with context from four pool sizes."""

    mean = (0.485, 0.456, 0.406)
    """Mean of ImageNet's colours, by which images are normalised."""
    std = (0.229, 0.224, 0.225)
    border = "constant"
    """Mode of `torch.nn.functional.pad` for images: zeros after normalisation."""
    guided: bool = False
    """Whether to return guide maps."""

    @staticmethod
    def channels(config: PSMNetConfig) -> int:
        """C, the number of channels of the features."""
        return config.channels(32)

    @staticmethod
    def working_bytes(config: PSMNetConfig, itemsize: int) -> float:
        """Bytes for each pixel of an image in `forward`; fitted to counts of living tensors.

        Args:
            config: Configuration of the network.
            itemsize: Bytes of a number in the convolutions.
        """
        return config.channels(32) * (1.75 + 1.125 * itemsize) + 12

    @staticmethod
    def kept_bytes(config: PSMNetConfig, itemsize: int, *, guided: bool) -> float:
        """Bytes for each pixel of a pair's features and guides; arguments as in `working_bytes`."""
        features = 2 * config.channels(32) * itemsize / SCALE**2
        return features + guided * config.channels(24) * itemsize / 2

    def __init__(self, config: PSMNetConfig) -> None:
        super().__init__()
        narrow, middle, wide = (config.channels(n) for n in (32, 64, 128))
        self.guide_channels = {2: narrow, 4: middle}
        self.align_corners = config.align_corners
        self.stem = nn.Sequential(
            *(conv2d_bn(3, narrow, stride=2), nn.ReLU(inplace=True)),
            *(conv2d_bn(narrow, narrow), nn.ReLU(inplace=True)),
            *(conv2d_bn(narrow, narrow), nn.ReLU(inplace=True)),
        )
        self.stages = nn.ModuleList(
            [
                _stage(narrow, narrow, 3),
                _stage(narrow, middle, 16, stride=2),
                _stage(middle, wide, 3),
                _stage(wide, wide, 3, dilation=2),
            ]
        )
        self.pyramid = nn.ModuleList(
            nn.Sequential(conv2d_bn(wide, narrow, 1), nn.ReLU(inplace=True)) for _ in _POOLS
        )
        self.fuse = nn.Sequential(
            conv2d_bn(middle + wide + len(_POOLS) * narrow, wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, narrow, 1, bias=False),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Guides]:
        """(B, 3, H, W) to features (B, 32 * width, H / 4, W / 4), and guide maps."""
        half = self.stages[0](self.stem(images))  # (B, 32, H/2, W/2)
        guides = {2: half} if self.guided else {}
        fine = self.stages[1](half)  # (B, 64, H/4, W/4)
        del half
        if self.guided:
            guides[4] = fine
        deep = self.stages[3](self.stages[2](fine))  # (B, 128, H/4, W/4)
        context = [
            self._pooled(deep, window, layer)
            for window, layer in zip(_POOLS, self.pyramid, strict=True)
        ]
        # Finest context first: the order the published fusion weights expect.
        return self.fuse(torch.cat([fine, deep, *reversed(context)], dim=1)), guides

    def _pooled(self, deep: Tensor, window: int, layer: nn.Module) -> Tensor:
        pooled = layer(clamped_pool(deep, window))
        return F.interpolate(
            pooled, size=deep.shape[-2:], mode="bilinear", align_corners=self.align_corners
        )


def clamped_pool(maps: Tensor, window: int) -> Tensor:
    """Average pooling by square windows, whose sides are those of the map where that is smaller.

    The published network fails on maps (B, C, h, w) smaller than its largest window. Clamping
    admits them and changes nothing on larger ones.
    """
    height, width = maps.shape[-2:]
    if isinstance(height, int) and isinstance(width, int):
        return F.avg_pool2d(maps, (min(window, height), min(window, width)))
    # Sizes that a graph leaves free; its windows cannot be. Zeros fill smaller maps.
    missing = (torch.sym_max(0, window - width), torch.sym_max(0, window - height))
    pooled = F.avg_pool2d(F.pad(maps, (0, missing[0], 0, missing[1])), window)
    return pooled * (window**2 / (torch.sym_min(height, window) * torch.sym_min(width, window)))
