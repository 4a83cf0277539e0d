import pytest
import torch

from ea_psmnet.attention import MECHANISMS, DotProductAttention, EfficientAttention, build_attention


def volume(channels=8):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, channels, 3, 4, 5, generator=generator, dtype=torch.float64)


def trained(module):
    """As if trained: no parameter at its starting value."""
    generator = torch.Generator().manual_seed(4)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3
    return module.double().eval()


@pytest.mark.parametrize("mechanism", [*MECHANISMS, "none"])
def test_a_new_module_is_the_identity(mechanism):
    x = volume()
    for training in (True, False):
        module = build_attention(mechanism, 8).double().train(training)
        assert torch.equal(module(x), x)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_new_module_still_learns(mechanism):
    x = volume()
    module = build_attention(mechanism, 8).double()
    (module(x) ** 2).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_shape_type_and_layout_are_kept(mechanism, layout):
    x = volume().float().contiguous(memory_format=layout)
    y = trained(build_attention(mechanism, 8)).float()(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_both_layouts_give_the_same_values(mechanism):
    x = volume()
    module = trained(build_attention(mechanism, 8))
    last = module(x.contiguous(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(module(x), last, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_moving_the_positions_moves_the_output_alike(mechanism):
    """Attention without position codes commutes with any permutation of positions."""
    x = volume()
    module = trained(build_attention(mechanism, 8))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    shuffled = x.flatten(2)[..., order].view_as(x)
    expected = module(x).flatten(2)[..., order].view_as(x)
    torch.testing.assert_close(module(shuffled), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_position_hears_of_every_other(mechanism):
    x = volume()
    module = trained(build_attention(mechanism, 8))
    nudged = x.clone()
    nudged[:, :, 0, 0, 0] += 1
    change = (module(nudged) - module(x)).abs().amax(dim=1)
    assert (change > 1e-9).all()


def test_efficient_module_is_its_formula():
    """x + W_o (softmax_k(W_q x)^T (softmax_n(W_k x) W_v x)), head by head, in matrices."""
    x = volume()
    module = trained(EfficientAttention(8, key_channels=6, value_channels=4, heads=2))
    flat = x.flatten(2)  # (B, 8, n)

    def linear(layer, y):
        return torch.einsum("oc,bcn->bon", layer.weight.flatten(1), y) + layer.bias[:, None]

    q, k, v = (linear(layer, flat) for layer in (module.queries, module.keys, module.values))
    gathered = []
    for head in range(2):
        qh, kh = q[:, 3 * head : 3 * head + 3], k[:, 3 * head : 3 * head + 3]
        vh = v[:, 2 * head : 2 * head + 2]
        similarity = torch.einsum("bkn,bkm->bnm", qh.softmax(1), kh.softmax(2))
        gathered.append(torch.einsum("bnm,bvm->bvn", similarity, vh))
    expected = flat + linear(module.projection, torch.cat(gathered, dim=1))
    torch.testing.assert_close(module(x).flatten(2), expected, rtol=0, atol=1e-12)


def test_published_channel_defaults():
    efficient, dot = EfficientAttention(32), DotProductAttention(32)
    assert (efficient.keys.out_channels, efficient.values.out_channels) == (16, 32)
    assert (dot.keys.out_channels, dot.values.out_channels) == (16, 16)


def test_wrong_requests_list_the_choices():
    with pytest.raises(ValueError, match=r"'linear'.*none, efficient, dot_product"):
        build_attention("linear", 8)
    with pytest.raises(ValueError, match=r"no option 'key_chanels'.*key_channels"):
        build_attention("efficient", 8, key_chanels=4)
    with pytest.raises(ValueError, match="3 heads cannot share 8 value channels"):
        build_attention("efficient", 8, key_channels=3, heads=3)
