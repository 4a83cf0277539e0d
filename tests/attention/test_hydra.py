import pytest
import torch

from ea_psmnet.attention import HydraAttention


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


def test_an_unknown_reduction_lists_the_choices():
    with pytest.raises(ValueError, match=r"reduction 'max'.*mean, sum"):
        HydraAttention(6, reduction="max")
