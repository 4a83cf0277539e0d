"""Attention mechanisms for volumes: one file each, one interface, one visible table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ea_psmnet.attention.dot_product import DotProductAttention
from ea_psmnet.attention.efficient import EfficientAttention
from ea_psmnet.attention.external import ExternalAttention
from ea_psmnet.attention.focused_linear import FocusedLinearAttention
from ea_psmnet.attention.hydra import HydraAttention
from ea_psmnet.attention.resources import TABLE_1, Resources
from ea_psmnet.attention.volume import VolumeAttention
from ea_psmnet.ops.choices import build_choice, check_choice

__all__ = [
    "MECHANISMS",
    "DotProductAttention",
    "EfficientAttention",
    "ExternalAttention",
    "FocusedLinearAttention",
    "HydraAttention",
    "VolumeAttention",
    "build_attention",
    "closed_form",
]

MECHANISMS: dict[str, type[VolumeAttention]] = {
    "efficient": EfficientAttention,
    "dot_product": DotProductAttention,
    "focused_linear": FocusedLinearAttention,
    "external": ExternalAttention,
    "hydra": HydraAttention,
}

_CHOICES: dict[str, Callable[..., nn.Module]] = {"none": lambda channels: nn.Identity()}
_CHOICES |= MECHANISMS


def build_attention(mechanism: str, channels: int, **options: Any) -> nn.Module:
    """The module for a mechanism's name; `none` is the identity.

    Args:
        mechanism: `none` or a key of `MECHANISMS`.
        channels: C of the volume it will work on.
        options: keyword arguments of the mechanism's class, as `key_channels=16`.

    Raises:
        ValueError: an unknown mechanism or option; the message lists the choices.
    """
    return build_choice("attention", _CHOICES, mechanism, options, channels)


def closed_form(
    name: str,
    size: Sequence[int],
    channels: int,
    *,
    published_order: bool = False,
    **options: Any,
) -> Resources:
    """Cost of a mechanism on one volume, or of a row of the paper's Table 1.

    Args:
        name: A key of `MECHANISMS` or of `TABLE_1`.
        size: Sides of the volume, as (D, H, W) or (H, W).
        channels: C of the volume.
        published_order: In the order of the published code, also of mechanisms whose modules
            compute in a cheaper one alone.
        options: Keyword arguments of the mechanism's class.

    Raises:
        ValueError: an unknown name or option; the message lists the choices.

    Example:
        >>> closed_form("table1-efficient", (64, 64), 64, key_channels=32).operations
        100925440
    """
    check_choice("closed form", name, [*TABLE_1, *MECHANISMS])
    if name in TABLE_1:
        return TABLE_1[name](size, channels, **options)
    with torch.device("meta"):
        module = MECHANISMS[name](channels, **options)
    return module.cost(size, published=published_order)
