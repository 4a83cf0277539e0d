"""Where half precision stops: sums over many positions or disparities need float32."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["widen"]


def widen(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is wider already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
