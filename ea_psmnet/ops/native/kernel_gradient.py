"""Gradients of the kernels of convolutions by `kernel_gradient.c`, in float32 on CPUs.

Shapes: B batch, C inputs, N outputs, K disparities, H and W of a map.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ea_psmnet.ops.native import load_library

_INPUTS = 4
"""`INPUTS` of kernel_gradient.c."""

_LEAST_ROWS = 16
"""Rows of the gradient for each thread, whose sums have to be cleared and added up."""


def is_compiled_for(inputs: int, outputs: int) -> bool:
    """Whether this machine has compiled code for these numbers of channels."""
    library = _library()
    if library is None:
        return False
    return inputs % _INPUTS == outputs % library.kernel_gradient_lanes() == 0


def kernel_gradient(
    inputs: Tensor, gradient: Tensor, *, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Gradient of a kernel of three taps a side, whose convolution is padded by its dilation.

    For a transposed convolution, exchange its input and the gradient of its output.

    Args:
        inputs: (B, C, H, W) or (B, C, K, H, W) in float32; no copy is made if it is channels-last.
        gradient: Gradient of the output (B, N, ...), likewise.
        stride: Along all sides.
        dilation: Distance between the taps; 1 for volumes.

    Returns:
        (N, C, 3, 3) or (N, C, 3, 3, 3).
    """
    volume = inputs.dim() == 5
    seen, given = (_channels_last(tensor) for tensor in (inputs, gradient))
    sizes = seen.shape[-1], given.shape[-1]
    taps = (3,) * (inputs.dim() - 2)
    rows = given[..., 0, 0].numel()
    threads = min(torch.get_num_threads(), max(1, rows // _LEAST_ROWS))
    # Of NumPy: estimates of memory measure torch's tensors, and scale them with the images.
    sums = np.empty((threads, *taps, *sizes), np.float32)
    job = _Job(_Layout.of(seen), _Layout.of(given), sums.ctypes.data, len(seen), *sizes)
    job.stride, job.dilation, job.volume, job.threads = stride, dilation, volume, threads
    library = _library()
    assert library is not None
    library.kernel_gradient_compute(ctypes.byref(job))
    return torch.from_numpy(sums.sum(0)).movedim((-1, -2), (0, 1))


def _channels_last(tensor: Tensor) -> Tensor:
    """(B, C, [K,] H, W) to (B, K, H, W, C), whose channels are adjacent."""
    moved = tensor.movedim(1, -1)
    moved = moved if tensor.dim() == 5 else moved.unsqueeze(1)
    return moved if moved.stride(-1) == 1 else moved.contiguous()


class _Layout(ctypes.Structure):
    """`Layout` of kernel_gradient.c."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("image", "plane", "row", "column")),
        *((name, ctypes.c_int64) for name in ("depth", "height", "width")),
    )

    @classmethod
    def of(cls, tensor: Tensor) -> _Layout:
        """(B, K, H, W, C), with adjacent channels."""
        return cls(tensor.data_ptr(), *tensor.stride()[:4], *tensor.shape[1:4])


class _Job(ctypes.Structure):
    """`Job` of kernel_gradient.c."""

    _fields_ = (
        *((name, _Layout) for name in ("input", "gradient")),
        ("sums", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("images", "inputs", "outputs", "stride")),
        *((name, ctypes.c_int64) for name in ("dilation", "volume", "threads")),
    )


@cache
def _library() -> ctypes.CDLL | None:
    functions = "kernel_gradient_lanes", "kernel_gradient_compute"
    return load_library(Path(__file__).with_suffix(".c"), functions, 1, _Layout, _Job)
