"""External attention against its sums written out."""

import pytest
import torch

from ea_psmnet.ops.external import double_normalisation, external_attention


def inputs(positions=7, rows=5):
    generator = torch.Generator().manual_seed(2)
    shapes = (2, 3, positions), (rows, 3), (rows, 3)
    return [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]


@pytest.mark.parametrize("gain", [1, 10])
def test_attention_equals_its_definition(gain):
    """With a gain of 10, some positions weigh about 1e-9 in every row: the epsilon shows."""
    queries, keys, values = inputs()
    queries = gain * queries
    result = external_attention(queries, keys, values)
    for b in range(2):
        weights = torch.stack([torch.exp(row @ queries[b]) for row in keys])  # (s, n)
        weights = torch.stack([row / row.sum() for row in weights])
        for t in range(7):
            column = weights[:, t] / (weights[:, t].sum() + 1e-9)
            expected = sum(w * row for w, row in zip(column, values, strict=True))
            torch.testing.assert_close(result[b, :, t], expected, rtol=0, atol=1e-12)


def test_every_position_weighs_one():
    weights = double_normalisation(inputs()[0])
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 7).double(), rtol=0, atol=1e-6)


def test_gradients():
    assert torch.autograd.gradcheck(external_attention, [t.requires_grad_() for t in inputs(5, 4)])


def test_autocast_does_not_reach_the_sums():
    tensors = inputs(positions=50)
    expected = external_attention(*tensors).float()
    with torch.autocast("cpu", torch.bfloat16):
        result = external_attention(*(t.float() for t in tensors))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_positions_survive_half_precision(dtype):
    """Softmax weights over 200,000 positions are below what float16 can store."""
    tensors = [t.to(dtype) for t in inputs(positions=200_000)]
    result = external_attention(*tensors)
    expected = external_attention(*(t.double() for t in tensors))
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-4)
