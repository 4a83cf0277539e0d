"""Streamed forms against their plain twins: outputs, gradients and what they keep."""

from functools import partial

import pytest
import torch

from ea_psmnet.attention.external import external_attention, external_attention_reference
from ea_psmnet.attention.focused_linear import focused_block, focused_block_reference
from ea_psmnet.attention.hydra import hydra_block, hydra_block_reference
from ea_psmnet.ops import streaming

POSITIONS = 700


def random(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def hydra(reduction):
    tensors = [random(*s) for s in ((5, 8), (5,), (5, 8), (5,), (5, 8), (5,), (8, 5), (8,))]
    forms = (partial(f, reduction=reduction) for f in (hydra_block_reference, hydra_block))
    return *forms, tensors


def external():
    return external_attention_reference, external_attention, [random(6, 8), random(6, 8)]


def focused(denominator, heads, power=3):
    shapes = ((6, 8), (6,), (6, 8), (6,), (4, 8), (4,), (6,))
    options = {"denominator": denominator, "heads": heads, "power": power}
    forms = (partial(f, **options) for f in (focused_block_reference, focused_block))
    return *forms, [random(*shape) for shape in shapes]


PAIRS = {
    "hydra mean": hydra("mean"),
    "hydra sum": hydra("sum"),
    "external": external(),
    "focused mean": focused("mean", 1),
    "focused sum": focused("sum", 2),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("chunk", [2**19, 1])  # all positions at once, or 256 at a time
def test_equals_the_plain_form_with_gradients(pair, chunk, monkeypatch):
    monkeypatch.setattr(streaming, "_CHUNK_FLOATS", chunk)
    plain, fast, tensors = pair
    x = random(2, 8, POSITIONS)
    expected, actual = plain(x, *tensors), fast(x, *tensors)
    scale = expected.abs().max()
    torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=1e-12)
    arriving = random(*expected.shape).detach()
    grads = [torch.autograd.grad(out, (x, *tensors), arriving) for out in (actual, expected)]
    for a, e in zip(*grads, strict=True):
        assert (a - e).abs().max() <= 1e-10 * e.abs().max().clamp(min=1)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_keeps_the_input_and_a_small_summary(pair):
    _, fast, tensors = pair
    x = random(2, 8, POSITIONS)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fast(x, *tensors)
    assert sum(t.numel() for t in kept if t.data_ptr() != x.data_ptr()) < POSITIONS


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_summed_in_float32(pair, dtype):
    plain, fast, tensors = pair
    x = random(2, 8, POSITIONS).detach().to(dtype)
    result = fast(x, *(t.detach().float() for t in tensors))
    expected = plain(x.double(), *tensors)
    assert result.dtype == dtype
    assert (result.double() - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_backward_inside_autocast_is_that_outside(pair):
    _, fast, tensors = pair
    leaves = [t.detach().float().requires_grad_() for t in (random(2, 8, POSITIONS), *tensors)]
    grads = []
    for inside in (False, True):
        out = fast(*leaves)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            grads.append(torch.autograd.grad(out.square().sum(), leaves))
    for outside, within in zip(*grads, strict=True):
        assert (within - outside).norm() <= 1e-5 * outside.norm()


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_second_derivatives_are_refused(pair):
    _, fast, tensors = pair
    x = random(2, 8, POSITIONS)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(fast(x, *tensors).square().sum(), x, create_graph=True)
