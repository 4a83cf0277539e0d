"""The Triton kernels: in Triton's interpreter on any machine, compiled where there is a card."""

import numpy as np
import pytest
import torch

from ea_psmnet.ops import efficient_block as dispatch
from ea_psmnet.ops.efficient_block import (
    BlockWeights,
    efficient_block,
    efficient_block_reference,
)

pytest.importorskip("triton")
import triton

from ea_psmnet.ops.triton import efficient as kernels
from ea_psmnet.ops.triton import efficient_backward


def release(module):
    return tuple(int(part) for part in module.__version__.split(".")[:2])


def interpreter_skipped():
    """Why the interpreter cannot be used here, or nothing; conftest.py turns it on."""
    if torch.cuda.is_available():
        return "the compiled kernels are tested instead"
    if release(triton) < (3, 7) and release(np) >= (2, 4):
        return "Triton's interpreter before 3.7 cannot loop with numpy 2.4"
    return ""


interpreted = pytest.mark.skipif(bool(interpreter_skipped()), reason=interpreter_skipped())

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


@pytest.fixture
def on_kernels(monkeypatch):
    """`efficient_block` by the kernels, of few programs, so that one takes block after block."""
    monkeypatch.setattr(dispatch, "_passes_for", lambda *_: kernels)
    monkeypatch.setattr(kernels, "_PROGRAMS", 7)
    # The interpreter multiplies exactly, and has no name for the compiler's way.
    monkeypatch.setattr(efficient_backward, "_PRECISION", "ieee")


@pytest.fixture
def on_a_card(monkeypatch):
    """`efficient_block` by the compiled kernels, which are off by default."""
    monkeypatch.setenv("EA_PSMNET_TRITON", "1")


def both(x, weights, heads, arriving):
    """Output and gradients in x's type, and of the published order in float64."""
    leaves = [t.detach().requires_grad_() for t in (x, *weights)]
    wide = [t.detach().double().requires_grad_() for t in (x, *weights)]
    result = efficient_block(leaves[0], BlockWeights(*leaves[1:]), heads)
    expected = efficient_block_reference(wide[0], BlockWeights(*wide[1:]), heads)
    return (
        (result, *torch.autograd.grad(result, leaves, arriving.to(x.dtype))),
        (expected, *torch.autograd.grad(expected, wide, arriving.to(x.dtype).double())),
    )


def distance(result, expected):
    """Relative, or absolute where nothing is expected: the key bias's gradient is zero."""
    return ((result - expected).norm() / expected.norm().clamp(min=1e-3)).item()


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "channels", "keys", "values", "heads", "positions"), CASES)
@pytest.mark.parametrize("layout", ["first", "last"])
@interpreted
@pytest.mark.usefixtures("on_kernels")
def test_interpreted_kernels_equal_the_reference_with_gradients(
    batch, channels, keys, values, heads, positions, layout
):
    x, weights = block(batch, channels, keys, values, positions)
    arriving = torch.randn_like(x)
    if layout == "last":
        x = x.mT.contiguous().mT
    results, expected = both(x, weights, heads, arriving)
    assert results[0].stride() == results[1].stride() == x.stride()
    torch.testing.assert_close(results[0].double(), expected[0], rtol=1e-4, atol=1e-4)
    for a, e in zip(results, expected, strict=True):
        assert distance(a, e) < 2e-6


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 5e-3), (torch.float16, 7e-4)])
@interpreted
@pytest.mark.usefixtures("on_kernels")
def test_interpreted_kernels_in_half_precision(dtype, bound):
    """Only what is read and written is rounded, once."""
    x, weights = block(2, 20, 10, 24, 333, dtype)
    for a, e in zip(*both(x, weights, 1, torch.randn_like(x)), strict=True):
        assert distance(a, e) < bound


@interpreted
@pytest.mark.usefixtures("on_kernels")
def test_interpreted_gradient_of_a_sum():
    """What arrives is one number, expanded without memory."""
    x, weights = block(2, 16, 16, 16, 100)
    for a, e in zip(*both(x, weights, 1, torch.ones(1, 1, 1).expand_as(x)), strict=True):
        assert distance(a, e) < 2e-6


