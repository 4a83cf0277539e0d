"""Winograd convolutions by `winograd.c`: along two axes of a map or three of a volume, on CPUs.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016: F(4, 3) along rows
and columns, F(2, 3) along disparities. In effect polynomials are interpolated, along rows and
columns at 0, infinity and four points between them. The customary four points, 1, -1, 2 and -2,
multiply rounding errors 1.4 times as much as those taken here.

Inputs and outputs may be bfloat16. All steps between them are in float32, so that only the output
is rounded; narrow kernels round the factors of the products, too.

Shapes: B batch, C inputs, N outputs, K disparities, H and W of a map.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ea_psmnet.ops.native import load_library

_NEAR, _FAR = math.sqrt(1 / 2), math.sqrt(2)
"""The interpolation points are these and their negatives."""

_TILE, _STRIP = 4, 12
"""Outputs of a tile along an axis, and tiles of a strip: `TILE` and `TILES` of winograd.c."""

_STREAMED_BYTES = 2**24
"""An output of this size has left the processor's caches before it is read."""


class _Layout(ctypes.Structure):
    """`Layout` of winograd.c."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("image", "plane", "row", "column")),
    )


class _Job(ctypes.Structure):
    """`Job` of winograd.c."""

    _fields_ = (
        *((name, _Layout) for name in ("input", "output")),
        *((name, ctypes.c_void_p) for name in ("kernels", "bias")),
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "inputs", "outputs")),
        *((name, ctypes.c_int64) for name in ("dilation", "depth", "input_depth", "first")),
        *((name, ctypes.c_int64) for name in ("volume", "half", "narrow", "add", "positive")),
        *((name, ctypes.c_int64) for name in ("stream", "threads")),
    )


def is_compiled_for(inputs: int, outputs: int) -> bool:
    """Whether this machine has compiled convolutions for these numbers of channels."""
    library = _library()
    if library is None:
        return False
    lanes = library.winograd_lanes()
    return inputs % lanes == outputs % lanes == 0


def compiled_kernels(weight: Tensor, *, narrow: bool = False) -> Tensor:
    """Transform a weight for the compiled convolutions.

    Args:
        weight: (N, C, 3, 3, 3), or (N, C, 3, 3) of a 2D convolution.
        narrow: Multiply in bfloat16 and accumulate in float32 where the processor supports it:
            twice as many products at a time, with a rounding error of about 1 % of an output.

    Returns:
        (6, 6, 4, C, N), sums along rows, columns and disparities, or (6, 6, C, N), in float32;
        narrow (..., C / 2, N, 2) in bfloat16.
    """
    made = _six_kernels(_six_kernels(weight.detach().double(), -1), -2)  # (N, C, [3,] 6, 6)
    if weight.dim() == 5:
        first, middle, last = made.unbind(2)
        sums = (first + middle + last) / 2, (first - middle + last) / 2
        made = torch.stack([first, *sums, last], 2)  # (N, C, 4, 6, 6): F(2, 3) at 0, ±1, infinity
    made = made.movedim((-2, -1), (0, 1)).movedim((2, 3), (-1, -2))  # (6, 6, [4,] C, N)
    if narrow and multiplies_narrow():
        return made.unflatten(-2, (-1, 2)).movedim(-2, -1).to(torch.bfloat16).contiguous()
    return made.float().contiguous()


def _six_kernels(weight: Tensor, dim: int) -> Tensor:
    """The three taps along a dimension as six factors, one for each interpolation point."""
    first, middle, last = weight.unbind(dim)
    kernels = [first]
    for point, scale in ((_NEAR, -1.5), (_FAR, 6.0)):
        even, odd = first + point**2 * last, point * middle
        kernels += [(even + odd) / scale, (even - odd) / scale]
    return torch.stack([*kernels, last], dim)


def multiplies_narrow() -> bool:
    """Whether compiled convolutions can multiply in bfloat16 on this machine."""
    library = _library()
    return library is not None and bool(library.winograd_narrow())


def compiled_conv3d(
    volume: Tensor, kernels: Tensor, bias: Tensor, *, padded: bool = True, positive: bool = False
) -> Tensor:
    """A 3x3x3 convolution of stride 1, padded in rows and columns.

    Args:
        volume: (B, C, K, H, W), float32 or bfloat16.
        kernels: The result of `compiled_kernels`.
        bias: (N,), float32.
        padded: Whether to pad disparities as well.
        positive: Set negative outputs to zero.

    Returns:
        (B, N, K, H, W), or without that padding (B, N, K - 2, H, W); channels-last.
    """
    depth = volume.shape[2] if padded else volume.shape[2] - 2
    job = _Job(first=-1 if padded else 0, volume=True, dilation=1, positive=positive)
    return _convolve(volume.movedim(1, -1), depth, kernels, bias, job).movedim(-1, 1)


def compiled_conv2d(
    images: Tensor,
    kernels: Tensor,
    bias: Tensor,
    *,
    dilation: int = 1,
    positive: bool = False,
    total: Tensor | None = None,
) -> Tensor:
    """A 3x3 convolution of stride 1, padded by its dilation.

    Args:
        images: (B, C, H, W), float32 or bfloat16.
        kernels: The result of `compiled_kernels`.
        bias: (N,), float32.
        dilation: Distance between the taps.
        positive: Set negative outputs to zero.
        total: (B, N, H, W), channels-last, of the images' type: the result is added to it in place.

    Returns:
        (B, N, H, W), channels-last; `total` if it was given.
    """
    job = _Job(volume=False, dilation=dilation, positive=positive, add=total is not None)
    maps = images.movedim(1, -1).unsqueeze(1)
    out = None if total is None else total.movedim(1, -1).unsqueeze(1)
    return _convolve(maps, 1, kernels, bias, job, out).squeeze(1).movedim(-1, 1)


def _convolve(
    given: Tensor, depth: int, kernels: Tensor, bias: Tensor, job: _Job, out: Tensor | None = None
) -> Tensor:
    """Run a job that states the kind of convolution: (B, K, H, W, C) to (B, depth, H, W, N)."""
    if given.stride(-1) != 1:
        given = given.contiguous()
    batch, job.input_depth, job.height, job.width, job.inputs = given.shape
    shape = batch, depth, job.height, job.width, bias.numel()
    made = given.new_empty(shape) if out is None else out
    assert made.shape == shape
    assert made.dtype == given.dtype in (torch.float32, torch.bfloat16)
    assert made.stride(-1) == 1
    assert given.device.type == "cpu"
    job.images, job.depth, job.outputs = batch, depth, bias.numel()
    job.input, job.output = _layout(given), _layout(made)
    job.kernels, job.bias = kernels.data_ptr(), bias.data_ptr()
    job.half, job.narrow = (t.dtype == torch.bfloat16 for t in (given, kernels))
    job.stream = out is None and not job.half and made.nbytes >= _STREAMED_BYTES
    _run(job, kernels)
    return made


def _layout(tensor: Tensor) -> _Layout:
    return _Layout(tensor.data_ptr(), *tensor.stride()[:4])


def _run(job: _Job, kernels: Tensor) -> None:
    library = _library()
    assert library is not None
    tiles = job.images * -(-job.height // _TILE) * -(-job.width // _TILE)
    job.threads = min(torch.get_num_threads(), -(-tiles // _STRIP))
    at = ctypes.addressof(job)
    rooms = kernels.new_empty(job.threads, library.winograd_room(at), dtype=torch.float32)
    library.winograd_convolve(at, rooms.data_ptr())


@cache
def _library() -> ctypes.CDLL | None:
    functions = "winograd_lanes", "winograd_narrow", "winograd_room", "winograd_convolve"
    library = load_library(Path(__file__).with_suffix(".c"), functions, 1, _Layout, _Job)
    if library is None:
        return None
    library.winograd_room.restype = ctypes.c_int64
    library.winograd_room.argtypes = [ctypes.c_void_p]
    library.winograd_convolve.restype = None
    library.winograd_convolve.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return library
