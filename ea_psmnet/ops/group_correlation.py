"""Group-wise correlation volumes (Guo et al., "Group-wise Correlation Stereo Network", CVPR 2019,
section 3.2).

Shapes: B batch, C channels, G groups, K disparity levels, H and W of the features.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.compiled import load_library
from ea_psmnet.ops.precision import full_precision, widen

__all__ = ["group_correlation", "group_correlation_reference"]

_FUNCTIONS, _INTERFACE = ("correlation_forward", "correlation_backward"), 1
_MOST_GROUPS = 64
_MOST_CHANNELS = 512


@full_precision
def group_correlation_reference(
    left: Tensor, right: Tensor, levels: int, groups: int, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Cosine similarity of each group of channels between the left pixel x and the right x - k.

    Normalising within a group makes the volume indifferent to the contrast of either image.

    Args:
        left: (B, C, H, W) features of the left image.
        right: (B, C, H, W) features of the right image.
        levels: K, the disparities compared, in feature pixels.
        groups: G, a divisor of C; group g holds channels g C / G to (g + 1) C / G - 1.
        dtype: Type of the volume; default: that of `left`.

    Returns:
        (B, G, K, H, W); zero where x < k.
    """
    a, b = (_unit(features, groups).permute(0, 4, 3, 1, 2) for features in (left, right))
    width = left.shape[-1]  # a, b: (B, G, c, H, W)
    volume = a.new_zeros(a.shape[0], groups, levels, *a.shape[-2:])
    for k in range(min(levels, width)):
        volume[:, :, k, :, k:] = (a[..., k:] * b[..., : width - k]).sum(dim=2)
    return volume.to(left.dtype if dtype is None else dtype)


@full_precision
def group_correlation(
    left: Tensor, right: Tensor, levels: int, groups: int, *, dtype: torch.dtype | None = None
) -> Tensor:
    """`group_correlation_reference` with its own backward, which keeps only the features.

    In C on CPUs, otherwise one product of matrices a level. The volume is channels-last.
    """
    a, b = _unit(left, groups), _unit(right, groups)
    return _Correlation.apply(a, b, levels, left.dtype if dtype is None else dtype)


def _unit(features: Tensor, groups: int) -> Tensor:
    """(B, C, H, W) to (B, H, W, C / G, G), each group of a pixel of length one."""
    if features.shape[1] % groups:
        raise ValueError(f"{features.shape[1]} feature channels do not split into {groups} groups")
    grouped = widen(features).unflatten(1, (groups, -1))  # (B, G, c, H, W)
    return F.normalize(grouped, dim=2, eps=1e-6).permute(0, 3, 4, 2, 1).contiguous()


class _Correlation(torch.autograd.Function):
    """The sums over a group's channels, for all levels."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(left, right)
        batch, height, width, _, groups = left.shape
        volume = torch.empty(batch, levels, height, width, groups, dtype=dtype, device=left.device)
        if _is_compiled_for(left, dtype):
            _run("correlation_forward", left, right, volume)
        else:
            volume.zero_()
            for k in range(min(levels, width)):
                products = left[:, :, k:] * right[:, :, : width - k]  # (B, H, W - k, c, G)
                volume[:, k, :, k:] = products.sum(dim=3).to(dtype)
        return volume.permute(0, 4, 1, 2, 3)  # (B, G, K, H, W)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        left, right = ctx.saved_tensors
        grad = grads[0].permute(0, 2, 3, 4, 1).contiguous()  # (B, K, H, W, G)
        of_left, of_right = torch.zeros_like(left), torch.zeros_like(right)
        if _is_compiled_for(left, grad.dtype):
            _run("correlation_backward", left, right, grad, of_left, of_right)
        else:
            width = left.shape[2]
            for k in range(min(grad.shape[1], width)):
                weights = grad[:, k, :, k:].unsqueeze(3)  # (B, H, W - k, 1, G)
                of_left[:, :, k:] += weights * right[:, :, : width - k]
                of_right[:, :, : width - k] += weights * left[:, :, k:]
        return of_left, of_right, None, None


class _Arguments(ctypes.Structure):
    """`Correlation` of group_correlation.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("left", "right", "volume")),
        *((name, ctypes.c_void_p) for name in ("left_gradient", "right_gradient")),
        *((name, ctypes.c_int64) for name in ("images", "levels", "height", "width")),
        *((name, ctypes.c_int64) for name in ("channels", "groups", "half", "threads")),
    )


def _is_compiled_for(features: Tensor, dtype: torch.dtype) -> bool:
    if torch.compiler.is_compiling() or features.device.type != "cpu":
        return False
    channels, groups = features.shape[3:]
    fits = groups <= _MOST_GROUPS and channels * groups <= _MOST_CHANNELS
    typed = features.dtype == torch.float32 and dtype in (torch.float32, torch.bfloat16)
    return fits and typed and _library() is not None


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
    source = Path(__file__).with_name("group_correlation.c")
    return load_library(source, _FUNCTIONS, _INTERFACE, _Arguments)
