"""Networks arranged for inference or export: the same function, layers folded and replaced."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Self, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ea_psmnet.attention import VolumeAttention
from ea_psmnet.models.aggregation import Classifier, Residual
from ea_psmnet.models.efficientnet import SameConv2d
from ea_psmnet.models.features import FeatureNetwork, ResidualBlock
from ea_psmnet.models.layers import SameSizeConv2d, VolumeConv3d, to_channels_last
from ea_psmnet.models.psmnet import Features, PSMNet
from ea_psmnet.models.volume import ConcatVolume
from ea_psmnet.ops.convolutions import (
    Convolve,
    convolve_in_place,
    direct_conv3d,
    direct_conv_transpose3d,
    has_onednn,
    residual_in_place,
    score_in_slabs,
)
from ea_psmnet.ops.cost_volume import PairVolume, VolumeKernels, convolve_factored, volume_kernels
from ea_psmnet.ops.native.narrow_conv3d import is_narrow, narrow_conv3d
from ea_psmnet.ops.native.winograd import (
    compiled_conv2d,
    compiled_conv3d,
    compiled_kernels,
    is_compiled_for,
)
from ea_psmnet.ops.precision import round_kernel

_LARGE = 1e9
"""Weights of a magnitude that no trained network has, and that a few layers may overflow with."""


def arrange_for_inference(
    model: PSMNet, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> PSMNet:
    """Copy a network for evaluation only, with parameters that no longer fit checkpoints.

    Batch normalisation is folded into the convolutions before it, the first 3D convolution of a
    concatenation volume becomes its 2D factors, and weights are channels-last. On CPUs convolutions
    are compiled Winograd convolutions where there is a C compiler, other 3D convolutions run in
    oneDNN, and other 2D convolutions compute the activation that follows them in the same pass. In
    half precision the finest volumes are processed a slab of disparities at a time, which takes
    less memory (in float32 it would take a sixth more time; docs/speed-notes.md).

    Args:
        model: Any network; it is not changed.
        dtype: Type of the convolutions. Attention modules, which run under the caller's autocast,
            keep their type, and so do features where that costs little: all of PSMNet's with
            compiled convolutions, otherwise those at half resolution.
        device: The only device that the copy will run on; None for the network's.
    """
    arranged = copy.deepcopy(model).to(device or model.mean.device).eval().requires_grad_(False)
    for pair in fold_normalisation(_outside_attention(arranged)):
        if not isinstance(pair[0], VolumeConv3d):
            continue
        if isinstance(arranged.volume, ConcatVolume):
            pair[0] = FactoredConv(pair[0])
        elif len(arranged.volume.parts) == 1:
            pair[0] = DirectConv3d.like(pair[0])
            arranged.aggregation.stem.insert(0, OnlyPart())
    if _is_on_cpu(arranged) and dtype in (torch.float32, torch.bfloat16):
        _compile(arranged, narrow=dtype == torch.bfloat16)
    _narrow(arranged, dtype)
    if _is_on_cpu(arranged):
        _fuse(arranged, dtype)  # after rounding, which would spread into the zeros of kernels
    to_channels_last(arranged)
    if _is_on_cpu(arranged) and dtype.itemsize < 4:
        _take_slabs(arranged)
    return arranged


def _is_on_cpu(model: PSMNet) -> bool:
    return model.mean.device.type == "cpu"


def _outside_attention(module: nn.Module) -> Iterator[nn.Module]:
    """A module and its descendants, without attention modules."""
    if not isinstance(module, VolumeAttention):
        yield module
        for child in module.children():
            yield from _outside_attention(child)


def fold_normalisation(modules: Iterable[nn.Module]) -> list[nn.Sequential]:
    """Fold batch normalisations into the convolutions before them, for evaluation.

    Returns:
        Those modules that were a convolution and its normalisation, which is now an identity.
    """
    sequences = [module for module in modules if isinstance(module, nn.Sequential)]
    folded = [
        (sequence, index)
        for sequence in sequences
        for index in range(len(sequence) - 1)
        if isinstance(sequence[index + 1], _BatchNorm)
    ]
    for sequence, index in folded:
        _fold(sequence, index)
    return [sequence for sequence, _ in folded if len(sequence) == 2]


def _fold(sequence: nn.Sequential, index: int) -> None:
    """Fold the normalisation behind the convolution at an index."""
    conv, norm = cast(nn.Conv3d, sequence[index]), cast(_BatchNorm, sequence[index + 1])
    transposed = isinstance(conv, nn.ConvTranspose3d)
    folded = fuse_conv_bn_eval(conv, norm, transpose=transposed).requires_grad_(False)
    if transposed:
        sequence[index] = DirectConvTranspose3d.like(folded)
    elif isinstance(folded, nn.Conv3d) and not isinstance(folded, VolumeConv3d):
        sequence[index] = DirectConv3d.like(folded)
    else:
        sequence[index] = folded
    sequence[index + 1] = nn.Identity()


def _compile(model: PSMNet, *, narrow: bool) -> None:
    """Replace convolutions by compiled ones where their numbers of channels allow.

    Args:
        model: The network.
        narrow: Multiply in bfloat16, except in the layers whose rounding errors would reach the
            disparity (docs/speed-notes.md).
    """
    features, aggregation = model.features, model.aggregation
    first = _modules(features.stem, features.stages[0], aggregation.stem, aggregation.residuals)
    for module in set(_outside_attention(model)):
        for name, conv in module.named_children():
            if _is_three_wide(conv) and is_compiled_for(conv.in_channels, conv.out_channels):
                half = narrow and module not in first
                compiled = (
                    CompiledConv3d(conv, narrow=half)
                    if isinstance(conv, DirectConv3d)
                    else CompiledConv2d(conv, narrow=half)
                )
                setattr(module, name, compiled)


def _modules(*parts: nn.Module) -> set[nn.Module]:
    return {module for part in parts for module in part.modules()}


def _is_three_wide(conv: nn.Module) -> TypeGuard[nn.Conv2d | DirectConv3d]:
    """Whether a convolution has three taps a side, stride 1 and a bias."""
    if type(conv) not in (SameSizeConv2d, DirectConv3d):
        return False
    conv = cast(nn.Conv2d | DirectConv3d, conv)
    return (set(conv.kernel_size), set(conv.stride)) == ({3}, {1}) and conv.bias is not None


def _fuse(model: PSMNet, dtype: torch.dtype) -> None:
    """Let convolutions compute the activation, or the sum, that follows them.

    oneDNN's activations turn NaN into numbers. Convolutions that may overflow keep torch's, so that
    damaged weights are noticed.
    """
    activated = model.mean.dtype == torch.float32 and has_onednn(dtype)
    for module in set(model.modules()):
        if isinstance(module, nn.Sequential):
            for index in range(len(module) - 1):
                conv, activation = _first(module[index]), module[index + 1]
                if not isinstance(activation, nn.ReLU | nn.ReLU6):
                    continue
                if isinstance(conv, _Compiled) and isinstance(activation, nn.ReLU):
                    conv.positive, module[index + 1] = True, nn.Identity()
                elif activated and type(conv) in (nn.Conv2d, SameSizeConv2d, SameConv2d):
                    conv = cast(nn.Conv2d, conv)
                    if conv.weight.abs().max() > _LARGE:
                        continue
                    fused = ActivatedConv2d(conv, activation)
                    module[index], module[index + 1] = fused, nn.Identity()
        for name, block in module.named_children():
            if isinstance(block, ResidualBlock) and isinstance(_first(block.conv2), CompiledConv2d):
                setattr(module, name, AddingBlock.like(block))


def _first(pair: nn.Module) -> nn.Module:
    """The convolution of a pair whose normalisation has been folded; any other module itself."""
    if isinstance(pair, nn.Sequential) and len(pair) == 2 and type(pair[1]) is nn.Identity:
        return pair[0]
    return pair


def _narrow(model: PSMNet, dtype: torch.dtype) -> None:
    """Round convolutions to a type, except for the first few, which halves the rounding error.

    With compiled convolutions all of PSMNet's features stay in float32, which takes little time.
    """
    features = model.features
    compiled = any(isinstance(module, CompiledConv2d) for module in features.modules())
    whole = compiled and isinstance(features, FeatureNetwork)
    kept = _modules(features) if whole else _modules(features.stem, features.stages[0])
    for module in set(_outside_attention(model)) - kept:
        _round(module.parameters(recurse=False), dtype)
        if isinstance(module, _Compiled):
            module.dtype = dtype
    _leave_autocast(features, dtype, whole=whole)


def _round(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    for parameter in parameters:
        data = parameter.data
        parameter.data = round_kernel(data, dtype) if data.dim() > 2 else data.to(dtype)


def _leave_autocast(features: Features, dtype: torch.dtype, *, whole: bool) -> None:
    """Run all layers of the features, or the first few, in float32; cast their output."""
    features.stem = FullPrecision(*features.stem)
    if not (whole and isinstance(features, FeatureNetwork)):
        features.stages[0] = FullPrecision(*cast(nn.Sequential, features.stages[0]), Cast(dtype))
        return
    for parts in (features.stages, features.pyramid):
        for index, part in enumerate(parts):
            parts[index] = FullPrecision(*cast(nn.Sequential, part))
    features.fuse = FullPrecision(*features.fuse, Cast(dtype))


def _take_slabs(model: PSMNet) -> None:
    """Process the finest volumes a slab of disparities at a time."""
    aggregation = model.aggregation
    kinds = DirectConv3d | CompiledConv3d
    second = cast(nn.Sequential, aggregation.stem[-2])
    if isinstance(second[0], kinds):
        aggregation.stem[-2] = SlabConv.like(second)
    for kind, parts in (
        (SlabResidual, aggregation.residuals),
        (SlabClassifier, aggregation.classifiers),
    ):
        for index, part in enumerate(parts):
            if isinstance(part.get_submodule("0.0"), kinds):
                parts[index] = kind.like(part)


class ExportableNetwork(nn.Module):
    """A network that `torch.export` can trace into plain operators: two images to the disparity.

    Batch normalisation is folded into convolutions. While a graph is traced, operators that have a
    form of their own for inference compute in a plain one (`torch.compiler.is_exporting`).

    Args:
        network: Any network; a copy of it is used.
        dtype: Type of the weights. Below float32, normalisation of images, softmaxes, sums of
            attention and the disparity head remain in float32.
    """

    def __init__(self, network: PSMNet, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        made = copy.deepcopy(network).cpu().eval().requires_grad_(False)
        fold_normalisation(made.modules())
        if dtype != torch.float32:
            _round(made.parameters(), dtype)
            for module in made.modules():
                for name, buffer in module._buffers.items():
                    if buffer is not None and module is not made and buffer.is_floating_point():
                        module._buffers[name] = buffer.to(dtype)
            made.features = nn.Sequential(Cast(dtype), made.features)  # type: ignore[assignment]
        self.network = made

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Images (B, 3, H, W) in float32 from 0 to 1 to disparity (B, H, W) in float32."""
        return self.network(left, right).disparity.float()


