"""Focused linear attention on flattened positions, without parameters but the feature scale.

Shapes: B batch, h heads, k key channels, v value channels, n positions. Everything is computed in
float32 at least: the published epsilons and powers do not survive half precision.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.choices import check_choice
from ea_psmnet.ops.precision import full_precision, linear, widen
from ea_psmnet.ops.streaming import streamed

__all__ = [
    "Denominator",
    "check_denominator",
    "focused_block",
    "focused_block_reference",
    "focused_features",
    "focused_linear_attention",
]

Denominator = Literal["mean", "sum"]

EPSILON = 1e-6
"""The published one, both under the features and under the denominator."""


def check_denominator(name: str) -> None:
    """Raise a ValueError that lists the choices when `name` is not among them."""
    check_choice("denominator", name, get_args(Denominator))


@full_precision
def focused_features(features: Tensor, scale: Tensor, power: float = 3.0) -> Tensor:
    """Turn every position's features towards its largest ones and keep their length.

    Han et al., "FLatten Transformer", ICCV 2023, equations 5 and 6: x^p with the norm of x. Before
    it, as in the published code only: ReLU plus 1e-6, divided by softplus(scale). The norms are
    over all channels, so this comes before heads are split. The power is taken of x over its
    largest channel, which the two norms cancel: x^p itself overflows float32 for p above 3.

    Args:
        features: queries or keys, (B, k, n).
        scale: (k,), before its softplus.
        power: p.

    Returns:
        (B, k, n), not negative.
    """
    divisor = F.softplus(widen(scale))[:, None]  # (k, 1)
    features = (widen(features).relu() + EPSILON) / divisor
    # No gradient through the largest channel: the result does not depend on it.
    powered = (features / features.detach().amax(dim=1, keepdim=True)) ** power
    length = features.norm(dim=1, keepdim=True)  # (B, 1, n)
    return powered * (length / powered.norm(dim=1, keepdim=True))


@full_precision
def focused_linear_attention(
    queries: Tensor, keys: Tensor, values: Tensor, denominator: Denominator = "mean"
) -> Tensor:
    """Average the values with weights queries . keys, through a k x v context.

    Han et al., section 3.2, linear in n. The paper has no epsilon under the fraction. Its code adds
    1e-6, first to the sum of the products over positions, later to their mean.

    Args:
        queries: (B, h, k, n), not negative.
        keys: (B, h, k, m), not negative.
        values: (B, h, v, m).
        denominator: `mean` or `sum`, what the epsilon is added to.

    Returns:
        (B, h, v, n).
    """
    check_denominator(denominator)
    queries, keys, values = widen(queries), widen(keys), widen(values)
    count = keys.shape[-1]
    epsilon = EPSILON if denominator == "mean" else EPSILON / count
    context = keys @ values.transpose(-1, -2) / count  # (B, h, k, v)
    total = keys.mean(dim=-1, keepdim=True)  # (B, h, k, 1)
    gathered = context.transpose(-1, -2) @ queries  # (B, h, v, n)
    return gathered / (total.transpose(-1, -2) @ queries + epsilon)


@full_precision
def focused_block_reference(
    x: Tensor, *weights: Tensor, power: float, heads: int, denominator: Denominator
) -> Tensor:
    """Queries, keys, values and their attention, convolution by convolution.

    Args:
        x: (B, C, n).
        weights: matrix and bias of queries, keys, values, (k or v, C) and (k or v,), and the
            feature scale (k,).
        power: as of `focused_features`.
        heads: the key and value channels are split into so many groups.
        denominator: as of `focused_linear_attention`.

    Returns:
        (B, v, n).
    """
    wide = widen(x)
    queries, keys, values = (linear(wide, *weights[i : i + 2]) for i in (0, 2, 4))
    queries, keys = (focused_features(t, weights[6], power) for t in (queries, keys))
    q, k, v = (t.unflatten(1, (heads, -1)) for t in (queries, keys, values))  # (B, h, ., n)
    return focused_linear_attention(q, k, v, denominator).flatten(1, 2)


def focused_block(
    x: Tensor, *weights: Tensor, power: float, heads: int, denominator: Denominator
) -> Tensor:
    """`focused_block_reference` in two passes over x, keeping x and the contexts alone."""
    check_denominator(denominator)
    share = 1 / x.shape[-1]
    epsilon = EPSILON if denominator == "mean" else EPSILON * share
    rows = 4 * (x.shape[1] + weights[0].shape[0] + weights[4].shape[0])
    gather = partial(_contexts, power=power, heads=heads, share=share)
    spread = partial(_averages, power=power, heads=heads, epsilon=epsilon)
    return streamed(x, gather, spread, rows, *weights)


def _contexts(x: Tensor, *weights: Tensor, power: float, heads: int, share: float) -> Tensor:
    """What a chunk adds to the means of keys times (values, 1), (B, h, k, v + 1)."""
    keys = focused_features(linear(x, *weights[2:4]), weights[6], power)
    values = linear(x, *weights[4:6]).unflatten(1, (heads, -1))  # (B, h, v, c)
    ones = F.pad(values, (0, 0, 0, 1), value=1.0)
    return keys.unflatten(1, (heads, -1)) @ ones.mT * share


def _averages(
    x: Tensor, contexts: Tensor, *weights: Tensor, power: float, heads: int, epsilon: float
) -> Tensor:
    queries = focused_features(linear(x, *weights[:2]), weights[6], power)
    gathered = contexts.mT @ queries.unflatten(1, (heads, -1))  # (B, h, v + 1, c)
    return (gathered[:, :, :-1] / (gathered[:, :, -1:] + epsilon)).flatten(1, 2)
