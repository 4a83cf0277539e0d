"""The network rearranged for inference: the same parameters, folded, and the same output."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ea_psmnet.attention import VolumeAttention
from ea_psmnet.models.features import FeatureNetwork, ResidualBlock
from ea_psmnet.models.inference_layers import (
    AddingBlock,
    Cast,
    CompiledConv2d,
    CompiledConv3d,
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
from ea_psmnet.models.psmnet import Features, PSMNet
from ea_psmnet.models.volume import ConcatVolume
from ea_psmnet.ops.rounding import round_kernel
from ea_psmnet.ops.winograd_compiled import is_compiled_for

__all__ = ["arrange_for_inference"]

_COMPILED_TYPES = torch.float32, torch.bfloat16
_COMPILED = CompiledConv2d | CompiledConv3d


def arrange_for_inference(
    model: PSMNet, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> PSMNet:
    """A copy of a network for evaluation alone.

    Batch normalisation is folded into the convolutions before it, the first 3D convolution becomes
    its 2D factors, weights are channels-last. Parameters no longer fit checkpoints. On the CPU
    convolutions are Winograd's where that is faster, and in half precision the finest volumes are
    worked on some disparities at a time: that takes less memory, but in float32 also a sixth more
    time (docs/speed-notes.md).

    Args:
        model: any network; it is left as it is.
        dtype: of the convolutions. Attention modules, which run under the caller's autocast, keep
            theirs, and so do features where that costs little: all of them with compiled
            convolutions, otherwise those at half resolution.
        device: where the copy is to run, and nowhere else; None for where the network is.
    """
    arranged = copy.deepcopy(model).to(device or model.mean.device).eval().requires_grad_(False)
    for pair in _convolutions_and_norms(arranged):
        _fold(pair)
        if isinstance(pair[0], VolumeConv3d) and isinstance(arranged.volume, ConcatVolume):
            pair[0] = FactoredConv(pair[0])
    if _is_on_cpu(arranged):
        _multiply_less(arranged, dtype)
        _fuse(arranged)
    _narrow(arranged, dtype)
    to_channels_last(arranged)
    if _is_on_cpu(arranged) and dtype.itemsize < 4:
        _take_slabs(arranged)
    return arranged


def _is_on_cpu(model: PSMNet) -> bool:
    return model.mean.device.type == "cpu"


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
    if isinstance(folded, nn.Conv3d) and not isinstance(folded, VolumeConv3d):
        folded = DirectConv3d.like(folded)
    pair[0] = folded
    pair[1] = nn.Identity()


def _multiply_less(model: PSMNet, dtype: torch.dtype) -> None:
    """Winograd convolutions where they are faster (docs/speed-notes.md: with AVX-512-BF16).

    Where rounding errors would reach the disparity, products stay in float32, or as they are.
    """
    half = dtype.itemsize < 4
    features, aggregation = model.features, model.aggregation
    first = _modules(features.stem, features.stages[0], aggregation.stem, aggregation.residuals)
    scores = _modules(aggregation.classifiers)
    for module in set(_outside_attention(model)):
        for name, conv in module.named_children():
            if not _is_winograds(conv):
                continue
            if dtype in _COMPILED_TYPES and is_compiled_for(conv.in_channels, conv.out_channels):
                setattr(module, name, _compiled(conv, narrow=half and module not in first))
            elif not (half and module in scores):
                setattr(module, name, _halved(conv, half))


def _modules(*parts: nn.Module) -> set[nn.Module]:
    return {module for part in parts for module in part.modules()}


def _is_winograds(conv: nn.Module) -> TypeGuard[nn.Conv2d | DirectConv3d]:
    """Whether a convolution has three taps a side, stride 1 and a bias."""
    if type(conv) not in (nn.Conv2d, DirectConv3d):
        return False
    conv = cast(nn.Conv2d | DirectConv3d, conv)
    return (set(conv.kernel_size), set(conv.stride)) == ({3}, {1}) and conv.bias is not None


def _fuse(model: PSMNet) -> None:
    """Let compiled convolutions do the activation, or the sum, behind them."""
    for module in set(model.modules()):
        if isinstance(module, nn.Sequential):
            for index in range(len(module) - 1):
                conv = _first(module[index])
                if isinstance(conv, _COMPILED) and isinstance(module[index + 1], nn.ReLU):
                    conv.positive, module[index + 1] = True, nn.Identity()
        for name, block in module.named_children():
            if isinstance(block, ResidualBlock) and isinstance(_first(block.conv2), CompiledConv2d):
                setattr(module, name, AddingBlock.like(block))


def _first(pair: nn.Module) -> nn.Module:
    """The convolution of a pair whose normalisation is folded."""
    return pair[0] if isinstance(pair, nn.Sequential) and len(pair) == 2 else pair


def _compiled(conv: nn.Conv2d | DirectConv3d, *, narrow: bool) -> nn.Module:
    if isinstance(conv, DirectConv3d):
        return CompiledConv3d(conv, narrow=narrow)
    return CompiledConv2d(conv, narrow=narrow)


def _halved(conv: nn.Conv2d | DirectConv3d, half: bool) -> nn.Module:
    """With half the products by torch, where it is wide enough to pay."""
    least = min(conv.in_channels, conv.out_channels)
    if isinstance(conv, DirectConv3d):
        return WinogradConv3d.like(conv) if least >= 32 else conv
    # Rows of a dilated convolution lie apart in memory.
    near = conv.dilation[0] == 1 or not half
    return WinogradConv2d.like(conv) if least >= 128 and near else conv


def _narrow(model: PSMNet, dtype: torch.dtype) -> None:
    """Convolutions to a type, but for the first few: cheap, and with half the rounding error.

    With compiled ones all of PSMNet's features stay in float32, which takes little more time.
    """
    features = model.features
    compiled = any(isinstance(module, CompiledConv2d) for module in features.modules())
    whole = compiled and isinstance(features, FeatureNetwork)
    kept = _modules(features) if whole else _modules(features.stem, features.stages[0])
    for module in set(_outside_attention(model)) - kept:
        for parameter in module.parameters(recurse=False):
            parameter.data = _rounded(parameter.data, dtype)
        if isinstance(module, WinogradConv2d | WinogradConv3d):
            module.round_products(dtype)
        if isinstance(module, _COMPILED):
            module.dtype = dtype
    _leave_autocast(features, dtype, whole=whole)


def _leave_autocast(features: Features, dtype: torch.dtype, *, whole: bool) -> None:
    """All layers of the features, or the first few; what follows takes a type."""
    features.stem = FullPrecision(*features.stem)
    if not (whole and isinstance(features, FeatureNetwork)):
        features.stages[0] = FullPrecision(*cast(nn.Sequential, features.stages[0]), Cast(dtype))
        return
    for parts in (features.stages, features.pyramid):
        for index, part in enumerate(parts):
            parts[index] = FullPrecision(*cast(nn.Sequential, part))
    features.fuse = FullPrecision(*features.fuse, Cast(dtype))


def _rounded(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    return round_kernel(parameter, dtype) if parameter.dim() > 2 else parameter.to(dtype)


def _take_slabs(model: PSMNet) -> None:
    """Layers that go some disparities at a time, where normalisation is folded."""
    aggregation = model.aggregation
    kinds = DirectConv3d | CompiledConv3d
    if isinstance(aggregation.stem.get_submodule("2.0"), kinds):
        aggregation.stem[2] = SlabConv.like(aggregation.stem[2])
    for kind, parts in (
        (SlabResidual, aggregation.residuals),
        (SlabClassifier, aggregation.classifiers),
    ):
        for index, part in enumerate(parts):
            if isinstance(part.get_submodule("0.0"), kinds):
                parts[index] = kind.like(part)
