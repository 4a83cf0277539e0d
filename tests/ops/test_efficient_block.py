"""The fast block against the published order: outputs and gradients, in every way it can run."""

import pytest
import torch

from ea_psmnet.ops import streaming
from ea_psmnet.ops.efficient_block import (
    BlockWeights,
    efficient_block,
    efficient_block_reference,
    folding_is_cheaper,
)

SHAPES = [  # heads, C, k, v
    (1, 8, 4, 8),
    (2, 8, 4, 6),
    (4, 8, 8, 8),
]
ORDERS = [  # heads, C, k, v: few and many key channels a head, whose softmax runs another way
    (2, 8, 4, 8),
    (1, 8, 16, 32),
    (2, 8, 32, 64),
]


def block(channels, keys, values, positions, gain=1.0):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
        return tensor.requires_grad_()

    weights = BlockWeights(
        *(random(keys, channels), random(keys), random(keys, channels), random(keys)),
        *(random(values, channels), random(values), random(channels, values), random(channels)),
    )
    x = (gain * random(2, channels, positions)).detach().requires_grad_()
    return x, weights


def gradients(function, x, weights, heads, normalisation):
    out = function(x, weights, heads, normalisation)
    generator = torch.Generator().manual_seed(1)
    arriving = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    return out, torch.autograd.grad(out, (x, *weights), arriving.to(out.dtype))


def assert_relatively_close(actual, expected, bound):
    scale = expected.abs().max().clamp(min=1e-6)
    assert ((actual - expected).abs().max() / scale).item() < bound


@pytest.mark.parametrize(("heads", "channels", "keys", "values"), SHAPES)
@pytest.mark.parametrize("normalisation", ["softmax", "scaling", "none"])
@pytest.mark.parametrize("chunk", [2**19, 1])  # all positions at once, or 256 at a time
def test_equals_the_published_order(
    heads, channels, keys, values, normalisation, chunk, monkeypatch
):
    monkeypatch.setattr(streaming, "_CHUNK_FLOATS", chunk)
    x, weights = block(channels, keys, values, positions=700)
    plain, expected = gradients(efficient_block_reference, x, weights, heads, normalisation)
    fast, actual = gradients(efficient_block, x, weights, heads, normalisation)
    assert_relatively_close(fast, plain, 1e-12)
    for name, a, e in zip(("x", *BlockWeights._fields), actual, expected, strict=True):
        if name == "key_bias" and normalisation == "softmax":
            assert a.abs().max() == 0  # exactly; the published order leaves rounding
            assert e.abs().max() < 1e-10
        else:
            assert_relatively_close(a, e, 1e-10)


@pytest.mark.parametrize(("heads", "channels", "keys", "values"), ORDERS)
@pytest.mark.parametrize("normalisation", ["softmax", "scaling", "none"])
@pytest.mark.parametrize("chunk", [2**19, 1])
def test_positions_in_channels_last_order(
    heads, channels, keys, values, normalisation, chunk, monkeypatch
):
    monkeypatch.setattr(streaming, "_CHUNK_FLOATS", chunk)
    assert folding_is_cheaper(channels, keys, values, heads)
    x, weights = block(channels, keys, values, positions=300)
    last = x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    assert last.stride() != x.stride()
    plain, expected = gradients(efficient_block_reference, x, weights, heads, normalisation)
    fast, actual = gradients(efficient_block, last, weights, heads, normalisation)
    assert fast.stride() == last.stride()
    assert_relatively_close(fast, plain, 1e-12)
    for name, a, e in zip(("x", *BlockWeights._fields), actual, expected, strict=True):
        if name != "key_bias" or normalisation != "softmax":
            assert_relatively_close(a, e, 1e-10)


