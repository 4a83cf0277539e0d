"""The interface all attention mechanisms share, and the shape changes they all need.

Shapes: B batch, C channels, (D, H, W) a volume, n = D * H * W positions, h heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["VolumeAttention", "merge_heads", "split_heads"]


class VolumeAttention(nn.Module):
    """A residual attention block: (B, C, D, H, W) in, the same shape, type and layout out."""

    def forward(self, volume: Tensor) -> Tensor:
        """Add to every position what it gathers from all others."""
        gathered = self.attend(volume).to(volume.dtype)
        if volume.is_contiguous(memory_format=torch.channels_last_3d):
            gathered = gathered.contiguous(memory_format=torch.channels_last_3d)
        return volume + gathered

    def attend(self, volume: Tensor) -> Tensor:
        """The residual branch, (B, C, D, H, W) to (B, C, D, H, W)."""
        raise NotImplementedError


def split_heads(volume: Tensor, heads: int) -> Tensor:
    """(B, h * c, D, H, W) to (B, h, c, n); positions in row-major order of (D, H, W)."""
    batch, channels = volume.shape[:2]
    return volume.reshape(batch, heads, channels // heads, -1)


def merge_heads(positions: Tensor, size: torch.Size) -> Tensor:
    """(B, h, c, n) to (B, h * c, D, H, W), the inverse of `split_heads`."""
    return positions.reshape(positions.shape[0], -1, *size)
