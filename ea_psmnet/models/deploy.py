"""The network rearranged for inference: the same parameters, folded, and the same output."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ea_psmnet.attention import VolumeAttention
from ea_psmnet.models.layers import VolumeConv3d, to_channels_last
from ea_psmnet.models.psmnet import PSMNet
from ea_psmnet.ops.factored_volume import (
    PairVolume,
    VolumeKernels,
    convolve_factored,
    volume_kernels,
)

__all__ = ["arrange_for_inference"]


def arrange_for_inference(model: PSMNet, dtype: torch.dtype = torch.float32) -> PSMNet:
    """A copy of a network for evaluation alone.

    Batch normalisation is folded into the convolutions before it, the first 3D convolution becomes
    its 2D factors, weights are channels-last. Parameters no longer fit checkpoints.

    Args:
        model: any network; it is left as it is.
        dtype: of the convolutions, but for those at half resolution, which are few, and those of
            attention modules, which run under the caller's autocast: both keep theirs.
    """
    arranged = copy.deepcopy(model).eval().requires_grad_(False)
    for pair in _convolutions_and_norms(arranged):
        _fold(pair)
    _narrow(arranged, dtype)
    to_channels_last(arranged)
    return arranged


def _outside_attention(module: nn.Module) -> Iterator[nn.Module]:
    """A module and what is in it, but for attention."""
    if not isinstance(module, VolumeAttention):
        yield module
        for child in module.children():
            yield from _outside_attention(child)


def _convolutions_and_norms(model: nn.Module) -> list[nn.Sequential]:
    """Every pair that `layers` makes."""
    sequences = (m for m in _outside_attention(model) if isinstance(m, nn.Sequential))
    return [m for m in sequences if len(m) == 2 and isinstance(m[1], _BatchNorm)]


def _fold(pair: nn.Sequential) -> None:
    """Let a convolution do the work of the normalisation behind it."""
    conv, norm = cast(nn.Conv3d, pair[0]), cast(_BatchNorm, pair[1])
    transposed = isinstance(conv, nn.ConvTranspose3d)
    folded = fuse_conv_bn_eval(conv, norm, transpose=transposed).requires_grad_(False)
    if isinstance(folded, VolumeConv3d):
        pair[0] = _FactoredConv(folded)
    elif isinstance(folded, nn.Conv3d):
        pair[0] = _DirectConv3d.like(folded)
    else:
        pair[0] = folded
    pair[1] = nn.Identity()


def _narrow(model: PSMNet, dtype: torch.dtype) -> None:
    """Convolutions to a type, but for the first few: cheap, and with half the rounding error."""
    kept = model.features.stem, cast(nn.Sequential, model.features.stages[0])
    wide = {parameter for part in kept for parameter in part.parameters()}
    for module in _outside_attention(model):
        for parameter in module.parameters(recurse=False):
            if parameter not in wide:
                parameter.data = parameter.data.to(dtype)
    model.features.stem = _FullPrecision(*kept[0])
    model.features.stages[0] = _FullPrecision(*kept[1], _Cast(dtype))


class _FullPrecision(nn.Sequential):
    """Layers out of autocast's reach."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to whatever the last layer makes of it."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)


class _Cast(nn.Module):
    """To another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return x.to(self.dtype)


class _DirectConv3d(nn.Conv3d):
    """By oneDNN on the CPU whatever the size.

    For a single small float32 volume torch picks a convolution of its own, several times slower.
    """

    @classmethod
    def like(cls, conv: nn.Conv3d) -> _DirectConv3d:
        """One that shares another's settings and parameters."""
        made = cls.__new__(cls)
        made.__dict__.update(conv.__dict__)
        return made

    def forward(self, volume: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, outputs, ...)."""
        if not (volume.device.type == "cpu" and volume.dtype == torch.float32 and _has_onednn()):
            return super().forward(volume)
        return torch.ops.aten.mkldnn_convolution(
            volume, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


class _FactoredConv(nn.Module):
    """A `VolumeConv3d` by 2D kernels made once."""

    def __init__(self, conv: VolumeConv3d) -> None:
        super().__init__()
        kernels = volume_kernels(conv.weight)
        self.left, self.right = (nn.Parameter(k, requires_grad=False) for k in kernels)
        self.bias = conv.bias

    def forward(self, volume: PairVolume) -> Tensor:
        """See `volume_conv`."""
        return convolve_factored(volume, VolumeKernels(self.left, self.right), self.bias)
