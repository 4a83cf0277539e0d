import torch
from torch.nn import functional as F

from ea_psmnet.ops.depthwise import depthwise_conv


def test_inside_autocast_gradients_are_those_of_float32_but_for_rounding():
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, 8, 11, 15, generator=generator).requires_grad_()
    weight = torch.randn(8, 1, 5, 5, generator=generator).requires_grad_()
    expected = F.conv2d(images, weight, None, 2, 2, groups=8)
    with torch.autocast("cpu", torch.bfloat16):
        result = depthwise_conv(images, weight, None, 2, 2)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, rtol=0.02, atol=0.1)
    seed = torch.randn(expected.shape, generator=generator)
    for ours, theirs in zip(
        torch.autograd.grad(result, (images, weight), seed.bfloat16()),
        torch.autograd.grad(expected, (images, weight), seed.bfloat16().float()),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.1)


def test_outside_autocast_it_is_the_convolution():
    images, weight, bias = torch.randn(1, 4, 6, 6), torch.randn(4, 1, 3, 3), torch.randn(4)
    expected = F.conv2d(images, weight, bias, 1, 1, groups=4)
    assert torch.equal(depthwise_conv(images, weight, bias, 1, 1), expected)