# Layers -------------------------------------------------------------------------------------------


class FullPrecision(nn.Sequential):
    """Layers that run with autocast off; on the CPU one image at a time, to save memory."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the output of the last layer."""
        images = x.split(1) if x.device.type == "cpu" else (x,)
        with torch.autocast(x.device.type, enabled=False):
            return torch.cat([nn.Sequential.forward(self, image) for image in images])


class Cast(nn.Module):
    """Conversion to another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Convert a tensor of any shape."""
        return x.to(self.dtype)


class _Replacing(nn.Module):
    """A module that replaces another one and shares its parameters."""

    @classmethod
    def like(cls, module: nn.Module) -> Self:
        """A replacement that shares the settings, parameters and children of a module."""
        made = cls.__new__(cls)
        made.__dict__.update(module.__dict__)
        return made


class DirectConv3d(_Replacing, nn.Conv3d):
    """A convolution that always runs in oneDNN on the CPU, see `direct_conv3d`."""

    def forward(self, volume: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, outputs, ...)."""
        return self._convolve(volume, cast(tuple[int, ...], self.padding))

    def between(self, volume: Tensor) -> Tensor:
        """(B, inputs, D + 2, H, W) to (B, outputs, D, H, W), padded in rows and columns only."""
        return self._convolve(volume, (0, 1, 1))

    def _convolve(self, volume: Tensor, padding: tuple[int, ...]) -> Tensor:
        kernel, taps, steps = (self.weight, self.bias), set(self.kernel_size), set(self.stride)
        if (taps, steps) == ({3}, {1}) and is_narrow(volume, self.weight):
            return narrow_conv3d(volume, *kernel, padded=padding[0] == 1)
        return direct_conv3d(volume, *kernel, self.stride, padding, self.dilation, self.groups)


class DirectConvTranspose3d(_Replacing, nn.ConvTranspose3d):
    """A transposed convolution that always runs in oneDNN on the CPU, see `direct_conv3d`."""

    def forward(self, volume: Tensor) -> Tensor:  # type: ignore[override]
        """(B, inputs, D, H, W) to (B, outputs, 2D, 2H, 2W)."""
        sides = self.stride, cast(tuple[int, ...], self.padding), self.output_padding
        rest = self.groups, self.dilation
        return direct_conv_transpose3d(volume, self.weight, self.bias, *sides, *rest)


class ActivatedConv2d(nn.Module):
    """A convolution and its activation in one pass of oneDNN.

    A row and column of padding that only the end of the images has becomes one of zeros at the
    start of the kernel, so that no padded copy of the images is made.

    Args:
        conv: The convolution, of which a copy is used.
        activation: The activation.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.ReLU | nn.ReLU6) -> None:
        super().__init__()
        padding, weight = cast(tuple[int, int], conv.padding), conv.weight
        if isinstance(conv, SameConv2d):
            before, after = conv.margins
            padding = after, after
            weight = F.pad(weight, (after - before, 0) * 2)
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), conv.bias
        self.settings = padding, conv.stride, conv.dilation, conv.groups
        limited = isinstance(activation, nn.ReLU6)
        self.activation = ("hardtanh", [0.0, 6.0], "") if limited else ("relu", [], "")

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        given = images.to(self.weight.dtype)
        return torch.ops.mkldnn._convolution_pointwise(
            given, self.weight, self.bias, *self.settings, *self.activation
        )


