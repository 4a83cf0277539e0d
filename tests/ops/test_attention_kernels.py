"""Both kernels against sums written out position by position."""

import math

import pytest
import torch

from ea_psmnet.ops.attention import dot_product_attention, efficient_attention


def inputs(positions=7, heads=2):
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(2, heads, c, positions, generator=generator, dtype=torch.float64)
        for c in (3, 3, 4)
    ]


def normalised_pairs(q, k, normalisation):
    """Row-normalised factors of one head, written with loops; q, k are (c, n)."""
    c, n = q.shape
    if normalisation == "softmax":
        q = torch.stack([q[:, j].exp() / q[:, j].exp().sum() for j in range(n)], dim=1)
        k = torch.stack([k[i].exp() / k[i].exp().sum() for i in range(c)])
    elif normalisation == "scaling":
        q, k = q / math.sqrt(n), k / math.sqrt(n)
    return q, k


@pytest.mark.parametrize("normalisation", ["softmax", "scaling", "none"])
def test_efficient_attention_equals_its_quadratic_order(normalisation):
    """Equation 5 multiplied the other way round: (rho_q(Q) rho_k(K)^T) V."""
    queries, keys, values = inputs()
    result = efficient_attention(queries, keys, values, normalisation)
    for b in range(2):
        for h in range(2):
            q, k = normalised_pairs(queries[b, h], keys[b, h], normalisation)
            expected = values[b, h] @ (q.T @ k).T
            torch.testing.assert_close(result[b, h], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalisation", ["softmax", "scaling", "none"])
def test_dot_product_attention_equals_its_definition(normalisation):
    queries, keys, values = inputs()
    result = dot_product_attention(queries, keys, values, normalisation)
    n = keys.shape[-1]
    for i in range(n):
        logits = torch.einsum("bhk,bhkm->bhm", queries[..., i], keys)
        weights = {
            "softmax": logits.exp() / logits.exp().sum(-1, keepdim=True),
            "scaling": logits / n,
            "none": logits,
        }[normalisation]
        expected = torch.einsum("bhm,bhvm->bhv", weights, values)
        torch.testing.assert_close(result[..., i], expected, rtol=0, atol=1e-12)


def test_with_scaling_both_are_the_same_function():
    tensors = inputs()
    torch.testing.assert_close(
        efficient_attention(*tensors, "scaling"),
        dot_product_attention(*tensors, "scaling"),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("kernel", [efficient_attention, dot_product_attention])
@pytest.mark.parametrize("normalisation", ["softmax", "scaling", "none"])
def test_gradients(kernel, normalisation):
    tensors = [t.requires_grad_() for t in inputs(positions=5, heads=1)]
    assert torch.autograd.gradcheck(lambda *t: kernel(*t, normalisation), tensors)


@pytest.mark.parametrize("kernel", [efficient_attention, dot_product_attention])
def test_an_unknown_normalisation_lists_the_choices(kernel):
    with pytest.raises(ValueError, match=r"'cosine'.*softmax, scaling, none"):
        kernel(*inputs(), "cosine")


@pytest.mark.parametrize("kernel", [efficient_attention, dot_product_attention])
def test_autocast_does_not_reach_the_sums(kernel):
    tensors = inputs(positions=50)
    expected = kernel(*tensors).float()
    with torch.autocast("cpu", torch.bfloat16):
        result = kernel(*(t.float() for t in tensors))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_scaling_survives_half_precision_at_many_positions():
    n = 200_000
    q, k, v = (torch.full((1, 1, 2, n), 3.0, dtype=torch.float16) for _ in range(3))
    out = efficient_attention(q, k, v, "scaling")
    torch.testing.assert_close(out, torch.full_like(out, 2 * 3.0**3), rtol=1e-2, atol=0)
