import pytest
import torch

from ea_psmnet.ops.score_conv import score_conv, score_conv_reference


def inputs(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    sizes = shape, (1, shape[1], 3, 3, 3)
    return [torch.randn(size, generator=generator, dtype=dtype).requires_grad_() for size in sizes]


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (1, 2, 1, 1, 1), (1, 1, 2, 7, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_nine_taps_equal_one_kernel_with_gradients(shape, layout):
    volume, weight = inputs(shape)
    given = volume.contiguous(memory_format=layout)
    plain, fast = score_conv_reference(volume, weight), score_conv(given, weight)
    torch.testing.assert_close(plain, fast, rtol=0, atol=1e-12)
    incoming = torch.randn_like(plain)
    for a, b in zip(
        torch.autograd.grad(plain, (volume, weight), incoming),
        torch.autograd.grad(fast, (volume, weight), incoming),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_half_precision_taps_are_summed_in_float32():
    volume, weight = (t.detach() for t in inputs((1, 16, 4, 5, 6), torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        score = score_conv(volume, weight)
    assert score.dtype == torch.float32
    assert (score - score.bfloat16()).any()
    expected = score_conv_reference(volume.double(), weight.double()).float()
    torch.testing.assert_close(score, expected, rtol=0, atol=0.3)
