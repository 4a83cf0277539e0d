"""Where half precision stops: sums over many positions or disparities need float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["full_precision", "linear", "widen"]

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
