import pytest
import torch
from torch.nn import functional as F

from ea_psmnet.attention import FocusedLinearAttention
from ea_psmnet.attention.focused_linear import focused_features, focused_linear_attention


def queries_keys_values(positions=7, heads=2):
    generator = torch.Generator().manual_seed(2)
    q, k, v = (
        torch.randn(2, heads, c, positions, generator=generator, dtype=torch.float64)
        for c in (3, 3, 4)
    )
    return [q.abs(), k.abs(), v]


@pytest.mark.parametrize("power", [1, 2.5, 3])
def test_features_are_their_power_at_their_old_length(power):
    x, scale = queries_keys_values()[2][:, 0], torch.tensor([-1.0, 0, 1, 2], dtype=torch.float64)
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
    q, k, v = queries_keys_values()
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
    q, k, v = queries_keys_values()
    result = focused_linear_attention(q, k, torch.ones_like(v))
    torch.testing.assert_close(result, torch.ones_like(result), rtol=0, atol=1e-5)


@pytest.mark.parametrize("denominator", ["mean", "sum"])
def test_gradients(denominator):
    tensors = [t.requires_grad_() for t in queries_keys_values(positions=5, heads=1)]
    assert torch.autograd.gradcheck(lambda *t: focused_linear_attention(*t, denominator), tensors)
    x, scale = (
        queries_keys_values(positions=5)[2][:, 0].requires_grad_(),
        torch.ones(4, dtype=torch.float64),
    )
    assert torch.autograd.gradcheck(focused_features, (x, scale.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gain", [1e-6, 1, 1e4])
def test_high_powers_stay_finite(dtype, gain):
    x = (gain * queries_keys_values(positions=50)[2][:, 0]).to(dtype).requires_grad_()
    scale = torch.zeros(4, dtype=dtype)
    y = focused_features(x, scale, 8)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    expected = focused_features(x.double(), scale.double(), 8)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4 * gain)


def test_autocast_does_not_reach_the_sums():
    tensors = queries_keys_values(positions=50)
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
    tensors = [(3 * t).to(dtype) for t in queries_keys_values(positions=200_000, heads=1)]
    result = focused_linear_attention(*tensors, denominator)
    expected = focused_linear_attention(*(t.double() for t in tensors), denominator)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5)


def test_an_unknown_denominator_lists_the_choices():
    with pytest.raises(ValueError, match=r"denominator 'max'.*mean, sum"):
        focused_linear_attention(*queries_keys_values(), "max")


def randomised(**options):
    torch.manual_seed(1)
    module = FocusedLinearAttention(6, **options).double()
    for parameter in module.parameters():
        parameter.data.normal_(std=0.5)
    return module


def published(x, module, size, epsilon_on_the_mean):
    """What the published code computes from tokens (B, N, C), written head by head.

    Its first version divides by q . sum(k) + 1e-6, its last by q . mean(k) + 1e-6.
    """

    def linear(layer):
        return F.linear(x, layer.weight.flatten(1), layer.bias)

    def focused(y):
        y = (y.clamp(min=0) + 1e-6) / torch.log1p(module.scale.exp())
        cubed = y**module.focusing_power
        return cubed / cubed.norm(dim=2, keepdim=True) * y.norm(dim=2, keepdim=True)

    q, k, v = focused(linear(module.queries)), focused(linear(module.keys)), linear(module.values)
    batch, n, _ = x.shape
    flat = len(size) == 2
    weight = module.restoration.weight[:, :, 2] if flat else module.restoration.weight
    convolve = F.conv2d if flat else F.conv3d
    outputs = []
    for qh, kh, vh in zip(*(t.chunk(module.heads, dim=2) for t in (q, k, v)), strict=True):
        similarity = qh @ kh.transpose(1, 2)  # (B, N, N)
        total = similarity.sum(dim=2, keepdim=True)
        divisor = total / n + 1e-6 if epsilon_on_the_mean else total + 1e-6
        scale = 1 / n if epsilon_on_the_mean else 1
        grid = vh.transpose(1, 2).reshape(batch, -1, *size)
        local = convolve(grid, weight, module.restoration.bias, padding=2, groups=grid.shape[1])
        outputs.append(similarity @ vh * scale / divisor + local.flatten(2).transpose(1, 2))
    return F.linear(
        torch.cat(outputs, 2), module.projection.weight.flatten(1), module.projection.bias
    )


@pytest.mark.parametrize("denominator", ["mean", "sum"])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("size", [(4, 5), (3, 4, 5)])
def test_published_weights_give_the_published_output(size, heads, denominator):
    """A published square kernel is the middle slice of ours; with D = 1 the others see nothing."""
    module = randomised(heads=heads, denominator=denominator)
    # Most keys fall to the ReLU, so that the epsilons show.
    module.keys.bias.data -= 2
    n = torch.Size(size).numel()
    tokens = torch.randn(2, n, 6, dtype=torch.float64)
    volume = tokens.transpose(1, 2).reshape(2, 6, *((1, *size) if len(size) == 2 else size))
    expected = tokens + published(tokens, module, size, denominator == "mean")
    result = module(volume).flatten(2).transpose(1, 2)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)


def test_power_and_channels_are_options():
    module = randomised(key_channels=4, value_channels=2, heads=2, focusing_power=2.5)
    tokens = torch.randn(2, 20, 6, dtype=torch.float64)
    expected = tokens + published(tokens, module, (4, 5), True)
    result = module(tokens.transpose(1, 2).reshape(2, 6, 1, 4, 5))
    torch.testing.assert_close(result.flatten(2).transpose(1, 2), expected, rtol=0, atol=1e-10)


def test_the_published_start():
    torch.manual_seed(0)
    module = FocusedLinearAttention(64, start="published")
    for layer in (module.queries, module.keys, module.values, module.projection):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert layer.bias.abs().max() == 0
    assert module.scale.abs().max() == 0
    assert module.restoration.weight.shape == (64, 1, 5, 5, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 4}, r"key_channels \(6\) must be divisible by heads \(4\)"),
        (
            {"heads": 2, "value_channels": 3},
            r"value_channels \(3\) must be divisible by",
        ),
        ({"focusing_power": 0}, "focusing_power must be a number above zero, not 0"),
        ({"focusing_power": float("nan")}, "focusing_power must be a number above zero, not nan"),
        ({"kernel_size": 4}, "odd, to have a middle, not 4"),
        ({"denominator": "max"}, r"denominator 'max'.*mean, sum"),
    ],
)
def test_wrong_options_say_what_is_right(options, message):
    with pytest.raises(ValueError, match=message):
        FocusedLinearAttention(6, **options)
