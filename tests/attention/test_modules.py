from dataclasses import replace

import pytest
import torch

from ea_psmnet import PSMNetConfig, build_model
from ea_psmnet.attention import MECHANISMS, DotProductAttention, EfficientAttention, build_attention
from ea_psmnet.attention.efficient import fourier_positions
from ea_psmnet.models.config import SITES

NOT_SPATIAL = {"focused_linear": {"kernel_size": 1}}
"""Options that take away what sees a neighbourhood, where a mechanism has such a part."""


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
    module = trained(build_attention(mechanism, 8, **NOT_SPATIAL.get(mechanism, {})))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    shuffled = x.flatten(2)[..., order].view_as(x)
    expected = module(x).flatten(2)[..., order].view_as(x)
    torch.testing.assert_close(module(shuffled), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_position_hears_of_every_other(mechanism):
    x = volume()
    module = trained(build_attention(mechanism, 8))
    change = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    for nudge in (5, -5):  # one of the two wakes every key channel that a ReLU had silenced
        nudged = x.clone()
        nudged[:, :, 0, 0, 0] += nudge
        change += (module(nudged) - module(x)).abs().amax(dim=1)
    assert (change > 1e-9).all()


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_disparities_rows_and_columns_are_told_apart(mechanism):
    """Swapping two axes of the volume, and of every kernel, swaps those of the output."""
    x = volume()
    module = trained(build_attention(mechanism, 8))
    expected = module(x).transpose(2, 4)
    for parameter in module.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.transpose(2, 4)
    torch.testing.assert_close(module(x.transpose(2, 4)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_batch_is_its_samples(mechanism):
    x = volume()
    module = trained(build_attention(mechanism, 8))
    torch.testing.assert_close(module(x)[1:], module(x[1:]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_half_precision_stays_near(mechanism):
    x = volume()
    expected = trained(build_attention(mechanism, 8))(x)
    result = trained(build_attention(mechanism, 8)).bfloat16()(x.bfloat16())
    assert result.dtype == torch.bfloat16
    assert (result.double() - expected).norm() / expected.norm() < 0.02


@pytest.mark.parametrize("mechanism", ["dot_product", "focused_linear", "external", "hydra"])
def test_an_unknown_start_lists_the_choices(mechanism):
    with pytest.raises(ValueError, match=r"start 'warm'.*identity, published"):
        build_attention(mechanism, 8, start="warm")


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_network_takes_every_mechanism_at_every_site(mechanism):
    plain = PSMNetConfig(max_disparity=32, width=0.25)
    images = [torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    torch.manual_seed(9)
    model = build_model(replace(plain, attention=mechanism, attention_sites=SITES)).eval()
    kind = MECHANISMS[mechanism]
    assert sum(isinstance(module, kind) for module in model.modules()) == len(SITES)
    bare = build_model(plain).eval()
    bare.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(model(*images), bare(*images), rtol=0, atol=0)
    sum(output.sum() for output in model.train()(*images).disparities).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


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
    with pytest.raises(ValueError, match=r"value_channels \(8\) must be divisible by heads \(3\)"):
        build_attention("efficient", 8, key_channels=3, heads=3)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_module_cast_to_half_precision_works(mechanism):
    x = volume()
    module = trained(build_attention(mechanism, 8))
    expected = module(x)
    result = module.bfloat16()(x.bfloat16())
    assert result.dtype == torch.bfloat16
    assert (result.double() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("normalisation", ["softmax", "scaling"])
@pytest.mark.parametrize("published_order", [True, False])
def test_both_forms_of_efficient_attention_work_in_half_precision(normalisation, published_order):
    module = EfficientAttention(8, normalisation=normalisation, published_order=published_order)
    assert torch.isfinite(module.bfloat16()(volume().bfloat16())).all()


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 7, 3, 4, 5), torch.float32),
        ((2, 8, 4, 5), torch.float32),
        ((2, 8, 0, 4, 5), torch.float32),
        ((2, 8, 3, 4, 5), torch.int64),
    ],
)
def test_what_is_no_volume_of_these_channels_is_told(mechanism, shape, dtype):
    with pytest.raises(ValueError, match=r"volumes \(B, 8, D, H, W\), not torch\.") as error:
        build_attention(mechanism, 8)(torch.zeros(shape, dtype=dtype))
    assert str(error.value).endswith(f"{dtype} {shape}")


@pytest.mark.parametrize("normalisation", ["softmax", "scaling", "none"])
def test_a_sum_in_place_may_follow_in_training(normalisation):
    """As the network adds to what attention at the output returns."""
    x = torch.rand(1, 8, 4, 6, 8).contiguous(memory_format=torch.channels_last_3d)
    module = build_attention("efficient", 8, normalisation=normalisation)
    out = module(x.requires_grad_()).add_(1)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.isfinite().all()


def test_sharp_keys_gather_from_few_positions_and_still_start_as_the_identity():
    volume = torch.randn(1, 8, 6, 7, 9, generator=torch.Generator().manual_seed(3))
    shares = {}
    for sharpness in (1, 8):
        torch.manual_seed(0)
        attention = build_attention("efficient", 8, sharpness=sharpness)
        assert torch.equal(attention(volume), volume)
        maps = attention.global_maps(volume).flatten(2)
        shares[sharpness] = (-(maps * maps.log()).sum(2)).exp() / maps.shape[2]
    assert shares[1].min() > 0.5
    assert shares[8].mean() < 0.2


@pytest.mark.parametrize("wrong", [0, -1.0, float("inf"), float("nan")])
def test_sharpness_is_above_zero(wrong):
    with pytest.raises(ValueError, match="sharpness must be a number above zero"):
        build_attention("efficient", 8, sharpness=wrong)


@pytest.mark.parametrize("wrong", [0, -2, 4.0, "4", True])
@pytest.mark.parametrize(
    ("mechanism", "option"),
    [
        *((mechanism, "channels") for mechanism in MECHANISMS),
        *((mechanism, "key_channels") for mechanism in MECHANISMS if mechanism != "external"),
        *((name, option) for name in ("efficient", "focused_linear")
          for option in ("value_channels", "heads")),
        ("focused_linear", "kernel_size"),
        ("external", "rows"),
    ],
)  # fmt: skip
def test_a_count_is_a_whole_number_above_zero(mechanism, option, wrong):
    with pytest.raises(ValueError, match=f"{option} must be a whole number, 1 or more"):
        MECHANISMS[mechanism](**{"channels": 8, option: wrong})


@pytest.mark.parametrize("published_order", [False, True])
def test_efficient_attention_with_positions_is_its_formula(published_order):
    module = EfficientAttention(8, positions=2, published_order=published_order)
    module = trained(module)
    x = volume()
    places = fourier_positions(x.shape[2:], 2).double().expand(2, -1, -1, -1, -1)
    seen = torch.cat([x, places], dim=1)
    queries = module.queries(seen).flatten(2).softmax(1)
    keys = module.keys(seen).flatten(2).softmax(2)
    values = module.values(x).flatten(2)
    gathered = (values @ keys.mT) @ queries  # (B, v, n)
    expected = x + module.projection(gathered.unflatten(2, x.shape[2:]))
    torch.testing.assert_close(module(x), expected)
    assert module.global_maps(x).shape == (2, 4, 3, 4, 5)


def test_positions_let_a_key_prefer_a_place():
    x = volume()
    module = trained(EfficientAttention(8, positions=1))
    moved = module(x.roll(2, dims=4)).roll(-2, dims=4)
    assert (moved - module(x)).abs().max() > 1e-2


def test_fourier_positions_are_those_of_the_stated_coordinates():
    places = fourier_positions((48, 2, 4), 2)[0]
    assert places.shape == (12, 48, 2, 4)
    for d, y, x in [(0, 0, 0), (24, 1, 2), (47, 0, 3)]:
        coordinates = torch.tensor([d / 24 - 1, (2 * y + 1) / 2 - 1, (2 * x + 1) / 4 - 1])
        angles = torch.pi * torch.cat([coordinates, 2 * coordinates])
        expected = torch.cat([angles.sin(), angles.cos()])
        torch.testing.assert_close(places[:, d, y, x], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [-1, 9, 1.5])
def test_positions_are_few_frequencies(wrong):
    with pytest.raises(ValueError, match="positions must be 0 to 8 frequencies, not"):
        EfficientAttention(8, positions=wrong)
