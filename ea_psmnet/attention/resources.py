"""What attention costs, in closed form: floats of memory and operations of one volume.

The counting is that of Table 1 of Shen et al., "Efficient Attention: Attention with Linear
Complexities", WACV 2021, as its formulas imply it. A multiply or an add is one operation. Memory is
the tensors that a forward makes and whose size grows with the volume or its context, each once:
normalisations and activations work in place, the residual sum makes one more. Of operations:

- A 1x1x1 convolution or a product of matrices is two an element; biases are free.
- Normalisations within attention (softmax, unit length, phi, the double normalisation) are free.
- The residual sum is one a channel and position, a ReLU one, a batch normalisation four.

No torch here, and nothing is run: `ea_psmnet.reports.resources` measures.

Letters: n positions, d channels, k key and v value channels over all heads, h heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

__all__ = [
    "FORMS",
    "Resources",
    "closed_form",
    "dot_product",
    "efficient",
    "external",
    "focused_linear",
    "hydra",
    "table1_efficient",
    "table1_non_local",
    "table1_residual",
]


@dataclass(frozen=True)
class Resources:
    """Cost of one forward of one sample."""

    floats: int
    """Memory, in numbers."""
    products: int
    """Operations of convolutions and matrix products, which a counter of such can verify."""
    others: int
    """Operations element by element: sums, gates, batch normalisations."""
    map_floats: int = 0
    """Of `floats`, those of the weights between all pairs of positions."""

    @property
    def operations(self) -> int:
        """All operations."""
        return self.products + self.others

    def bytes(self, itemsize: int) -> int:
        """Memory in bytes, `itemsize` a float; pairwise weights never take less than four."""
        return (self.floats - self.map_floats) * itemsize + self.map_floats * max(itemsize, 4)


def closed_form(name: str, size: Sequence[int], channels: int, **options: Any) -> Resources:
    """Cost of a mechanism on one volume.

    Args:
        name: a key of `FORMS`: a mechanism of `build_attention`, or a row of the paper's Table 1.
        size: sides of the volume, as (D, H, W) or (H, W).
        channels: d.
        options: those of the mechanism's class; the ones that change no cost are ignored. With
            `published_order`, the streamed ones are as published too, which no module computes.

    Raises:
        ValueError: an unknown name; the message lists the choices.

    Example:
        >>> closed_form("table1-efficient", (64, 64), 64, key_channels=32).operations
        100925440
    """
    if name not in FORMS:
        raise ValueError(f"no closed form for '{name}': choose from {', '.join(FORMS)}")
    return FORMS[name](size, channels, **options)


# The paper's Table 1, with v = d and no output projection ----------------------------------------


def table1_efficient(
    size: Sequence[int], channels: int, *, key_channels: int | None = None, **_: Any
) -> Resources:
    """(2k + 3d) n + kd floats, (8kd + 2d^2 + d) n operations."""
    n, d, k = prod(size), channels, _or(key_channels, channels // 2)
    return Resources((2 * k + 3 * d) * n + k * d, (8 * k * d + 2 * d * d) * n, d * n)


def table1_non_local(
    size: Sequence[int], channels: int, *, key_channels: int | None = None, **_: Any
) -> Resources:
    """(2k + 3d) n + n^2 floats, (4kd + 2d^2 + d) n + (2k + 2d) n^2 operations."""
    n, d, k = prod(size), channels, _or(key_channels, channels // 2)
    products = (4 * k * d + 2 * d * d) * n + (2 * k + 2 * d) * n * n
    return Resources((2 * k + 3 * d) * n + n * n, products, d * n, map_floats=n * n)


def table1_residual(size: Sequence[int], channels: int, **_: Any) -> Resources:
    """A residual block of two 3x3 convolutions: 5dn floats, (36d^2 + 11d) n operations."""
    n, d = prod(size), channels
    return Resources(5 * d * n, 36 * d * d * n, 11 * d * n)


# The modules of this project, with everything they compute ---------------------------------------


def efficient(
    size: Sequence[int],
    channels: int,
    *,
    key_channels: int | None = None,
    value_channels: int | None = None,
    heads: int = 1,
    normalisation: str = "softmax",
    published_order: bool = False,
    **_: Any,
) -> Resources:
    """`EfficientAttention`, in the order that it chooses.

    Published order: Q, K, V, gathered, projected and summed, (2k + 2v + 2d) n floats and kv/h of
    contexts; (4kd + 2dv + 4kv/h + 2vd + d) n operations. That is Table 1 with the projection, which
    adds 2vd operations and d floats a position.

    Folded (softmax): one output and the contexts of x, dn + kd floats; keys, contexts of x, queries
    and the folded product, (8kd + d) n operations, and 4kvd/h to fold values and projection into
    the contexts. The chunks it works through, a few MiB at any size, are left out.

    Folded (scaling, none): the Gram matrix of (x, 1) and one d x d product, dn + (d + 1)^2 floats
    and (4d^2 + 3d) n operations, without the small products that do not grow with n.
    """
    n, d, h = prod(size), channels, heads
    k, v = _or(key_channels, d // 2), _or(value_channels, d)
    published = 4 * k * d + 2 * d * v + 4 * k * v // h + 2 * v * d
    if published_order or 8 * k * d > published:
        return Resources((2 * k + 2 * v + 2 * d) * n + k * v // h, published * n, d * n)
    if normalisation == "softmax":
        return Resources(d * n + k * d, 8 * k * d * n + 4 * k * v * d // h, d * n)
    return Resources(d * n + (d + 1) ** 2, 4 * d * d * n, 3 * d * n)


def dot_product(
    size: Sequence[int],
    channels: int,
    *,
    key_channels: int | None = None,
    normalisation: str = "softmax",
    backend: str = "naive",
    pool: str = "none",
    **_: Any,
) -> Resources:
    """`DotProductAttention`, whose values have k channels too; m keys after pooling, else m = n.

    Floats: Q, gathered, projected, normalised and summed, (2k + 3d) n; K and V, 2kn, pooled 2km
    more, or dm + 2km pooled before them; the map, nm, naive only. Operations: the convolutions of
    Q and the projection 4kd n, of K and V 4kd a position that they see, the two products with the
    map 4knm, batch normalisation and sum 5d n. Without a softmax the `sdpa` back end multiplies K
    with V first: 2k^2 (n + m) in place of 4knm, and k^2 floats.
    """
    n, d, k = prod(size), channels, _or(key_channels, channels // 2)
    m = prod(_halved(size)) if pool != "none" else n
    seen = m if pool == "input" else n
    floats = (2 * k + 3 * d) * n + 2 * k * seen
    floats += {"none": 0, "projected": 2 * k * m, "input": d * m}[pool]
    linear = backend == "sdpa" and normalisation != "softmax"
    pairs = 2 * k * k * (n + m) if linear else 4 * k * n * m
    stored = n * m if backend == "naive" else 0
    return Resources(
        floats + stored + (k * k if linear else 0),
        4 * k * d * (n + seen) + pairs,
        5 * d * n,
        map_floats=stored,
    )


def focused_linear(
    size: Sequence[int],
    channels: int,
    *,
    key_channels: int | None = None,
    value_channels: int | None = None,
    heads: int = 1,
    kernel_size: int = 5,
    published_order: bool = False,
    **_: Any,
) -> Resources:
    """`FocusedLinearAttention`, k = v = d unless told; s the side of its depth-wise kernel.

    Published order, floats: Q, K (phi in place), V, gathered, depth-wise convolved, projected and
    summed, (2k + 3v + 2d) n, the denominators hn, contexts kv/h and the sum of keys k. Operations:
    convolutions 4kd + 2dv + 2vd a position, contexts and gathering 4kv/h, denominators 2k and the
    sum of keys k, division v, depth-wise convolution 2vs^3 and its sum v, residual sum d.

    Streamed: V, gathered, convolved, projected and summed, (3v + 2d) n floats and the contexts with
    the sum of keys, kv/h + k. The contexts are made from V of their own, 2dv operations more, and
    sum the keys as one more product, 2k instead of k.
    """
    n, d, h = prod(size), channels, heads
    k, v = _or(key_channels, d), _or(value_channels, d)
    products = 4 * k * d + 4 * d * v + 4 * k * v // h + 2 * k + 2 * v * kernel_size**3
    if not published_order:
        floats = (3 * v + 2 * d) * n + k * v // h + k
        return Resources(floats, (products + 2 * d * v + 2 * k) * n, (2 * v + d) * n)
    return Resources(
        (2 * k + 3 * v + 2 * d + h) * n + k * v // h + k, products * n, (k + 2 * v + d) * n
    )


def external(
    size: Sequence[int],
    channels: int,
    *,
    rows: int = 64,
    final_relu: bool = False,
    published_order: bool = False,
    **_: Any,
) -> Resources:
    """`ExternalAttention`, with s memory rows; its memories are parameters and not counted.

    Published order: queries, weights (normalised in place), gathered, projected, normalised and
    summed, (5d + s) n floats; two convolutions 4d^2 and the two products with the memories 4ds
    operations a position, batch normalisation and sum 5d, the last ReLU d.

    Streamed: s log-sum-exps instead of the weights, 5dn + s floats; they come from a pass of their
    own, which multiplies with M_k too, 6ds instead of 4ds operations.
    """
    n, d = prod(size), channels
    others = (6 if final_relu else 5) * d * n
    if published_order:
        return Resources((5 * d + rows) * n, (4 * d * d + 4 * d * rows) * n, others)
    return Resources(5 * d * n + rows, (4 * d * d + 6 * d * rows) * n, others)


def hydra(
    size: Sequence[int],
    channels: int,
    *,
    key_channels: int | None = None,
    published_order: bool = False,
    **_: Any,
) -> Resources:
    """`HydraAttention`, with k channels of queries, keys and values, d unless told.

    Published order: Q, K, V, K * V, gathered, projected and summed, (5k + 2d) n floats, and the
    global vector k. Streamed: projected, summed and the vector, 2dn + k floats. Operations of both:
    the four convolutions 8kd a position, K * V and its sum 2k, the gate k, the residual sum d.
    """
    n, d, k = prod(size), channels, _or(key_channels, channels)
    floats = ((5 * k + 2 * d) if published_order else 2 * d) * n + k
    return Resources(floats, 8 * k * d * n, (3 * k + d) * n)


FORMS: dict[str, Callable[..., Resources]] = {
    "table1-efficient": table1_efficient,
    "table1-non-local": table1_non_local,
    "table1-residual": table1_residual,
    "efficient": efficient,
    "dot_product": dot_product,
    "focused_linear": focused_linear,
    "external": external,
    "hydra": hydra,
}


def _or(count: int | None, default: int) -> int:
    return default if count is None else count


def _halved(size: Sequence[int]) -> list[int]:
    """Sides after max-pooling by two in H and W; an odd last row is left out, a single one kept."""
    return [*size[:-2], *(max(1, side // 2) for side in size[-2:])]
