"""Where half precision stops: sums over many positions or disparities need float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["full_precision", "lean_backward", "linear", "widen"]

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
    """Run a function with autocast off, which would narrow the products of widened tensors."""

    @wraps(function)
    def wrapper(first: Tensor, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args, **kwargs)

    return wrapper


def lean_backward(function: Callable[..., _T]) -> Callable[..., _T]:
    """Decorator of a `Function`'s backward that recomputes: the same wherever it is called from.

    Autocast is off in it, also where the user's `backward()` stands inside an autocast region. It
    refuses second derivatives itself: behind torch's `once_differentiable`, `torch.autograd.grad`
    returns some that lack this function's part, without a word.
    """

    @wraps(function)
    def wrapper(ctx: Any, *grads: Tensor) -> _T:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "lean attention has no second derivative (create_graph=True): the plain forms in "
                "ea_psmnet.ops have, as EfficientAttention's published_order"
            )
        with torch.autocast(grads[0].device.type, enabled=False):
            return function(ctx, *grads)

    return wrapper
