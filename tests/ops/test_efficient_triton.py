"""The Triton kernels: in Triton's interpreter on any machine, compiled where there is a card."""

import pytest
import torch

from ea_psmnet.ops.efficient_block import (
    BlockWeights,
    _fold,
    efficient_block,
    efficient_block_reference,
)

pytest.importorskip("triton")
from ea_psmnet.ops import efficient_triton as kernels

interpreted = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the compiled kernels are tested instead"
)  # see conftest.py

CASES = [  # B, C, k, v, heads, n
    (1, 16, 16, 16, 1, 64),
    (2, 20, 10, 24, 1, 333),  # nothing is a power of two, the last block is not full
    (3, 32, 16, 32, 4, 1000),
    (1, 64, 32, 64, 2, 130),
]


def block(batch, channels, keys, values, positions, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(device)

    weights = BlockWeights(
        *(random(keys, channels) / channels**0.5, random(keys)),
        *(random(keys, channels) / channels**0.5, random(keys)),
        *(random(values, channels), random(values), random(channels, values), random(channels)),
    )
    return random(batch, channels, positions).to(dtype), weights


def run(x, weights, heads):
    """The block by the kernels, with the folding done as the program does it."""
    context, _ = kernels.gather(x, weights.key)
    fold = _fold(context, weights, heads)
    return kernels.spread(
        x, weights.query, weights.query_bias, fold, weights.projection_bias, heads
    )


@pytest.mark.parametrize(("batch", "channels", "keys", "values", "heads", "positions"), CASES)
@pytest.mark.parametrize("layout", ["first", "last"])
@interpreted
def test_interpreted_kernels_equal_the_reference(
    batch, channels, keys, values, heads, positions, layout
):
    x, weights = block(batch, channels, keys, values, positions)
    expected = efficient_block_reference(
        x.double(), BlockWeights(*map(torch.Tensor.double, weights)), heads
    )
    if layout == "last":
        x = x.mT.contiguous().mT
    result = run(x, weights, heads)
    assert result.stride() == x.stride()
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


@interpreted
def test_interpreted_log_sum_exps():
    x, weights = block(2, 16, 16, 16, 500)
    _, lse = kernels.gather(x, weights.key)
    torch.testing.assert_close(lse, (weights.key @ x).logsumexp(dim=2), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("batch", "channels", "keys", "values", "heads", "positions"), CASES)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
def test_compiled_block_equals_the_reference_with_gradients(
    batch, channels, keys, values, heads, positions, dtype, bound
):
    x, weights = block(batch, channels, keys, values, positions, dtype, "cuda")
    leaves = [t.requires_grad_() for t in (x, *weights)]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    result = efficient_block(leaves[0], BlockWeights(*leaves[1:]), heads)
    expected = efficient_block_reference(wide[0], BlockWeights(*wide[1:]), heads)
    arriving = torch.randn_like(expected)
    assert ((result - expected).norm() / expected.norm()).item() < bound
    grads = torch.autograd.grad(result, leaves, arriving.to(dtype))
    for a, e in zip(grads, torch.autograd.grad(expected, wide, arriving), strict=True):
        assert ((a - e).norm() / e.norm().clamp(min=1e-3)).item() < 5 * bound


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compiled_block_at_a_million_and_a_half_positions(dtype):
    """Key logits of gain 3; the output stays within 1e-2 of float64's."""
    x, weights = block(1, 32, 16, 32, 1_500_000, dtype, "cuda")
    key = 3 * weights.key / weights.key.norm(dim=1, keepdim=True)
    weights = weights._replace(key=key)
    wide = BlockWeights(*map(torch.Tensor.double, weights))
    half = x.requires_grad_()
    result, expected = efficient_block(half, weights, 1), efficient_block(x.double(), wide, 1)
    assert torch.isfinite(result).all()
    assert ((result - expected).norm() / expected.norm()).item() < 1e-2
    result.square().mean().backward()
    assert torch.isfinite(half.grad).all()


@pytest.mark.parametrize(
    ("channels", "keys", "heads", "dtype", "cuda", "expected"),
    [
        (32, 16, 1, torch.float32, True, True),
        (32, 16, 1, torch.bfloat16, True, True),
        (32, 16, 1, torch.float32, False, False),
        (32, 16, 1, torch.float64, True, False),
        (128, 128, 4, torch.float16, True, True),
        (129, 16, 1, torch.float32, True, False),
        (32, 129, 1, torch.float32, True, False),
        (32, 10, 1, torch.float32, True, True),
        (32, 10, 2, torch.float32, True, False),  # heads would not lie in equal parts of a block
        (32, 8, 2, torch.float32, True, False),
    ],
)
def test_what_the_kernels_take(channels, keys, heads, dtype, cuda, expected):
    class Stand:
        is_cuda, shape = cuda, (1, channels, 100)

    Stand.dtype = dtype
    assert kernels.is_supported(Stand(), keys, heads) is expected
