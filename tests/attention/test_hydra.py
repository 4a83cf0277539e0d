import pytest
import torch

from ea_psmnet.attention import HydraAttention
from ea_psmnet.attention.hydra import hydra_attention


def queries_keys_values(positions=7):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(2, 4, positions, generator=generator, dtype=torch.float64) for _ in "qkv"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_attention_equals_its_quadratic_order(reduction):
    queries, keys, values = queries_keys_values()
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
    tensors = [t.requires_grad_() for t in queries_keys_values(positions=5)]
    assert torch.autograd.gradcheck(lambda *t: hydra_attention(*t, reduction), tensors)


def test_short_vectors_keep_their_direction_and_zero_a_finite_gradient():
    queries, keys, values = queries_keys_values()
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
    tensors = queries_keys_values(positions=50)
    expected = hydra_attention(*tensors, "sum").float()
    with torch.autocast("cpu", torch.bfloat16):
        result = hydra_attention(*(t.float() for t in tensors), "sum")
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_many_positions_survive_half_precision(dtype, reduction):
    tensors = [(t.abs() + 1).to(dtype) for t in queries_keys_values(positions=200_000)]
    result = hydra_attention(*tensors, reduction)
    expected = hydra_attention(*(t.double() for t in tensors), reduction)
    assert expected.abs().max() > (1e5 if reduction == "sum" else 0)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=0)


def test_an_unknown_reduction_lists_the_choices():
    with pytest.raises(ValueError, match=r"reduction 'max'.*mean, sum"):
        hydra_attention(*queries_keys_values(), "max")


def randomised(**options):
    torch.manual_seed(1)
    module = HydraAttention(6, **options).double()
    for parameter in module.parameters():
        parameter.data.normal_()
    return module


def published(x, module):
    """The code of the paper's appendix, on tokens (B, N, C), between its projections."""

    def linear(y, layer):
        return torch.einsum("oc,bnc->bno", layer.weight.flatten(1), y) + layer.bias

    q, k, v = (linear(x, layer) for layer in (module.queries, module.keys, module.values))
    q, k = (t / t.pow(2).sum(dim=2, keepdim=True).sqrt() for t in (q, k))
    context = torch.stack([k[:, i] * v[:, i] for i in range(x.shape[1])]).sum(dim=0)  # (B, C)
    return linear(q * context[:, None], module.projection)


@pytest.mark.parametrize("size", [(1, 4, 5), (3, 4, 5)])
@pytest.mark.parametrize("key_channels", [None, 4])
def test_published_weights_give_the_published_output(size, key_channels):
    module = randomised(reduction="sum", key_channels=key_channels)
    tokens = torch.randn(2, torch.Size(size).numel(), 6, dtype=torch.float64)
    result = module(tokens.transpose(1, 2).reshape(2, 6, *size)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(result, tokens + published(tokens, module), rtol=0, atol=1e-10)


def test_with_the_mean_a_repeated_volume_gives_a_repeated_output():
    """Not with the sum: a network trained on crops would see larger vectors on whole images."""
    x = torch.randn(1, 6, 3, 4, 5, dtype=torch.float64)
    twice = torch.cat([x, x], dim=4)
    for reduction, same in (("mean", True), ("sum", False)):
        module = randomised(reduction=reduction)
        repeated = torch.cat([module(x), module(x)], dim=4)
        assert torch.allclose(module(twice), repeated, rtol=0, atol=1e-10) == same


def test_the_published_start_is_random():
    x = torch.randn(1, 6, 3, 4, 5)
    assert not torch.equal(HydraAttention(6, start="published")(x), x)


def test_the_module_refuses_an_unknown_reduction():
    with pytest.raises(ValueError, match=r"reduction 'max'.*mean, sum"):
        HydraAttention(6, reduction="max")
