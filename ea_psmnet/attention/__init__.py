"""Attention mechanisms for volumes: one file each, one interface, one visible table."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ea_psmnet.attention.dot_product import DotProductAttention
from ea_psmnet.attention.efficient import EfficientAttention
from ea_psmnet.attention.external import ExternalAttention
from ea_psmnet.attention.focused_linear import FocusedLinearAttention
from ea_psmnet.attention.hydra import HydraAttention
from ea_psmnet.attention.volume import VolumeAttention

__all__ = [
    "MECHANISMS",
    "DotProductAttention",
    "EfficientAttention",
    "ExternalAttention",
    "FocusedLinearAttention",
    "HydraAttention",
    "VolumeAttention",
    "build_attention",
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
        channels: C of the volume it will work on.
        options: keyword arguments of the mechanism's class, as `key_channels=16`.

    Raises:
        ValueError: an unknown mechanism or option; the message lists the choices.
    """
    if mechanism == "none":
        return nn.Identity()
    if mechanism not in MECHANISMS:
        choices = ", ".join(["none", *MECHANISMS])
        raise ValueError(f"unknown attention '{mechanism}': choose from {choices}")
    cls = MECHANISMS[mechanism]
    known = [name for name in inspect.signature(cls).parameters if name != "channels"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"{mechanism} attention has no option '{unknown[0]}': choose from {', '.join(known)}"
        )
    return cls(channels, **options)
