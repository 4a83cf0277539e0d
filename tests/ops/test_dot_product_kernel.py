"""The lean form of dot-product attention against the plain one."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ea_psmnet.ops.attention import dot_product_attention
from ea_psmnet.ops.dot_product import lean_dot_product_attention


def inputs(positions=9, others=7, values=3):
    generator = torch.Generator().manual_seed(2)
    shapes = (3, positions), (3, others), (values, others)
    return [torch.randn(2, 2, *s, generator=generator, dtype=torch.float64) for s in shapes]


@pytest.mark.parametrize("values", [3, 4])
@pytest.mark.parametrize("normalisation", ["softmax", "scaling", "none"])
def test_the_lean_form_equals_the_plain_one(normalisation, values):
    results = []
    for kernel in (dot_product_attention, lean_dot_product_attention):
        tensors = [t.requires_grad_() for t in inputs(values=values)]
        out = kernel(*tensors, normalisation)
        gradients = torch.autograd.grad((out**3).sum(), tensors)
        results.append([out, *gradients])
    for plain, lean in zip(*results, strict=True):
        torch.testing.assert_close(lean, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalisation", ["softmax", "scaling", "none"])
def test_gradients(normalisation):
    tensors = [t.requires_grad_() for t in inputs(5, 4)]
    assert torch.autograd.gradcheck(
        lambda *t: lean_dot_product_attention(*t, normalisation), tensors
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_runs_in_the_tiled_kernel(dtype):
    """Only that one may run here: the plain fallback, which stores all weights, is an error."""
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        lean_dot_product_attention(*(t.to(dtype) for t in inputs()))


def test_autocast_does_not_reach_the_sums():
    tensors = inputs()
    expected = lean_dot_product_attention(*tensors).float()
    with torch.autocast("cpu", torch.bfloat16):
        result = lean_dot_product_attention(*(t.float() for t in tensors))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalisation", ["softmax", "scaling"])
def test_many_positions_survive_half_precision(dtype, normalisation):
    tensors = [(3 * t).to(dtype) for t in inputs(positions=20, others=200_000)]
    result = lean_dot_product_attention(*tensors, normalisation)
    expected = dot_product_attention(*(t.double() for t in tensors), normalisation)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-3)
