"""Sums of the group-wise correlation volume, and their gradients, by `group_correlation.c` on CPUs.

Shapes: B batch, c channels a group, G groups, K disparity levels, H and W of the features.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ea_psmnet.ops.native import is_readable, load_library

_MOST_GROUPS, _MOST_CHANNELS = 64, 512


class _Arguments(ctypes.Structure):
    """`Correlation` of group_correlation.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("left", "right", "volume")),
        *((name, ctypes.c_void_p) for name in ("left_gradient", "right_gradient")),
        *((name, ctypes.c_int64) for name in ("images", "levels", "height", "width")),
        *((name, ctypes.c_int64) for name in ("channels", "groups", "half", "threads")),
    )


def is_compiled_for(features: Tensor, dtype: torch.dtype) -> bool:
    """Whether there is compiled code for these features on this machine; it cannot be traced.

    Args:
        features: (B, H, W, c, G).
        dtype: Type of the volume.
    """
    if not is_readable(features):
        return False
    channels, groups = features.shape[3:]
    fits = groups <= _MOST_GROUPS and channels * groups <= _MOST_CHANNELS
    typed = features.dtype == torch.float32 and dtype in (torch.float32, torch.bfloat16)
    return fits and typed and _library() is not None


def compiled_correlation(left: Tensor, right: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """Products of two feature maps (B, H, W, c, G), summed over c, at each level.

    Returns:
        (B, K, H, W, G) of type `dtype`.
    """
    batch, height, width, _, groups = left.shape
    volume = left.new_empty(batch, levels, height, width, groups, dtype=dtype)
    _run("correlation_forward", left, right, volume)
    return volume


def compiled_correlation_backward(
    left: Tensor, right: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of both feature maps for a contiguous gradient (B, K, H, W, G) of the volume."""
    of_left, of_right = torch.empty_like(left), torch.empty_like(right)
    _run("correlation_backward", left, right, gradient, of_left, of_right)
    return of_left, of_right


def _run(name: str, left: Tensor, right: Tensor, volume: Tensor, *gradients: Tensor) -> None:
    pointers = (tensor.data_ptr() for tensor in (left, right, volume, *gradients))
    arguments = _Arguments(*pointers)
    arguments.images, arguments.height, arguments.width = left.shape[:3]
    arguments.channels, arguments.groups = left.shape[3:]
    arguments.levels = volume.shape[1]
    arguments.half = volume.dtype == torch.bfloat16
    arguments.threads = torch.get_num_threads()
    getattr(_library(), name)(ctypes.byref(arguments))


@cache
def _library() -> ctypes.CDLL | None:
    functions = "correlation_forward", "correlation_backward"
    return load_library(Path(__file__).with_suffix(".c"), functions, 1, _Arguments)
