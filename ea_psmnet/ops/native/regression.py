"""The disparity heads' sums by `regression.c` on CPUs.

Of `soft_argmin` it is all that follows its upsampling of rows, which makes the whole head about
five times as fast (docs/speed-notes.md); of `convex_upsampling`, without gradients, everything.

Shapes: B batch, K levels, H rows, w columns of the scores, W = 4w; h rows of cells.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ea_psmnet.ops.native import is_readable, load_library


class _Head(ctypes.Structure):
    """`Head` of regression.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("eighths", "disparity", "total")),
        *((name, ctypes.c_void_p) for name in ("gradient", "result")),
        *((name, ctypes.c_int64) for name in ("images", "levels", "height", "width", "threads")),
        ("lowest", ctypes.c_float),
    )


class _Cells(ctypes.Structure):
    """`Cells` of regression.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("cells", "weights", "result")),
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "threads")),
        ("reach", ctypes.c_float),
    )


def is_compiled_for(scores: Tensor) -> bool:
    """Whether there is compiled code for these scores on this machine; it cannot be traced."""
    return is_readable(scores) and scores.dtype == torch.float32 and _library() is not None


def compiled_expectation(eighths: Tensor, lowest: float) -> tuple[Tensor, Tensor]:
    """Disparity and normaliser.

    Args:
        eighths: (B, K, H, w), an eighth of the scores, float32; K at least 2.
        lowest: Lower bound of the difference to a pixel's highest eighth, to which others are
            clamped.

    Returns:
        Two of (B, H, W).
    """
    batch, _, height, width = eighths.shape
    disparity, total = eighths.new_empty(2, batch, height, 4 * width)
    _run("soft_argmin_forward", eighths, disparity, total, lowest)
    return disparity, total


def compiled_expectation_backward(
    eighths: Tensor, gradient: Tensor, disparity: Tensor, total: Tensor, lowest: float
) -> Tensor:
    """Gradient of the scores (B, K, H, w) for one of the disparity (B, H, W).

    The other arguments are the arguments and results of `compiled_expectation`.
    """
    gradient, result = gradient.contiguous(), eighths.new_zeros(eighths.shape)
    pointers = {"gradient": gradient.data_ptr(), "result": result.data_ptr()}
    _run("soft_argmin_backward", eighths, disparity, total, lowest, **pointers)
    return result


def compiled_upsampling(cells: Tensor, weights: Tensor, reach: float) -> Tensor:
    """Convex upsampling by 4.

    Args:
        cells: (B, h, w), float32.
        weights: (B, 9 * 16, h, w), logits, float32.
        reach: Cells further from the heaviest cell's value do not count.

    Returns:
        (B, 4h, 4w).
    """
    batch, height, width = cells.shape
    cells, weights = cells.contiguous(), weights.contiguous(memory_format=torch.channels_last)
    result = cells.new_empty(batch, 4 * height, 4 * width)
    pointers = (tensor.data_ptr() for tensor in (cells, weights, result))
    given = _Cells(*pointers, batch, height, width, torch.get_num_threads(), reach)
    _call("convex_upsampling", given)
    return result


def _run(
    name: str, eighths: Tensor, disparity: Tensor, total: Tensor, lowest: float, **pointers: int
) -> None:
    eighths = eighths.contiguous()
    head = _Head(eighths.data_ptr(), disparity.data_ptr(), total.data_ptr(), **pointers)
    head.images, head.levels, head.height, head.width = eighths.shape
    head.threads, head.lowest = torch.get_num_threads(), lowest
    _call(name, head)


def _call(name: str, given: ctypes.Structure) -> None:
    getattr(_library(), name)(ctypes.byref(given))


@cache
def _library() -> ctypes.CDLL | None:
    functions = "soft_argmin_forward", "soft_argmin_backward", "convex_upsampling"
    return load_library(Path(__file__).with_suffix(".c"), functions, 2, _Head, _Cells)
