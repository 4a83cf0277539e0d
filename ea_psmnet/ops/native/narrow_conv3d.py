"""3x3x3 convolutions of 8 channels to 8 in bfloat16, on CPUs that multiply it (AVX-512-BF16).

oneDNN pads 8 channels to the 16 lanes of a vector; `narrow_conv3d.c` has its vectors along the
width instead, which takes about two thirds of the time, forward and backward.

Shapes: B batch, K disparity levels, H and W of the features.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.native import is_readable, load_library, needs_gradients
from ea_psmnet.ops.precision import lean_backward

_CHANNELS, _LANES = 8, 16
_FUNCTIONS = ("supported", "scratch", "forward", "weight_gradient")


def narrow_conv3d_reference(
    volume: Tensor, weight: Tensor, bias: Tensor | None = None, *, padded: bool = True
) -> Tensor:
    """`torch.nn.functional.conv3d` of a 3x3x3 kernel, padded by one in rows and columns.

    Args:
        volume: (B, C, K, H, W).
        weight: (N, C, 3, 3, 3).
        bias: (N,) or None.
        padded: Whether to pad disparities as well; otherwise the output has two fewer.
    """
    return F.conv3d(volume, weight, bias, padding=(int(padded), 1, 1))


def narrow_conv3d(
    volume: Tensor, weight: Tensor, bias: Tensor | None = None, *, padded: bool = True
) -> Tensor:
    """`narrow_conv3d_reference`, in C where that is faster, with sums in float32.

    Compiled code handles 8 channels in bfloat16, also by autocast, on CPUs with AVX-512-BF16, and
    gradients of padded convolutions without a bias. Its output is channels-last.
    """
    tensors = (volume, weight) if bias is None else (volume, weight, bias)
    learns = needs_gradients(*tensors)
    if not is_narrow(volume, weight) or (learns and not (bias is None and padded)):
        if learns and padded and volume.shape[2] < weight.shape[2]:
            # The weight's gradient in bfloat16 by oneDNN (torch 2.14) has numbers from outside of
            # its memory for volumes that are less deep than the kernel.
            volume, padded = F.pad(volume, (0, 0, 0, 0, 1, 1)), False
        return narrow_conv3d_reference(volume, weight, bias, padded=padded)
    volume = volume.to(torch.bfloat16)
    if learns:
        return _NarrowConv3d.apply(volume, weight)
    return _forward(volume, weight, bias, padded)


def is_narrow(volume: Tensor, weight: Tensor) -> bool:
    """Whether `narrow_conv3d` has compiled code for a volume and a weight."""
    if not is_readable(volume) or weight.shape[:2] != (_CHANNELS, _CHANNELS):
        return False
    half = volume.dtype == torch.bfloat16
    if torch.is_autocast_enabled("cpu"):
        half = torch.get_autocast_dtype("cpu") == torch.bfloat16
    return half and _library() is not None


class _NarrowConv3d(torch.autograd.Function):
    """The padded convolution without a bias."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(volume, weight)
        return _forward(volume, weight, None, True).detach()  # a view cannot be changed in place

    @staticmethod
    @lean_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        volume, weight = ctx.saved_tensors
        grad = grads[0].to(torch.bfloat16)
        mirrored = weight.transpose(0, 1).flip(2, 3, 4)
        return _forward(grad, mirrored, None, True), _weight_gradient(volume, grad).to(weight)


class _Volume(ctypes.Structure):
    """`Volume` of narrow_conv3d.c."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("image", "plane", "row")),
    )

    @classmethod
    def of(cls, volume: Tensor) -> _Volume:
        """(B, K, H, W, 8), with adjacent channels."""
        return cls(volume.data_ptr(), *volume.stride()[:3])


class _Conv(ctypes.Structure):
    """`Conv` of narrow_conv3d.c."""

    _fields_ = (
        *((name, _Volume) for name in ("input", "output")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "weight_gradient")),
        *((name, ctypes.c_int64) for name in ("images", "depth", "height", "width")),
        *((name, ctypes.c_int64) for name in ("padded", "threads")),
    )


def _forward(volume: Tensor, weight: Tensor, bias: Tensor | None, padded: bool) -> Tensor:
    given = _channels_adjacent(volume)  # (B, K, H, W, 8)
    batch, depth, *sides, _ = given.shape
    made = given.new_empty(batch, depth if padded else depth - 2, *sides, _CHANNELS)
    packed = weight.permute(2, 3, 4, 1, 0).reshape(-1, _CHANNELS // 2, 2, _CHANNELS)
    packed = packed.transpose(-1, -2).to(torch.bfloat16).contiguous()  # (27, 4, 8, 2)
    bias = None if bias is None else bias.float().contiguous()
    job = _Conv(_Volume.of(given), _Volume.of(made), packed.data_ptr(), padded=padded)
    job.bias = None if bias is None else bias.data_ptr()
    _run("forward", job, made)
    return made.movedim(-1, 1)


def _weight_gradient(volume: Tensor, grad: Tensor) -> Tensor:
    """(8, 8, 3, 3, 3) in float32."""
    given, of_output = _channels_adjacent(volume), _channels_adjacent(grad)
    terms = given.new_empty(
        torch.get_num_threads(), *(3, 3, 3), *(_CHANNELS, _CHANNELS, _LANES), dtype=torch.float32
    )
    job = _Conv(_Volume.of(given), _Volume.of(of_output), padded=True)
    job.weight_gradient = terms.data_ptr()
    _run("weight_gradient", job, of_output)
    return terms.sum((0, -1)).permute(4, 3, 0, 1, 2)


def _channels_adjacent(volume: Tensor) -> Tensor:
    """(B, 8, K, H, W) to (B, K, H, W, 8), copied unless rows are contiguous."""
    moved = volume.movedim(1, -1)
    return moved if moved.stride()[3:] == (_CHANNELS, 1) else moved.contiguous()


def _run(name: str, job: _Conv, output: Tensor) -> None:
    library = _library()
    assert library is not None
    job.images, job.depth, job.height, job.width = output.shape[:4]
    job.threads = torch.get_num_threads()
    at = ctypes.addressof(job)
    scratch = output.new_empty(job.threads, library.narrow_conv3d_scratch(at), dtype=torch.uint8)
    getattr(library, f"narrow_conv3d_{name}")(at, scratch.data_ptr())


@cache
def _library() -> ctypes.CDLL | None:
    """The library, if this processor supports it."""
    names = tuple(f"narrow_conv3d_{name}" for name in _FUNCTIONS)
    library = load_library(Path(__file__).with_suffix(".c"), names, 1, _Volume, _Conv)
    if library is None or not library.narrow_conv3d_supported():
        return None
    library.narrow_conv3d_scratch.restype = ctypes.c_int64
    library.narrow_conv3d_scratch.argtypes = [ctypes.c_void_p]
    for name in names[2:]:
        getattr(library, name).restype = None
        getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return library
