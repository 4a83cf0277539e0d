"""Focused linear attention on flattened positions, without parameters but the feature scale.

Shapes: B batch, h heads, k key channels, v value channels, n positions. Everything is computed in
float32 at least: the published epsilons and powers do not survive half precision.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.choices import check_choice
from ea_psmnet.ops.precision import full_precision, widen

__all__ = ["Denominator", "check_denominator", "focused_features", "focused_linear_attention"]

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
