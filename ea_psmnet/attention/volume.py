"""The interface all attention mechanisms share, and the steps they have in common.

Shapes: B batch, C channels, (D, H, W) a volume, n = D * H * W positions, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from ea_psmnet.attention.resources import Resources
from ea_psmnet.ops.choices import check_choice

__all__ = [
    "Start",
    "VolumeAttention",
    "check_counts",
    "check_heads",
    "check_start",
    "check_volume",
    "layout_of",
    "matrix_and_bias",
    "merge_heads",
    "silence",
    "split_heads",
]

Start = Literal["identity", "published"]
"""How a new module starts: adding nothing, or as the code published with its paper."""


class VolumeAttention(nn.Module):
    """A residual attention block: (B, C, D, H, W) in, the same shape, type and layout out."""

    queries: nn.Conv3d

    def forward(self, volume: Tensor) -> Tensor:
        """Add to every position what it gathers from all others.

        Raises:
            ValueError: it is no floating-point volume of C channels, or has no positions.
        """
        check_volume(volume, self.queries.in_channels)
        gathered = self.attend(volume).to(volume.dtype)
        return volume + gathered.contiguous(memory_format=layout_of(volume))

    def attend(self, volume: Tensor) -> Tensor:
        """The residual branch, (B, C, D, H, W) to (B, C, D, H, W)."""
        raise NotImplementedError

    def cost(self, size: Sequence[int], *, published: bool = False) -> Resources:
        """Cost of one forward of one sample, counted as `resources` tells.

        Letters: n positions, d channels, k key and v value channels over all heads, h heads.

        Args:
            size: Sides of the volume, (D, H, W).
            published: In the order of the published code, where the module has a cheaper one.
        """
        raise NotImplementedError


def layout_of(volume: Tensor) -> torch.memory_format:
    """The memory format a volume is in: channels-last where it is dense in that order."""
    last = volume.is_contiguous(memory_format=torch.channels_last_3d)
    return torch.channels_last_3d if last else torch.contiguous_format


def split_heads(volume: Tensor, heads: int) -> Tensor:
    """(B, h * c, D, H, W) to (B, h, c, n); positions in row-major order of (D, H, W)."""
    batch, channels = volume.shape[:2]
    return volume.reshape(batch, heads, channels // heads, -1)


def merge_heads(positions: Tensor, size: torch.Size) -> Tensor:
    """(B, h, c, n) to (B, h * c, D, H, W), the inverse of `split_heads`."""
    return positions.reshape(positions.shape[0], -1, *size)


def check_volume(volume: Tensor, channels: int) -> None:
    """Raise a ValueError unless it is (B, channels, D, H, W) in floating point, with positions."""
    fits = volume.ndim == 5 and volume.shape[1] == channels and 0 not in volume.shape[2:]
    if not (fits and volume.is_floating_point()):
        raise ValueError(
            f"this attention takes floating-point volumes (B, {channels}, D, H, W), "
            f"not {volume.dtype} {tuple(volume.shape)}"
        )


def check_counts(**counts: int) -> None:
    """Raise a ValueError unless every count, given by its name, is a whole number above zero."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be a whole number, 1 or more, not {count!r}")


def check_heads(heads: int, **channels: int) -> None:
    """Raise a ValueError unless the heads divide every number of channels, given by its name."""
    check_counts(heads=heads, **{f"{name}_channels": count for name, count in channels.items()})
    for name, count in channels.items():
        if count % heads:
            raise ValueError(f"{heads} heads cannot share {count} {name} channels equally")


def check_start(name: str) -> None:
    """Raise a ValueError that lists the choices when `name` is not among them."""
    check_choice("start", name, get_args(Start))


def matrix_and_bias(layer: nn.Conv3d) -> tuple[Tensor, Tensor]:
    """A 1x1x1 convolution as a matrix (outputs, inputs) and its bias (outputs,)."""
    return layer.weight.flatten(1), cast(Tensor, layer.bias)


def silence(layer: nn.Module) -> None:
    """Zero a layer's parameters: a branch that ends in it adds nothing yet."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
