import itertools

import pytest
import torch

from ea_psmnet.attention import DotProductAttention

NORMALISATIONS = ("softmax", "scaling", "none")
POOLS = ("none", "projected", "input")


def randomised(**options):
    torch.manual_seed(1)
    module = DotProductAttention(6, **options).double().eval()
    for parameter in module.parameters():
        parameter.data.normal_(std=0.5)
    module.projection[1].running_mean.normal_()
    module.projection[1].running_var.uniform_(0.5, 2)
    return module


def pooled(x):
    """Max over blocks of two by two in the last two axes; an odd last row or column is left out."""
    height, width = (side // 2 * 2 for side in x.shape[-2:])
    corners = [x[..., i:height:2, j:width:2] for i in range(2) for j in range(2)]
    return torch.stack(corners).amax(dim=0)


def published(x, module, normalisation, pool, scale):
    """The non-local block as its authors and mmcv compute it, on any (B, C, ...)."""

    def project(layer, y):
        return torch.einsum("oc,bc...->bo...", layer.weight.flatten(1), y) + layer.bias.view(
            -1, *[1] * (y.ndim - 2)
        )

    source = pooled(x) if pool == "input" else x
    theta = project(module.queries, x).flatten(2).transpose(1, 2)  # (B, n, k)
    phi, g = project(module.keys, source), project(module.values, source)
    if pool == "projected":
        phi, g = pooled(phi), pooled(g)
    pairs = theta @ phi.flatten(2)  # (B, n, m)
    if normalisation == "softmax":
        pairs = pairs / theta.shape[2] ** 0.5 if scale else pairs
        pairs = pairs.exp() / pairs.exp().sum(dim=2, keepdim=True)
    elif normalisation == "scaling":
        pairs = pairs / pairs.shape[2]
    y = (pairs @ g.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
    mixing, norm = module.projection
    flat = project(mixing, y).flatten(2)
    flat = (flat - norm.running_mean[:, None]) / (norm.running_var[:, None] + 1e-5).sqrt()
    return x + (flat * norm.weight[:, None] + norm.bias[:, None]).reshape(x.shape)


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@pytest.mark.parametrize(("normalisation", "pool"), list(itertools.product(NORMALISATIONS, POOLS)))
@pytest.mark.parametrize("size", [(4, 5), (3, 4, 6)])
def test_published_weights_give_the_published_output(size, normalisation, pool, backend):
    for scale in (False, True) if normalisation == "softmax" else (False,):
        module = randomised(
            normalisation=normalisation, pool=pool, backend=backend, scale_logits=scale
        )
        x = torch.randn(2, 6, *size, dtype=torch.float64)
        volume = x[:, :, None] if len(size) == 2 else x
        expected = published(x, module, normalisation, pool, scale)
        torch.testing.assert_close(module(volume).view_as(x), expected, rtol=0, atol=1e-10)


def test_a_side_of_one_is_not_pooled():
    module = randomised(pool="projected")
    x = torch.randn(1, 6, 2, 1, 4, dtype=torch.float64)
    torch.testing.assert_close(module(x).shape, x.shape)


def test_the_published_start_is_the_identity_with_small_weights():
    torch.manual_seed(0)
    module = DotProductAttention(64, start="published")
    for layer in (module.queries, module.keys, module.values, module.projection[0]):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert layer.bias.abs().max() == 0
    x = torch.randn(2, 64, 2, 3, 4)
    assert torch.equal(module(x), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "flash"}, r"backend 'flash'.*naive, sdpa"),
        ({"pool": "mean"}, r"pool 'mean'.*none, projected, input"),
        ({"normalisation": "scaling", "scale_logits": True}, "belongs to softmax, not to scaling"),
    ],
)
def test_wrong_options_list_the_choices(options, message):
    with pytest.raises(ValueError, match=message):
        DotProductAttention(6, **options)
