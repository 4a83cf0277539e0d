"""Attention mechanisms for volumes: one file for each, one base class, one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ea_psmnet.attention.base import TABLE_1, Resources, VolumeAttention
from ea_psmnet.attention.dot_product import DotProductAttention
from ea_psmnet.attention.efficient import EfficientAttention
from ea_psmnet.attention.external import ExternalAttention
from ea_psmnet.attention.focused_linear import FocusedLinearAttention
from ea_psmnet.attention.hydra import HydraAttention
from ea_psmnet.tables import build_choice, check_choice

__all__ = [
    "MECHANISMS",
    "DotProductAttention",
    "EfficientAttention",
    "ExternalAttention",
    "FocusedLinearAttention",
    "HydraAttention",
    "Resources",
    "VolumeAttention",
    "build_attention",
    "closed_form",
    "weightless",
]

MECHANISMS: dict[str, type[VolumeAttention]] = {
    "efficient": EfficientAttention,
    "dot_product": DotProductAttention,
    "focused_linear": FocusedLinearAttention,
    "external": ExternalAttention,
    "hydra": HydraAttention,
}


def build_attention(mechanism: str, channels: int, **options: Any) -> nn.Module:
    """The module for a mechanism's name; `none` is the identity.

    Args:
        mechanism: `none` or a key of `MECHANISMS`.
        channels: C of the volume that the module will be applied to.
        options: Keyword arguments of the mechanism's class, such as `key_channels=16`.

    Raises:
        ValueError: Unknown mechanism or option; the message lists the choices.
    """
    choices: dict[str, Callable[..., nn.Module]] = {"none": lambda channels: nn.Identity()}
    return build_choice("attention", choices | MECHANISMS, mechanism, options, channels)


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
        size: Sides of the volume, (D, H, W) or (H, W).
        channels: C of the volume.
        published_order: Count the order of the published code, even if the module always computes
            in a cheaper one.
        options: Keyword arguments of the mechanism's class; rows of Table 1 ignore what they do not
            depend on.

    Raises:
        ValueError: Unknown name or option; the message lists the choices.

    Example:
        >>> closed_form("table1-efficient", (64, 64), 64, key_channels=32).operations
        100925440
    """
    check_choice("closed form", name, [*TABLE_1, *MECHANISMS])
    if name in TABLE_1:
        return TABLE_1[name](size, channels, **options)
    return weightless(name, channels, **options).cost(size, published=published_order)


def weightless(mechanism: str, channels: int, **options: Any) -> VolumeAttention:
    """A module whose parameters take no memory (on torch's meta device), for its `cost`.

    Raises:
        ValueError: As `build_attention`.
    """
    with torch.device("meta"):
        return build_choice("attention", MECHANISMS, mechanism, options, channels)