class _Compiled(nn.Module):
    """A convolution by compiled code on the CPU; see `compiled_kernels` for `narrow`."""

    kernels: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d | nn.Conv3d, *, narrow: bool) -> None:
        super().__init__()
        assert conv.bias is not None
        self.dtype = torch.float32
        self.positive = False
        kernels = compiled_kernels(conv.weight, narrow=narrow)
        self.register_buffer("kernels", kernels, persistent=False)
        self.register_buffer("bias", conv.bias.detach().float(), persistent=False)


class CompiledConv3d(_Compiled):
    """A 3x3x3 convolution of stride 1, by compiled code."""

    def forward(self, volume: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, outputs, D, H, W)."""
        return self._convolve(volume, padded=True)

    def between(self, volume: Tensor) -> Tensor:
        """(B, inputs, D + 2, H, W) to (B, outputs, D, H, W), padded in rows and columns only."""
        return self._convolve(volume, padded=False)

    def _convolve(self, volume: Tensor, *, padded: bool) -> Tensor:
        given = volume.to(self.dtype)
        return compiled_conv3d(
            given, self.kernels, self.bias, padded=padded, positive=self.positive
        )


class CompiledConv2d(_Compiled):
    """A 3x3 convolution of stride 1, by compiled code."""

    def __init__(self, conv: nn.Conv2d, *, narrow: bool) -> None:
        super().__init__(conv, narrow=narrow)
        self.dilation = conv.dilation[0]

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        return self._convolve(images, None)

    def add_to(self, total: Tensor, images: Tensor) -> Tensor:
        """Add the convolution of (B, inputs, H, W) to a total (B, outputs, H, W) in place."""
        return self._convolve(images, total)

    def _convolve(self, images: Tensor, total: Tensor | None) -> Tensor:
        return compiled_conv2d(
            images.to(self.dtype),
            self.kernels,
            self.bias,
            dilation=self.dilation,
            positive=self.positive,
            total=total,
        )


class AddingBlock(_Replacing, ResidualBlock):
    """A block whose second convolution adds to the output of the shortcut in place.

    Without a shortcut convolution this overwrites the input. Features that are used again only
    enter blocks with one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W), which may be overwritten, to (B, outputs, H / stride, W / stride)."""
        second = cast(CompiledConv2d, self.conv2[0])
        hidden = self.conv1(x)
        return second.add_to(self.shortcut(x), hidden)


class OnlyPart(nn.Module):
    """The only part of a volume, as a tensor."""

    def forward(self, volume: tuple[Tensor]) -> Tensor:
        """The parts of a volume to (B, C, K, h, w)."""
        return volume[0]


class FactoredConv(nn.Module):
    """A `VolumeConv3d` of a concatenation volume, by 2D kernels that are computed once."""

    def __init__(self, conv: VolumeConv3d) -> None:
        super().__init__()
        kernels = volume_kernels(conv.weight)
        self.left, self.right = (nn.Parameter(k, requires_grad=False) for k in kernels)
        self.bias = conv.bias

    def forward(self, volume: tuple[PairVolume]) -> Tensor:
        """See `volume_conv`."""
        return convolve_factored(volume[0], VolumeKernels(self.left, self.right), self.bias)


class SlabConv(_Replacing, nn.Sequential):
    """A convolution that overwrites its input, a slab of disparities at a time."""

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, K, h, w) to the same."""
        return convolve_in_place(volume, _convolution(self, "0").between)


class SlabResidual(_Replacing, Residual):
    """A residual block that adds to its input in place, a slab of disparities at a time."""

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, K, h, w) to the same, in place."""
        second = _convolution(self, "2.0")
        return residual_in_place(volume, _activated(self), second.between)


class SlabClassifier(_Replacing, Classifier):
    """A classifier that works on a slab of disparities at a time."""

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, K, h, w) to (B, 1, K, h, w)."""
        return score_in_slabs(volume, _activated(self), cast(Tensor, self[2].weight))


def _activated(module: nn.Sequential) -> Convolve:
    """The first convolution of a module, followed by its activation."""
    first, activation = _convolution(module, "0.0"), module[1]
    return lambda volume: activation(first.between(volume))


def _convolution(module: nn.Module, name: str) -> DirectConv3d | CompiledConv3d:
    return cast(DirectConv3d | CompiledConv3d, module.get_submodule(name))
