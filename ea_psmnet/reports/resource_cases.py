"""What the resources report can be asked for: the rows of the paper's Table 1 and our modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from ea_psmnet.attention import (
    MECHANISMS,
    ExternalAttention,
    FocusedLinearAttention,
    HydraAttention,
    build_attention,
    closed_form,
)
from ea_psmnet.attention.base import Resources, split_heads
from ea_psmnet.attention.external import external_attention_reference
from ea_psmnet.attention.focused_linear import focused_features, focused_linear_attention
from ea_psmnet.attention.hydra import hydra_attention
from ea_psmnet.ops.attention import dot_product_attention_reference, efficient_attention

__all__ = ["CASES", "TABLE_1", "Case", "case_module", "case_resources", "check_name"]

TABLE_1 = ("table1-efficient", "table1-non-local", "table1-residual")
"""Rows of Table 1 of Shen et al., WACV 2021."""


class Case(NamedTuple):
    """A name of `closed_form`, and the options of the module."""

    form: str
    options: Mapping[str, Any]


CASES: dict[str, Case] = {
    **{name: Case(name, {}) for name in (*TABLE_1, *MECHANISMS)},
    **{
        f"{name}-published": Case(name, {"published_order": True})
        for name in ("efficient", "focused_linear", "external", "hydra")
    },
    "dot_product-sdpa": Case("dot_product", {"backend": "sdpa"}),
}
"""Every case by its name."""

_WITH_KEY_CHANNELS = ("table1-efficient", "table1-non-local", "efficient", "dot_product")
"""Those that take d_k; the others keep what they were published with, d."""


def check_name(kind: str, name: str, choices: Sequence[str] | Mapping[str, object]) -> None:
    """Raise a ValueError that lists the choices when `name` is not among them."""
    if name not in choices:
        raise ValueError(f"unknown {kind} '{name}': choose from {', '.join(choices)}")


def case_resources(name: str, size: Sequence[int], channels: int, key_channels: int) -> Resources:
    """The closed form of a case on one volume."""
    return closed_form(CASES[name].form, size, channels, **_options(name, key_channels))


def case_module(name: str, channels: int, key_channels: int) -> nn.Module:
    """What to measure for it, (1, C, D, H, W) to the same."""
    options = _options(name, key_channels)
    if name in _PUBLISHED:
        return _PUBLISHED[name](channels)
    if name not in TABLE_1:
        return build_attention(CASES[name].form, channels, **options)
    if name == "table1-residual":
        return _ResidualBlock(channels)
    kernels = {
        "table1-efficient": efficient_attention,
        "table1-non-local": dot_product_attention_reference,
    }
    return _AttentionBlock(kernels[name], channels, key_channels)


def _options(name: str, key_channels: int) -> dict[str, Any]:
    form, options = CASES[name]
    return {**options, **({"key_channels": key_channels} if form in _WITH_KEY_CHANNELS else {})}


class _PublishedExternal(ExternalAttention):
    """With all weights between positions and memory rows at once."""

    def attend(self, volume: Tensor) -> Tensor:
        queries = self.queries(volume).flatten(2)  # (B, C, n)
        gathered = external_attention_reference(queries, self.key_memory, self.value_memory)
        return self.projection(gathered.reshape(volume.shape).to(volume.dtype))


class _PublishedHydra(HydraAttention):
    """Convolution by convolution."""

    def attend(self, volume: Tensor) -> Tensor:
        layers = (self.queries, self.keys, self.values)
        queries, keys, values = (layer(volume).flatten(2) for layer in layers)  # (B, C, n)
        gathered = hydra_attention(queries, keys, values, self.reduction)
        return self.projection(gathered.reshape(volume.shape).to(volume.dtype))


class _PublishedFocusedLinear(FocusedLinearAttention):
    """With phi of all queries and keys at once, and the values made once."""

    def attend(self, volume: Tensor) -> Tensor:
        layers = (self.queries, self.keys)
        queries, keys = (
            focused_features(layer(volume).flatten(2), self.scale, self.focusing_power)
            for layer in layers
        )  # (B, k, n)
        values = self.values(volume)
        q, k, v = (split_heads(t, self.heads) for t in (queries, keys, values))
        gathered = focused_linear_attention(q, k, v, self.denominator)
        return self._project(gathered.reshape(values.shape).to(volume.dtype), values)


_PUBLISHED = {
    "external-published": _PublishedExternal,
    "focused_linear-published": _PublishedFocusedLinear,
    "hydra-published": _PublishedHydra,
}


class _AttentionBlock(nn.Module):
    """x + A(W_q x, W_k x, W_v x) with d_v = d and no projection: what Table 1 counts."""

    def __init__(self, kernel: Callable[..., Tensor], channels: int, key_channels: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.queries = nn.Conv3d(channels, key_channels, kernel_size=1)
        self.keys = nn.Conv3d(channels, key_channels, kernel_size=1)
        self.values = nn.Conv3d(channels, channels, kernel_size=1)

    def forward(self, volume: Tensor) -> Tensor:
        layers = (self.queries, self.keys, self.values)
        heads = (layer(volume).flatten(2).unsqueeze(1) for layer in layers)  # (B, 1, k or C, n)
        return volume + self.kernel(*heads).reshape(volume.shape).to(volume.dtype)


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each with batch normalisation and a ReLU in place, and the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(
                nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1), bias=False),
                nn.BatchNorm3d(channels),
            )
            for _ in range(2)
        )

    def forward(self, volume: Tensor) -> Tensor:
        return F.relu_(volume + self.second(F.relu_(self.first(volume))))
