"""3x3x3 convolutions of volumes to one channel by `score_conv.c`, on CPUs.

Shapes: C channels, K disparity levels, h and w of the features.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.native import is_readable, load_library

_CHANNELS = (8, 16, 32)
_DTYPES = (torch.float32, torch.bfloat16)


class _Score(ctypes.Structure):
    """`Score` of score_conv.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("volume", "weight", "total")),
        *((name, ctypes.c_int64) for name in ("depth", "levels", "height", "width")),
        *((name, ctypes.c_int64) for name in ("channels", "start", "half", "threads")),
    )


def is_compiled_for(volume: Tensor, weight: Tensor) -> bool:
    """Whether there is compiled code for a volume (B, C, K, h, w); it cannot be traced."""
    if not (is_readable(volume) and is_readable(weight)) or volume.numel() == 0:
        return False
    fits = volume.shape[1] == weight.shape[1] in _CHANNELS and volume.dtype in _DTYPES
    return fits and _library() is not None


def add_score(total: Tensor, volume: Tensor, weight: Tensor, start: int) -> None:
    """Add the convolution of a part of a volume, padded by one, to scores.

    Args:
        total: (K, h, w) in float32, contiguous.
        volume: (C, k, h, w); no copy is made if its channels are adjacent.
        weight: (1, C, 3, 3, 3).
        start: Level of the part's first plane.
    """
    library = _library()
    assert library is not None
    cells = volume.movedim(0, -1).contiguous()
    taps = weight[0].movedim(0, -1).float().contiguous()
    job = _Score(cells.data_ptr(), taps.data_ptr(), total.data_ptr(), start=start)
    job.depth, job.height, job.width, job.channels = cells.shape
    job.levels, job.half = len(total), cells.dtype == torch.bfloat16
    job.threads = torch.get_num_threads()
    library.score_conv_add(ctypes.byref(job))


class _Gradient(ctypes.Structure):
    """`Gradient` of score_conv.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gradient", "volume", "weight")),
        *((name, ctypes.c_void_p) for name in ("of_volume", "of_weight")),
        *((name, ctypes.c_int64) for name in ("depth", "height", "width", "channels", "threads")),
    )


def score_gradients(gradient: Tensor, volume: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a volume and a weight, in float32 as all tensors here.

    Args:
        gradient: Gradient of the score (K, h, w).
        volume: (C, K, h, w); no copy is made if its channels are adjacent.
        weight: (1, C, 3, 3, 3).

    Returns:
        (C, K, h, w), whose channels are adjacent, and (1, C, 3, 3, 3).
    """
    library = _library()
    assert library is not None
    cells = volume.movedim(0, -1).contiguous()
    taps = weight[0].movedim(0, -1).contiguous()
    made, margin = torch.empty_like(cells), F.pad(gradient, (1,) * 6)
    threads = torch.get_num_threads()
    terms = taps.new_empty(threads, *taps.shape)
    pointers = (tensor.data_ptr() for tensor in (margin, cells, taps, made, terms))
    job = _Gradient(*pointers, *cells.shape, threads)
    library.score_conv_of_volume(ctypes.byref(job))
    library.score_conv_of_weight(ctypes.byref(job))
    return made.movedim(-1, 0), terms.sum(0).movedim(-1, 0).unsqueeze(0)


@cache
def _library() -> ctypes.CDLL | None:
    functions = "score_conv_add", "score_conv_of_volume", "score_conv_of_weight"
    return load_library(Path(__file__).with_suffix(".c"), functions, 2, _Score, _Gradient)
