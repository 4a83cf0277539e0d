"""Convolutions in faster forms against the plain ones."""

import pytest
import torch
from torch.nn import functional as F

from ea_psmnet.ops import convolutions
from ea_psmnet.ops.convolutions import (
    convolve_in_place,
    depthwise_conv,
    residual_in_place,
    score_conv,
    score_conv_reference,
    score_in_slabs,
)


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


def volume_and_weights(shape):
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]
    sizes = shape, *[(channels, channels, 3, 3, 3), (channels,)] * 2, (1, channels, 3, 3, 3)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


def activated(convolve):
    return lambda volume: F.relu(convolve(volume))


def direct(weight, bias):
    return lambda volume: F.conv3d(volume, weight, bias, padding=(0, 1, 1))


@pytest.fixture(params=[1, 2**23], ids=["of four disparities", "of all"])
def slab(request, monkeypatch):
    monkeypatch.setattr(convolutions, "_SLAB_BYTES", request.param)


SHAPES = [(2, 3, 9, 5, 6), (1, 2, 12, 4, 3), (1, 2, 1, 2, 2), (1, 3, 2, 1, 2), (1, 2, 5, 3, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("slab")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_a_residual_block_adds_to_its_volume(shape, layout):
    volume, weight, bias, other, shift, _ = volume_and_weights(shape)
    hidden = F.conv3d(volume, weight, bias, padding=1).relu()
    expected = volume + F.conv3d(hidden, other, shift, padding=1)
    given = volume.contiguous(memory_format=layout)
    result = residual_in_place(given, activated(direct(weight, bias)), direct(other, shift))
    assert result is given
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("slab")
def test_a_convolution_overwrites_its_volume(shape):
    volume, weight, bias, *_ = volume_and_weights(shape)
    expected = F.conv3d(volume, weight, bias, padding=1)
    result = convolve_in_place(volume, direct(weight, bias))
    assert result is volume
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("slab")
def test_a_score(shape):
    volume, weight, bias, _, _, taps = volume_and_weights(shape)
    expected = score_conv_reference(F.conv3d(volume, weight, bias, padding=1).relu(), taps)
    before = volume.clone()
    score = score_in_slabs(volume, activated(direct(weight, bias)), taps)
    torch.testing.assert_close(score, expected, rtol=0, atol=1e-11)
    assert torch.equal(volume, before)


def test_a_score_is_summed_in_float32_and_slabs_are_channels_last():
    volume, weight, bias, _, _, taps = (t.bfloat16() for t in volume_and_weights((1, 16, 8, 4, 5)))
    seen = []

    def convolve(slab):
        seen.append(slab.stride(1))
        return direct(weight, bias)(slab)

    score = score_in_slabs(volume.contiguous(memory_format=torch.channels_last_3d), convolve, taps)
    assert score.dtype == torch.float32
    assert (score - score.bfloat16()).any()
    assert set(seen) == {1}
