import pytest
import torch

from ea_psmnet.attention import ExternalAttention
from ea_psmnet.attention.external import double_normalisation, external_attention_reference


def queries_and_memories(positions=7, rows=5):
    generator = torch.Generator().manual_seed(2)
    shapes = (2, 3, positions), (rows, 3), (rows, 3)
    return [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]


@pytest.mark.parametrize("gain", [1, 10])
def test_attention_equals_its_definition(gain):
    """With a gain of 10, some positions weigh about 1e-9 in every row: the epsilon shows."""
    queries, keys, values = queries_and_memories()
    queries = gain * queries
    result = external_attention_reference(queries, keys, values)
    for b in range(2):
        weights = torch.stack([torch.exp(row @ queries[b]) for row in keys])  # (s, n)
        weights = torch.stack([row / row.sum() for row in weights])
        for t in range(7):
            column = weights[:, t] / (weights[:, t].sum() + 1e-9)
            expected = sum(w * row for w, row in zip(column, values, strict=True))
            torch.testing.assert_close(result[b, :, t], expected, rtol=0, atol=1e-12)


def test_every_position_weighs_one():
    weights = double_normalisation(queries_and_memories()[0])
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 7).double(), rtol=0, atol=1e-6)


def test_gradients():
    assert torch.autograd.gradcheck(
        external_attention_reference, [t.requires_grad_() for t in queries_and_memories(5, 4)]
    )


def test_autocast_does_not_reach_the_sums():
    tensors = queries_and_memories(positions=50)
    expected = external_attention_reference(*tensors).float()
    with torch.autocast("cpu", torch.bfloat16):
        result = external_attention_reference(*(t.float() for t in tensors))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_positions_survive_half_precision(dtype):
    """Softmax weights over 200,000 positions are below what float16 can store."""
    tensors = [t.to(dtype) for t in queries_and_memories(positions=200_000)]
    result = external_attention_reference(*tensors)
    expected = external_attention_reference(*(t.double() for t in tensors))
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-4)


def randomised(**options):
    torch.manual_seed(1)
    module = ExternalAttention(6, **options).double().eval()
    for parameter in module.parameters():
        parameter.data.normal_()
    module.projection[1].running_mean.normal_()
    module.projection[1].running_var.uniform_(0.5, 2)
    return module


def published(x, module):
    """What the published code computes from an image (B, C, H, W), up to its residual."""
    batch, channels, height, width = x.shape
    conv1, (conv2, norm) = module.queries, module.projection
    features = torch.einsum("oi,bihw->bohw", conv1.weight.flatten(1), x)
    features = features + conv1.bias[:, None, None]
    logits = torch.einsum("sc,bcn->bsn", module.key_memory, features.reshape(batch, channels, -1))
    weights = logits.exp() / logits.exp().sum(dim=2, keepdim=True)
    weights = weights / (1e-9 + weights.sum(dim=1, keepdim=True))
    read = torch.einsum("sc,bsn->bcn", module.value_memory, weights)
    mixed = torch.einsum("oi,bin->bon", conv2.weight.flatten(1), read)
    unit = (mixed - norm.running_mean[:, None]) / (norm.running_var[:, None] + 1e-5).sqrt()
    scaled = unit * norm.weight[:, None] + norm.bias[:, None]
    return scaled.reshape(batch, channels, height, width)


@pytest.mark.parametrize("rows", [64, 3])
@pytest.mark.parametrize("final_relu", [False, True])
def test_published_weights_give_the_published_output(final_relu, rows):
    module = randomised(final_relu=final_relu, rows=rows)
    x = 3 * torch.randn(2, 6, 4, 5, dtype=torch.float64)
    expected = x + published(x, module)
    if final_relu:
        expected = expected.clamp(min=0)
    torch.testing.assert_close(module(x[:, :, None])[:, :, 0], expected, rtol=0, atol=1e-10)


def test_what_follows_may_change_the_output_in_place():
    """As the network does, which adds its base volume to what an hourglass gives."""
    module = randomised(final_relu=True)
    x = torch.randn(1, 6, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(2 * module(x).sum(), x)
    (actual,) = torch.autograd.grad(module(x).mul_(2).sum(), x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    module.projection[1].weight.data.zero_()
    module.projection[1].bias.data.zero_()
    zeros = torch.zeros(1, 6, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(module(zeros).sum(), zeros)
    assert slope.abs().max() == 0, "a ReLU is flat at zero"


def test_the_memories_are_read_over_the_whole_volume():
    """A volume is an image whose rows are those of all its slices."""
    module = randomised()
    x = torch.randn(2, 6, 3, 4, 5, dtype=torch.float64)
    expected = x + published(x.reshape(2, 6, 12, 5), module).reshape(x.shape)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-10)


def test_the_published_start_copies_one_memory_to_the_other():
    torch.manual_seed(0)
    module = ExternalAttention(64, start="published")
    assert torch.equal(module.key_memory, module.value_memory)
    assert module.key_memory.data_ptr() != module.value_memory.data_ptr()
    for weight in (module.queries.weight, module.key_memory, module.projection[0].weight):
        assert weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert torch.equal(module.projection[1].weight, torch.ones(64))
    assert not torch.equal(
        *(getattr(ExternalAttention(64), f"{m}_memory") for m in ("key", "value"))
    )


def test_a_memory_needs_rows():
    with pytest.raises(ValueError, match="rows must be a whole number, 1 or more, not 0"):
        ExternalAttention(6, rows=0)
