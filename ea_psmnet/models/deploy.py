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
from ea_psmnet.models.inference_layers import (
    Cast,
    DirectConv3d,
    FactoredConv,
    FullPrecision,
    SlabClassifier,
    SlabConv,
    SlabResidual,
    WinogradConv2d,
    WinogradConv3d,
)
from ea_psmnet.models.layers import VolumeConv3d, to_channels_last
from ea_psmnet.models.psmnet import PSMNet
from ea_psmnet.ops.rounding import round_kernel

__all__ = ["arrange_for_inference"]


def arrange_for_inference(model: PSMNet, dtype: torch.dtype = torch.float32) -> PSMNet:
    """A copy of a network for evaluation alone.

    Batch normalisation is folded into the convolutions before it, the first 3D convolution becomes
    its 2D factors, weights are channels-last. Parameters no longer fit checkpoints. In half
    precision the finest volumes are worked on some disparities at a time on the CPU: that takes
    less memory, but in float32 also a sixth more time (docs/speed-notes.md).

    Args:
        model: any network; it is left as it is.
        dtype: of the convolutions, but for those at half resolution, which are few, and those of
            attention modules, which run under the caller's autocast: both keep theirs.
    """
    arranged = copy.deepcopy(model).eval().requires_grad_(False)
    for pair in _convolutions_and_norms(arranged):
        _fold(pair)
    _halve_products(arranged, dtype)
    _narrow(arranged, dtype)
    to_channels_last(arranged)
    if dtype.itemsize < 4:
        _take_slabs(arranged)
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
        pair[0] = FactoredConv(folded)
    elif isinstance(folded, nn.Conv3d):
        pair[0] = DirectConv3d.like(folded)
    else:
        pair[0] = folded
    pair[1] = nn.Identity()


def _halve_products(model: PSMNet, dtype: torch.dtype) -> None:
    """Winograd convolutions where they are faster (measured: docs/speed-notes.md).

    Not in bfloat16 for classifiers, whose rounding errors would reach the scores.
    """
    half = dtype.itemsize < 4
    kept = set(model.aggregation.classifiers.modules()) if half else set()
    for module in set(_outside_attention(model)) - kept:
        for name, conv in module.named_children():
            if type(conv) is DirectConv3d and _fits(conv, 32):
                setattr(module, name, WinogradConv3d.like(conv))
            # Rows of a dilated convolution lie apart in memory.
            reach = (1,) if half else (1, 2)
            if type(conv) is nn.Conv2d and conv.dilation[0] in reach and _fits(conv, 128):
                setattr(module, name, WinogradConv2d.like(conv))


def _fits(conv: nn.Conv2d | nn.Conv3d, channels: int) -> bool:
    """Whether it has three taps a side, stride 1, a bias and so many channels at least."""
    sides = set(conv.kernel_size), set(conv.stride)
    wide = min(conv.in_channels, conv.out_channels) >= channels
    return sides == ({3}, {1}) and wide and conv.bias is not None


def _narrow(model: PSMNet, dtype: torch.dtype) -> None:
    """Convolutions to a type, but for the first few: cheap, and with half the rounding error."""
    kept = model.features.stem, cast(nn.Sequential, model.features.stages[0])
    wide = {module for part in kept for module in part.modules()}
    for module in set(_outside_attention(model)) - wide:
        for parameter in module.parameters(recurse=False):
            parameter.data = _rounded(parameter.data, dtype)
        if isinstance(module, WinogradConv2d | WinogradConv3d):
            module.round_products(dtype)
    model.features.stem = FullPrecision(*kept[0])
    model.features.stages[0] = FullPrecision(*kept[1], Cast(dtype))


def _rounded(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    return round_kernel(parameter, dtype) if parameter.dim() > 2 else parameter.to(dtype)


def _take_slabs(model: PSMNet) -> None:
    """Layers that go some disparities at a time, where normalisation is folded."""
    aggregation = model.aggregation
    if isinstance(aggregation.stem.get_submodule("2.0"), DirectConv3d):
        aggregation.stem[2] = SlabConv.like(aggregation.stem[2])
    for kind, parts in (
        (SlabResidual, aggregation.residuals),
        (SlabClassifier, aggregation.classifiers),
    ):
        for index, part in enumerate(parts):
            if isinstance(part.get_submodule("0.0"), DirectConv3d):
                parts[index] = kind.like(part)
