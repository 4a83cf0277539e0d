"""Focused linear attention against its quadratic order, pair by pair."""

import pytest
import torch

from ea_psmnet.ops.focused_linear import focused_features, focused_linear_attention


def inputs(positions=7, heads=2):
    generator = torch.Generator().manual_seed(2)
    q, k, v = (
        torch.randn(2, heads, c, positions, generator=generator, dtype=torch.float64)
        for c in (3, 3, 4)
    )
    return [q.abs(), k.abs(), v]


@pytest.mark.parametrize("power", [1, 2.5, 3])
def test_features_are_their_power_at_their_old_length(power):
    x, scale = inputs()[2][:, 0], torch.tensor([-1.0, 0, 1, 2], dtype=torch.float64)
    result = focused_features(x, scale, power)
    for b in range(2):
        for t in range(7):
            y = (x[b, :, t].clamp(min=0) + 1e-6) / (1 + scale.exp()).log()
            expected = y**power * (y.norm() / (y**power).norm())
            torch.testing.assert_close(result[b, :, t], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("denominator", ["mean", "sum"])
@pytest.mark.parametrize("gain", [1, 1e-3])
def test_attention_equals_its_quadratic_order(denominator, gain):
    """With small queries and keys the epsilon shows, and where it is added."""
    q, k, v = inputs()
    q, k = gain * q, gain * k
    result = focused_linear_attention(q, k, v, denominator)
    for b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(7)):
        similarity = torch.stack([(q[b, h, :, i] * k[b, h, :, j]).sum() for j in range(7)])
        total = (similarity * v[b, h]).sum(dim=1)
        epsilon = 1e-6 if denominator == "sum" else 7e-6
        torch.testing.assert_close(
            result[b, h, :, i], total / (similarity.sum() + epsilon), rtol=0, atol=1e-12
        )


def test_constant_values_come_back():
    q, k, v = inputs()
    result = focused_linear_attention(q, k, torch.ones_like(v))
    torch.testing.assert_close(result, torch.ones_like(result), rtol=0, atol=1e-5)


@pytest.mark.parametrize("denominator", ["mean", "sum"])
def test_gradients(denominator):
    tensors = [t.requires_grad_() for t in inputs(positions=5, heads=1)]
    assert torch.autograd.gradcheck(lambda *t: focused_linear_attention(*t, denominator), tensors)
    x, scale = inputs(positions=5)[2][:, 0].requires_grad_(), torch.ones(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(focused_features, (x, scale.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gain", [1e-6, 1, 1e4])
def test_high_powers_stay_finite(dtype, gain):
    x = (gain * inputs(positions=50)[2][:, 0]).to(dtype).requires_grad_()
    scale = torch.zeros(4, dtype=dtype)
    y = focused_features(x, scale, 8)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    expected = focused_features(x.double(), scale.double(), 8)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4 * gain)


def test_autocast_does_not_reach_the_sums():
    tensors = inputs(positions=50)
    expected = focused_linear_attention(*tensors).float()
    x, scale = tensors[2][:, 0], torch.zeros(4, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        result = focused_linear_attention(*(t.float() for t in tensors))
        features = focused_features(x.float(), scale.float())
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(features, focused_features(x, scale).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("denominator", ["mean", "sum"])
def test_many_positions_survive_half_precision(dtype, denominator):
    tensors = [(3 * t).to(dtype) for t in inputs(positions=200_000, heads=1)]
    result = focused_linear_attention(*tensors, denominator)
    expected = focused_linear_attention(*(t.double() for t in tensors), denominator)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5)


def test_an_unknown_denominator_lists_the_choices():
    with pytest.raises(ValueError, match=r"denominator 'max'.*mean, sum"):
        focused_linear_attention(*inputs(), "max")
