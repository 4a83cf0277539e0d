"""Stacks of layers of two published light networks, for timing alone.

Their weights are random, and their authors' code is not used: layers, channels and resolutions
follow the papers as far as these describe them, so times are those of a network *like* the
published one. `tests/scripts/test_published_shapes.py` compares parameters and multiply-adds with
what the papers state.

- CoEx (Bangunharcana et al., "Correlate-and-Excite", IROS 2021): 2.7 M parameters, 53 GMAC at
  544 x 960.
- LightStereo-S (Guo et al., "LightStereo: Channel Boost Is All You Need for Efficient 2D Cost
  Aggregation", ICRA 2025): 3.4 M parameters, 23 GMAC.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2
from torchvision.ops import Conv2dNormActivation, Conv3dNormActivation

_LEVELS = 48
"""Disparities at 1/4 of the image, for 192 pixels."""
_ENDS = {2: 16, 4: 24, 8: 32, 16: 96, 32: 160}
"""Channels of MobileNetV2 at each scale that is used."""
_CUTS = (2, 4, 7, 14, 17)
"""Where MobileNetV2's blocks end at these scales."""


class _Features(nn.Module):
    """MobileNetV2 to 1/32, and back up to 1/4 by transposed convolutions and skip connections."""

    def __init__(self) -> None:
        super().__init__()
        blocks = mobilenet_v2(weights=None).features
        starts = (0, *_CUTS[:-1])
        self.down = nn.ModuleList(blocks[a:b] for a, b in zip(starts, _CUTS, strict=True))
        scales = (32, 16, 8)
        inputs = {32: _ENDS[32], 16: 2 * _ENDS[16], 8: 2 * _ENDS[8]}
        self.up = nn.ModuleDict({str(s): _up(inputs[s], _ENDS[s // 2]) for s in scales})
        self.fuse = nn.ModuleDict(
            {str(s): Conv2dNormActivation(2 * _ENDS[s], 2 * _ENDS[s], 3) for s in (16, 8, 4)}
        )

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """(B, 3, H, W) to maps by scale: 2 as MobileNetV2 leaves it, 4, 8 and 16 fused."""
        found = {}
        for scale, part in zip(_ENDS, self.down, strict=True):
            images = found[scale] = part(images)
        for scale in (32, 16, 8):
            finer = scale // 2
            up = self.up[str(scale)](found[scale])
            found[finer] = self.fuse[str(finer)](torch.cat([found[finer], up], 1))
        return found


def _up(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


class _Upsampling(nn.Module):
    """Convex upsampling by 4 with weights from features at 1/2 and 1/4."""

    def __init__(self, coarse: int, fine: int, channels: int) -> None:
        super().__init__()
        self.up = _up(coarse, channels)
        self.merge = Conv2dNormActivation(channels + fine, channels, 3)
        self.weights = nn.ConvTranspose2d(channels, 9, 4, 2, 1)

    def forward(self, disparity: Tensor, found: dict[int, Tensor]) -> Tensor:
        """(B, 1, h, w) to (B, 4h, 4w)."""
        fine = self.merge(torch.cat([self.up(found[4]), found[2]], 1))
        weights = self.weights(fine).softmax(1)
        height, width = weights.shape[-2:]
        near = F.unfold(disparity, 3, padding=1).unflatten(-1, disparity.shape[-2:])
        near = F.interpolate(near, (height, width), mode="nearest")
        return (4 * near * weights).sum(1)


def _correlation(left: Tensor, right: Tensor) -> Tensor:
    """Mean products (B, C, h, w) at every level: (B, K, h, w)."""
    padded = F.pad(right, (_LEVELS - 1, 0))
    width = left.shape[-1]
    levels = [
        (left * padded[..., _LEVELS - 1 - k : _LEVELS - 1 - k + width]).mean(1)
        for k in range(_LEVELS)
    ]
    return torch.stack(levels, 1)


class _Boost(nn.Module):
    """An inverted residual block (MobileNetV2) on the cost volume's levels as channels."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, expansion: int = 4) -> None:
        super().__init__()
        hidden = expansion * inputs
        self.layers = nn.Sequential(
            Conv2dNormActivation(inputs, hidden, 1, activation_layer=nn.ReLU6),
            Conv2dNormActivation(
                hidden, hidden, 3, stride, groups=hidden, activation_layer=nn.ReLU6
            ),
            Conv2dNormActivation(hidden, outputs, 1, activation_layer=None),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


class LightStereoLike(nn.Module):
    """Correlation volume, 2D aggregation by inverted residual blocks, convex upsampling."""

    def __init__(self, blocks: tuple[int, int, int] = (1, 2, 4)) -> None:
        super().__init__()
        self.features = _Features()
        self.match = nn.Conv2d(2 * _ENDS[4], 48, 3, padding=1)
        sides = [_LEVELS, 2 * _LEVELS, 4 * _LEVELS]
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Boost(side, side) for _ in range(count)))
            for side, count in zip(sides, blocks, strict=True)
        )
        self.shrink = nn.ModuleList(_Boost(a, 2 * a, 2) for a in sides[:2])
        self.grow = nn.ModuleList(_up(2 * a, a) for a in sides[:2])
        self.skips = nn.ModuleList(Conv2dNormActivation(a, a, 1) for a in sides[:2])
        self.upsample = _Upsampling(2 * _ENDS[4], _ENDS[2], 32)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Two (B, 3, H, W) to (B, H, W)."""
        found = self.features(torch.cat([left, right]))
        matching = self.match(found[4]).chunk(2)
        volume = self.stages[0](_correlation(*matching))
        half = self.stages[1](self.shrink[0](volume))
        quarter = self.stages[2](self.shrink[1](half))
        half = self.grow[1](quarter) + self.skips[1](half)
        volume = self.grow[0](half) + self.skips[0](volume)
        levels = torch.arange(_LEVELS, device=volume.device).view(1, -1, 1, 1)
        disparity = (volume.float().softmax(1) * levels).sum(1, keepdim=True)
        return self.upsample(disparity, {s: f[: len(left)] for s, f in found.items()})


def _conv3d(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return Conv3dNormActivation(inputs, outputs, 3, stride, activation_layer=nn.ReLU)


class CoExLike(nn.Module):
    """Correlation volume, a 3D hourglass excited by image features, the two likeliest levels."""

    def __init__(self, channels: tuple[int, int, int, int] = (8, 16, 32, 48)) -> None:
        super().__init__()
        self.features = _Features()
        self.stems = nn.ModuleList(
            nn.Sequential(Conv2dNormActivation(a, b, 3, 2), Conv2dNormActivation(b, b, 3))
            for a, b in ((3, 32), (32, 48))
        )
        wide = 2 * _ENDS[4] + 48
        self.match = nn.Sequential(Conv2dNormActivation(wide, wide, 3), nn.Conv2d(wide, 48, 1))
        self.stem = _conv3d(1, channels[0])
        pairs = list(pairwise(channels))
        self.down = nn.ModuleList(nn.Sequential(_conv3d(a, b, 2), _conv3d(b, b)) for a, b in pairs)
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose3d(b, a, 4, 2, 1, bias=False),
                nn.BatchNorm3d(a),
                nn.ReLU(inplace=True),
            )
            for a, b in pairs
        )
        self.merge = nn.ModuleList(_conv3d(a, a) for a in channels[1:3])
        sources = {4: wide, 8: 2 * _ENDS[8], 16: 2 * _ENDS[16], 32: _ENDS[32]}
        self.excite = nn.ModuleList(
            nn.Conv2d(sources[scale], c, 1)
            for scale, c in zip((4, 8, 16, 32), channels, strict=True)
        )
        self.score = nn.Conv3d(channels[0], 1, 3, padding=1)
        self.upsample = _Upsampling(wide, 32, 64)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Two (B, 3, H, W) to (B, H, W)."""
        images = torch.cat([left, right])
        found = self.features(images)
        found[2] = self.stems[0](images)
        found[4] = torch.cat([found[4], self.stems[1](found[2])], 1)
        matching = self.match(found[4]).chunk(2)
        own = {s: f[: len(left)] for s, f in found.items()}
        volume = self.stem(_correlation(*matching).unsqueeze(1))
        maps = [own[scale] for scale in (4, 8, 16, 32)]
        kept = [self._excited(0, volume, maps)]
        for i, part in enumerate(self.down):
            kept.append(self._excited(i + 1, part(kept[-1]), maps))
        volume = kept[-1]
        for i in (2, 1):
            volume = self.merge[i - 1](self.up[i](volume) + kept[i])
        score = self.score(self.up[0](volume))[:, 0].float()
        top, index = score.topk(2, dim=1)
        disparity = (top.softmax(1) * index).sum(1, keepdim=True)
        return self.upsample(disparity, own)

    def _excited(self, i: int, volume: Tensor, maps: list[Tensor]) -> Tensor:
        return volume * self.excite[i](maps[i]).sigmoid().unsqueeze(2)