@pytest.mark.parametrize("chunk", [2**19, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalisation", ["softmax", "scaling"])
def test_half_precision_gradients(dtype, normalisation, chunk, monkeypatch):
    monkeypatch.setattr(streaming, "_CHUNK_FLOATS", chunk)
    x, weights = block(8, 4, 8, positions=700)
    half = x.detach().to(dtype).requires_grad_()
    narrow = BlockWeights(*(w.detach().float().requires_grad_() for w in weights))
    result, actual = gradients(efficient_block, half, narrow, 1, normalisation)
    wide = half.detach().double().requires_grad_()
    true, expected = gradients(efficient_block_reference, wide, weights, 1, normalisation)
    assert (result.dtype, actual[0].dtype, actual[1].dtype) == (dtype, dtype, torch.float32)
    assert (result - true).norm() < 1e-2 * true.norm()
    for name, a, e in zip(("x", *BlockWeights._fields), actual, expected, strict=True):
        if name != "key_bias" or normalisation != "softmax":
            assert (a - e).norm() < 1e-2 * e.norm(), name


@pytest.mark.parametrize("normalisation", ["softmax", "scaling"])
def test_sums_of_gradients_may_pass_the_largest_half(normalisation):
    """A scaled loss: each position's gradient fits into float16, their sum does not."""
    x, weights = block(8, 4, 8, positions=700)
    half = x.detach().half().requires_grad_()
    narrow = BlockWeights(*(w.detach().float().requires_grad_() for w in weights))
    found = efficient_block(half, narrow, 1, normalisation).float().sum() * 1000
    wide = half.detach().double().requires_grad_()
    true = efficient_block_reference(wide, weights, 1, normalisation).sum() * 1000
    actual, expected = (
        torch.autograd.grad(loss, (w.value_bias, w.projection_bias))
        for loss, w in ((found, narrow), (true, weights))
    )
    assert expected[1].abs().min() > torch.finfo(torch.float16).max
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).norm() < 1e-2 * e.norm()


@pytest.mark.parametrize("normalisation", ["softmax", "scaling"])
def test_gradients_of_gradients_are_refused(normalisation):
    """At once: behind torch's own refusal, `torch.autograd.grad` can miss it and leave them out."""
    x, weights = block(8, 4, 8, positions=20)
    out = efficient_block(x, weights, 1, normalisation)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out.square().sum(), x, create_graph=True)


def test_an_unknown_normalisation_is_refused():
    x, weights = block(8, 4, 8, positions=20)
    with pytest.raises(ValueError, match="unknown normalisation 'magic'"):
        efficient_block(x, weights, 1, "magic")


@pytest.mark.parametrize("normalisation", ["softmax", "scaling", "none"])
def test_a_backward_inside_autocast_is_that_outside(normalisation):
    x, weights = block(8, 4, 8, positions=300)
    x = x.detach().float().requires_grad_()
    weights = BlockWeights(*(t.detach().float().requires_grad_() for t in weights))
    grads = []
    for inside in (False, True):
        out = efficient_block(x, weights, 2, normalisation)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            grads.append(torch.autograd.grad(out.square().sum(), (x, *weights)))
    for outside, within in zip(*grads, strict=True):
        torch.testing.assert_close(within, outside, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalisation", ["softmax", "scaling"])
def test_gradcheck(normalisation):
    x, weights = block(4, 2, 4, positions=6)
    assert torch.autograd.gradcheck(
        lambda x, *w: efficient_block(x, BlockWeights(*w), 1, normalisation), (x, *weights)
    )


def test_the_published_order_is_taken_where_it_is_cheaper():
    assert folding_is_cheaper(32, 16, 32, 1)
    assert folding_is_cheaper(32, 32, 32, 8)
    assert not folding_is_cheaper(8, 32, 8, 4)
    x, weights = block(8, 32, 8, positions=20)
    expected = efficient_block_reference(x, weights, 4)
    assert torch.equal(efficient_block(x, weights, 4), expected)


def test_saves_x_and_small_tensors_only():
    x, weights = block(8, 4, 8, positions=5000)
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        efficient_block(x, weights, 1)
    large = [t for t in saved if t.numel() >= 5000]
    assert len(large) == 1
    assert large[0].data_ptr() == x.data_ptr()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalisation", ["softmax", "scaling"])
def test_half_precision_at_a_million_and_a_half_positions(dtype, normalisation):
    """Logits of gain 3: half-precision sums over positions would lose most of their weights."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 8, 1_500_000, generator=generator)
    weights = BlockWeights(*(t.detach().float() for t in block(8, 4, 8, positions=1)[1]))
    weights = weights._replace(key=3 * weights.key / weights.key.norm(dim=1, keepdim=True))
    half = x.to(dtype).requires_grad_()
    wide = half.detach().double().requires_grad_()
    expected = efficient_block(wide, BlockWeights(*(w.double() for w in weights)), 1, normalisation)
    result = efficient_block(half, weights, 1, normalisation)
    assert torch.isfinite(result).all()
    # The residual is x itself: compare what attention added.
    branch, true = result.double() - half.double(), expected - wide
    assert (branch - true).norm() / expected.norm() < 1e-2
    result.square().mean().backward()
    assert torch.isfinite(half.grad).all()
