"""Convolutions of three taps a side that learn faster in float32 on CPUs.

`winograd.c` computes outputs and gradients of inputs at stride 1, and `kernel_gradient.c` gradients
of kernels; everything else is torch's.

Shapes: B batch, C inputs, N outputs, ... the sides of a map or a volume.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.native import is_readable, kernel_gradient, learns_in_float32, winograd
from ea_psmnet.ops.precision import lean_backward


def trained_conv_reference(
    x: Tensor, weight: Tensor, *, stride: int = 1, dilation: int = 1
) -> Tensor:
    """`torch.nn.functional.conv2d` or `conv3d`, padded by the dilation.

    Args:
        x: (B, C, ...).
        weight: (N, C, 3, 3) or (N, C, 3, 3, 3).
        stride: Along all sides.
        dilation: Distance between the taps; 1 for volumes.
    """
    conv = F.conv2d if weight.dim() == 4 else F.conv3d
    return conv(x, weight, None, stride, dilation, dilation)


def trained_conv(x: Tensor, weight: Tensor, *, stride: int = 1, dilation: int = 1) -> Tensor:
    """`trained_conv_reference`, in C where gradients are needed and that is faster.

    Compiled code handles float32 and numbers of channels that fill the processor's registers. At
    stride 1 its output is channels-last.
    """
    if learns_faster(x, weight, stride=stride, dilation=dilation):
        return _Conv.apply(x, weight, stride, dilation)
    return trained_conv_reference(x, weight, stride=stride, dilation=dilation)


def trained_conv_transpose3d_reference(x: Tensor, weight: Tensor) -> Tensor:
    """`torch.nn.functional.conv_transpose3d` at stride 2, which doubles all sides.

    Args:
        x: (B, C, K, H, W).
        weight: (C, N, 3, 3, 3).
    """
    return F.conv_transpose3d(x, weight, None, *_DOUBLING)


def trained_conv_transpose3d(x: Tensor, weight: Tensor) -> Tensor:
    """`trained_conv_transpose3d_reference`, as `trained_conv`."""
    if learns_faster(x, weight, stride=2, transposed=True):
        return _ConvTranspose3d.apply(x, weight)
    return trained_conv_transpose3d_reference(x, weight)


def learns_faster(
    x: Tensor, weight: Tensor, *, stride: int = 1, dilation: int = 1, transposed: bool = False
) -> bool:
    """Whether compiled code computes some gradient."""
    if not (is_readable(x) and is_readable(weight) and learns_in_float32(x, weight)):
        return False
    outputs, inputs = weight.shape[:2]
    if x.dim() != weight.dim() or (x.dim() == 5 and dilation != 1):
        return False
    if x.shape[1] != (outputs if transposed else inputs):
        return False
    kinds = (kernel_gradient, winograd) if stride == 1 else (kernel_gradient,)
    return all(kind.is_compiled_for(inputs, outputs) for kind in kinds)


_DOUBLING = 2, 1, 1
"""Stride, padding and the output's padding of a transposed convolution that doubles all sides."""


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.dilation = stride, dilation
        if stride == 1:
            return _winograd(x, weight, dilation).detach()  # a view cannot be changed in place
        return trained_conv_reference(x, weight, stride=stride, dilation=dilation)

    @staticmethod
    @lean_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0] and ctx.stride == 1:
            mirrored = weight.transpose(0, 1).flip(*range(2, weight.dim()))
            of_x = _winograd(grad, mirrored, ctx.dilation)
        elif ctx.needs_input_grad[0]:
            of_x = _gradient_of_input(grad, x, weight, ctx.stride, ctx.dilation)
        if ctx.needs_input_grad[1]:
            steps = {"stride": ctx.stride, "dilation": ctx.dilation}
            of_weight = kernel_gradient.kernel_gradient(x, grad, **steps)
        return of_x, of_weight, None, None


class _ConvTranspose3d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return trained_conv_transpose3d_reference(x, weight)

    @staticmethod
    @lean_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = trained_conv_reference(grad, weight, stride=2)
        if ctx.needs_input_grad[1]:
            of_weight = kernel_gradient.kernel_gradient(grad, x, stride=2)
        return of_x, of_weight


def _winograd(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    kernels, bias = winograd.compiled_kernels(weight), weight.new_zeros(weight.shape[0])
    if weight.dim() == 5:
        return winograd.compiled_conv3d(x, kernels, bias)
    return winograd.compiled_conv2d(x, kernels, bias, dilation=dilation)


def _gradient_of_input(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int
) -> Tensor:
    sides = weight.dim() - 2
    steps = (n for n in (stride, dilation, dilation))  # stride, padding, dilation
    settings = *([n] * sides for n in steps), False, [0] * sides, 1
    mask = True, False, False
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *settings, mask)[0]
