"""Where half precision ends: sums in float32, and weights rounded to a narrower type."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_T = TypeVar("_T")


def widen(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is wider already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def linear(x: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """A 1x1x1 convolution of (B, C, n) positions, its (c, C) matrix and (c,) bias widened."""
    return widen(matrix) @ x + widen(bias)[:, None]


def full_precision(
    function: Callable[Concatenate[Tensor, _P], _T],
) -> Callable[Concatenate[Tensor, _P], _T]:
    """Decorator that runs a function with autocast off, which would round widened tensors."""

    @wraps(function)
    def wrapper(first: Tensor, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args, **kwargs)

    return wrapper


def lean_backward(function: Callable[..., _T]) -> Callable[..., _T]:
    """Decorator of a `Function`'s backward that is not differentiable itself.

    It turns autocast off, also if `backward()` is called inside an autocast region. It refuses
    second derivatives: with torch's `once_differentiable`, `torch.autograd.grad` would return
    derivatives that silently lack the contribution of this function.
    """

    @wraps(function)
    def wrapper(ctx: Any, *grads: Tensor) -> _T:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "this function has no second derivative (create_graph=True): its plain form has, "
                "which is named *_reference, or EfficientAttention(published_order=True)"
            )
        with torch.autocast(grads[0].device.type, enabled=False):
            return function(ctx, *grads)

    return wrapper


def round_kernel(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a kernel (O, C, *taps) to a narrower type; each tap takes over the last one's error.

    Neighbouring taps read neighbouring positions, which differ little, so that mainly the error of
    the sum over taps counts. Error diffusion (as Floyd and Steinberg's of grey values) limits it to
    half a unit of one tap. Taps are visited row by row in alternating direction, so that each one
    is a neighbour of the one before.
    """
    taps = weight.flatten(2)  # (O, C, taps)
    rounded = torch.empty_like(taps, dtype=dtype)
    error = torch.zeros_like(taps[..., 0])
    for tap in _walk(weight.shape[2:]):
        wanted = taps[..., tap] + error
        rounded[..., tap] = wanted
        error = wanted - rounded[..., tap].to(error.dtype)
    return rounded.view_as(weight)


def _walk(size: torch.Size) -> list[int]:
    """Indices of a grid in an order in which each is a neighbour of the one before."""
    path = [0]
    for length in size:
        rows = [[place * length + step for step in range(length)] for place in path]
        path = [at for index, row in enumerate(rows) for at in (row[::-1] if index % 2 else row)]
    return path
