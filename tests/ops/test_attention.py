"""Attention against sums written out position by position, and its two forms against each other."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ea_psmnet.ops.attention import (
    dot_product_attention,
    dot_product_attention_reference,
    efficient_attention,
)


def pairs_of_inputs(positions=7, heads=2):
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
    queries, keys, values = pairs_of_inputs()
    result = efficient_attention(queries, keys, values, normalisation)
    for b in range(2):
        for h in range(2):
            q, k = normalised_pairs(queries[b, h], keys[b, h], normalisation)
            expected = values[b, h] @ (q.T @ k).T
            torch.testing.assert_close(result[b, h], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalisation", ["softmax", "scaling", "none"])
def test_dot_product_attention_equals_its_definition(normalisation):
    queries, keys, values = pairs_of_inputs()
    result = dot_product_attention_reference(queries, keys, values, normalisation)
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
    tensors = pairs_of_inputs()
    torch.testing.assert_close(
        efficient_attention(*tensors, "scaling"),
        dot_product_attention_reference(*tensors, "scaling"),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("kernel", [efficient_attention, dot_product_attention_reference])
@pytest.mark.parametrize("normalisation", ["softmax", "scaling", "none"])
def test_gradients_of_the_plain_forms(kernel, normalisation):
    tensors = [t.requires_grad_() for t in pairs_of_inputs(positions=5, heads=1)]
    assert torch.autograd.gradcheck(lambda *t: kernel(*t, normalisation), tensors)


@pytest.mark.parametrize("kernel", [efficient_attention, dot_product_attention_reference])
def test_an_unknown_normalisation_lists_the_choices(kernel):
    with pytest.raises(ValueError, match=r"'cosine'.*softmax, scaling, none"):
        kernel(*pairs_of_inputs(), "cosine")


@pytest.mark.parametrize("kernel", [efficient_attention, dot_product_attention_reference])
def test_autocast_does_not_reach_the_sums_of_the_plain_forms(kernel):
    tensors = pairs_of_inputs(positions=50)
    expected = kernel(*tensors).float()
    with torch.autocast("cpu", torch.bfloat16):
        result = kernel(*(t.float() for t in tensors))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_scaling_survives_half_precision_at_many_positions():
    n = 200_000
    q, k, v = (torch.full((1, 1, 2, n), 3.0, dtype=torch.float16) for _ in range(3))
    out = efficient_attention(q, k, v, "scaling")
    torch.testing.assert_close(out, torch.full_like(out, 2 * 3.0**3), rtol=1e-2, atol=0)


def inputs(positions=9, others=7, values=3):
    generator = torch.Generator().manual_seed(2)
    shapes = (3, positions), (3, others), (values, others)
    return [torch.randn(2, 2, *s, generator=generator, dtype=torch.float64) for s in shapes]


@pytest.mark.parametrize("values", [3, 4])
@pytest.mark.parametrize("normalisation", ["softmax", "scaling", "none"])
def test_the_lean_form_equals_the_plain_one(normalisation, values):
    results = []
    for kernel in (dot_product_attention_reference, dot_product_attention):
        tensors = [t.requires_grad_() for t in inputs(values=values)]
        out = kernel(*tensors, normalisation)
        gradients = torch.autograd.grad((out**3).sum(), tensors)
        results.append([out, *gradients])
    for plain, lean in zip(*results, strict=True):
        torch.testing.assert_close(lean, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalisation", ["softmax", "scaling", "none"])
def test_gradients(normalisation):
    tensors = [t.requires_grad_() for t in inputs(5, 4)]
    assert torch.autograd.gradcheck(lambda *t: dot_product_attention(*t, normalisation), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_runs_in_the_tiled_kernel(dtype):
    """Only that one may run here: the plain fallback, which stores all weights, is an error."""
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        dot_product_attention(*(t.to(dtype) for t in inputs()))


def test_autocast_does_not_reach_the_sums():
    tensors = inputs()
    expected = dot_product_attention(*tensors).float()
    with torch.autocast("cpu", torch.bfloat16):
        result = dot_product_attention(*(t.float() for t in tensors))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalisation", ["softmax", "scaling"])
def test_many_positions_survive_half_precision(dtype, normalisation):
    tensors = [(3 * t).to(dtype) for t in inputs(positions=20, others=200_000)]
    result = dot_product_attention(*tensors, normalisation)
    expected = dot_product_attention_reference(*(t.double() for t in tensors), normalisation)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-3)
