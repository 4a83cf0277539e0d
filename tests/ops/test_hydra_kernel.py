"""Hydra attention against its quadratic order: every channel a head of its own."""

import pytest
import torch

from ea_psmnet.ops.hydra import hydra_attention


def inputs(positions=7):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(2, 4, positions, generator=generator, dtype=torch.float64) for _ in "qkv"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_attention_equals_its_quadratic_order(reduction):
    queries, keys, values = inputs()
    result = hydra_attention(queries, keys, values, reduction)
    q = queries / queries.pow(2).sum(1, keepdim=True).sqrt()
    k = keys / keys.pow(2).sum(1, keepdim=True).sqrt()
    for b in range(2):
        for c in range(4):
            similarity = torch.outer(q[b, c], k[b, c])  # (n, n) of one head
            similarity = similarity / 7 if reduction == "mean" else similarity
            expected = similarity @ values[b, c]
            torch.testing.assert_close(result[b, c], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients(reduction):
    tensors = [t.requires_grad_() for t in inputs(positions=5)]
    assert torch.autograd.gradcheck(lambda *t: hydra_attention(*t, reduction), tensors)


def test_short_vectors_keep_their_direction_and_zero_a_finite_gradient():
    queries, keys, values = inputs()
    torch.testing.assert_close(
        hydra_attention(1e-5 * queries, keys, values),
        hydra_attention(queries, keys, values),
        rtol=0,
        atol=1e-12,
    )
    nothing = torch.zeros(2, 4, 7, requires_grad=True)
    hydra_attention(nothing, keys.float(), values.float()).sum().backward()
    assert 0 < nothing.grad.abs().max() < 1e7


def test_autocast_does_not_reach_the_sums():
    tensors = inputs(positions=50)
    expected = hydra_attention(*tensors, "sum").float()
    with torch.autocast("cpu", torch.bfloat16):
        result = hydra_attention(*(t.float() for t in tensors), "sum")
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_many_positions_survive_half_precision(dtype, reduction):
    tensors = [(t.abs() + 1).to(dtype) for t in inputs(positions=200_000)]
    result = hydra_attention(*tensors, reduction)
    expected = hydra_attention(*(t.double() for t in tensors), reduction)
    assert expected.abs().max() > (1e5 if reduction == "sum" else 0)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=0)


def test_an_unknown_reduction_lists_the_choices():
    with pytest.raises(ValueError, match=r"reduction 'max'.*mean, sum"):
        hydra_attention(*inputs(), "max")
