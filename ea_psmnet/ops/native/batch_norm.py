"""Batch normalisation in training on the CPU, with float32 or bfloat16 activations.

torch's own takes several times as long if channels are few and adjacent, as in a cost volume.

Shapes: B batch, C channels, ... the sides of an image or a volume.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.native import is_readable, load_library
from ea_psmnet.ops.precision import lean_backward

_LEAST_LANES, _MOST_LANES, _VECTOR = 32, 2048, 16


def batch_norm_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """`torch.nn.functional.batch_norm` in training mode, (B, C, ...) to the same.

    All other tensors are (C,); the running statistics, if given, are updated in place.
    """
    return F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """`batch_norm_reference`, in C for activations that are channels-last on a CPU.

    Compiled code needs parameters and statistics in float32, and sums in float32.
    """
    kept = [t for t in (weight, bias, running_mean, running_var) if t is not None]
    lanes = _lanes(x) if all(_is_vector(t, x.shape[1]) for t in kept) else None
    if lanes is None or _library() is None:
        return batch_norm_reference(x, weight, bias, running_mean, running_var, momentum, eps)
    return _BatchNorm.apply(x, lanes, weight, bias, running_mean, running_var, momentum, eps)


def _is_vector(values: Tensor, channels: int) -> bool:
    """Whether compiled code can read one float32 value a channel."""
    fits = values.shape == (channels,) and values.dtype == torch.float32
    return fits and values.is_contiguous() and is_readable(values)


def _lanes(x: Tensor) -> int | None:
    """Length of rows of adjacent pixels of (B, C, ...) that fill vectors.

    None if compiled code cannot be used.
    """
    if not is_readable(x) or x.dtype not in (torch.float32, torch.bfloat16):
        return None
    channels = x.shape[1]
    if not x.detach().movedim(1, -1).is_contiguous() or x.numel() <= channels:
        return None
    fitting = (n * channels for n in range(1, _VECTOR + 1) if n * channels % _VECTOR == 0)
    lanes = next((n for n in fitting if n >= _LEAST_LANES), channels * _VECTOR)
    return None if lanes > _MOST_LANES or x.numel() % lanes else lanes


class _BatchNorm(torch.autograd.Function):
    """Keeps its input, and the mean and the inverse deviation of every channel."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        lanes: int,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        made, (mean, scale) = torch.empty_like(x), weight.new_empty(2, x.shape[1])
        tensors = (x, None, made, weight, bias, mean, scale, running_mean, running_var)
        _run("forward", lanes, tensors, momentum=momentum, eps=eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.lanes = lanes
        return made

    @staticmethod
    @lean_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        layout = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        gradient = grads[0].to(x.dtype).contiguous(memory_format=layout)
        made = torch.empty_like(x)
        of_weight, of_bias = torch.empty_like(weight), torch.empty_like(weight)
        known = (x, gradient, made, weight, None, mean, scale, None, None)
        _run("backward", ctx.lanes, (*known, of_weight, of_bias))
        return made, None, of_weight, of_bias, None, None, None, None


class _Norm(ctypes.Structure):
    """`Norm` of batch_norm.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input", "gradient", "output", "weight", "bias")),
        *((name, ctypes.c_void_p) for name in ("mean", "scale", "running_mean", "running_var")),
        *((name, ctypes.c_void_p) for name in ("weight_gradient", "bias_gradient")),
        *((name, ctypes.c_int64) for name in ("rows", "lanes", "channels", "half", "threads")),
        *((name, ctypes.c_double) for name in ("momentum", "eps")),
    )


def _run(name: str, lanes: int, tensors: Sequence[Tensor | None], **numbers: float) -> None:
    """Call a function of the library with the tensors of `_Norm`, in its order."""
    library, x = _library(), tensors[0]
    assert library is not None
    assert x is not None
    job = _Norm(*(None if t is None else t.data_ptr() for t in tensors), **numbers)
    job.rows, job.lanes = x.numel() // lanes, lanes
    job.channels, job.half = x.shape[1], x.dtype == torch.bfloat16
    job.threads = torch.get_num_threads()
    if not getattr(library, f"batch_norm_{name}")(ctypes.byref(job)):
        raise MemoryError("batch normalisation: no memory for its sums")


@cache
def _library() -> ctypes.CDLL | None:
    functions = "batch_norm_forward", "batch_norm_backward"
    return load_library(Path(__file__).with_suffix(".c"), functions, 2, _Norm)