@interpreted
@pytest.mark.usefixtures("on_kernels")
def test_interpreted_gradients_where_missing_positions_would_weigh_most():
    """All logits lie near -150: a zero after the last position would have a share of exp(150)."""
    x, weights = block(1, 16, 16, 16, 70)
    x, weights = x / 4 + 1, weights._replace(key=weights.key - 150 / 16)
    for a, e in zip(*both(x, weights, 1, torch.randn_like(x)), strict=True):
        assert torch.isfinite(a).all()
        assert distance(a, e) < 1e-3  # logits of 150 have five digits left


@interpreted
@pytest.mark.usefixtures("on_kernels")
def test_interpreted_directional_derivative():
    """Of the kernels' own output, by central differences."""
    x, weights = block(1, 16, 16, 16, 90)
    direction, arriving = torch.randn_like(x), torch.randn_like(x)

    def along(step):
        return (efficient_block(x + step * direction, weights, 2).double() * arriving).sum()

    leaf = x.clone().requires_grad_()
    efficient_block(leaf, weights, 2).backward(arriving)
    slope = (along(1e-2) - along(-1e-2)) / 2e-2
    torch.testing.assert_close((leaf.grad.double() * direction).sum(), slope, rtol=1e-3, atol=1e-2)


@interpreted
def test_interpreted_log_sum_exps():
    x, weights = block(2, 16, 16, 16, 500)
    _, lse = kernels.gather(x, weights.key)
    torch.testing.assert_close(lse, (weights.key @ x).logsumexp(dim=2), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.usefixtures("on_a_card")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("batch", "channels", "keys", "values", "heads", "positions"), CASES)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
def test_compiled_block_equals_the_reference_with_gradients(
    batch, channels, keys, values, heads, positions, dtype, bound
):
    x, weights = block(batch, channels, keys, values, positions, dtype, "cuda")
    (result, *grads), (expected, *wide) = both(x, weights, heads, torch.randn_like(x))
    assert distance(result, expected) < bound
    for a, e in zip(grads, wide, strict=True):
        assert distance(a, e) < 5 * bound


@pytest.mark.gpu
@pytest.mark.usefixtures("on_a_card")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compiled_block_at_a_million_and_a_half_positions(dtype):
    """Key logits of gain 3; output and gradients stay within 1e-2 of float64's."""
    x, weights = block(1, 32, 16, 32, 1_500_000, dtype, "cuda")
    key = 3 * weights.key / weights.key.norm(dim=1, keepdim=True)
    weights = weights._replace(key=key)
    for a, e in zip(*both(x, weights, 1, torch.randn_like(x)), strict=True):
        assert torch.isfinite(a).all()
        assert distance(a, e) < 1e-2


@pytest.mark.gpu
@pytest.mark.usefixtures("on_a_card")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled_gradients_repeat_to_the_last_bit():
    x, weights = block(2, 32, 16, 32, 100_000, torch.float32, "cuda")
    arriving = torch.randn_like(x)
    first, second = (both(x, weights, 1, arriving)[0] for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("channels", "keys", "heads", "dtype", "cuda", "expected"),
    [
        (32, 16, 1, torch.float32, True, True),
        (32, 16, 1, torch.bfloat16, True, True),
        (32, 16, 1, torch.float32, False, False),
        (32, 16, 1, torch.float64, True, False),
        (64, 64, 4, torch.float16, True, True),
        (65, 16, 1, torch.float32, True, False),
        (32, 65, 1, torch.float32, True, False),
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


@pytest.mark.parametrize(("asked", "taken"), [(None, False), ("0", False), ("1", True)])
def test_kernels_that_no_card_has_run_are_off_unless_asked_for(asked, taken, monkeypatch):
    class Stand:
        is_cuda, shape, dtype, device = True, (1, 32, 100), torch.float32, torch.device("cuda")

    monkeypatch.delenv("EA_PSMNET_TRITON", raising=False)
    if asked:
        monkeypatch.setenv("EA_PSMNET_TRITON", asked)
    monkeypatch.setattr(dispatch, "_has_triton", lambda _: True)
    _, weights = block(1, 32, 16, 32, 1)
    passes = dispatch._passes_for(Stand(), weights, 1)
    assert passes is (kernels if taken else dispatch.efficient_passes)
