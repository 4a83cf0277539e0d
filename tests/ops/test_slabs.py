"""Slab by slab as the whole volume at once."""

import pytest
import torch
from torch.nn import functional as F

from ea_psmnet.ops import slabs
from ea_psmnet.ops.score_conv import score_conv_reference
from ea_psmnet.ops.slabs import convolve_in_place, residual_in_place, score_in_slabs
from ea_psmnet.ops.winograd import winograd_conv3d, winograd_products


def inputs(shape):
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]
    sizes = shape, *[(channels, channels, 3, 3, 3), (channels,)] * 2, (1, channels, 3, 3, 3)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


def activated(convolve):
    return lambda volume: F.relu(convolve(volume))


def direct(weight, bias):
    return lambda volume: F.conv3d(volume, weight, bias, padding=(0, 1, 1))


def halved(weight, bias):
    products = winograd_products(weight, bias)
    return lambda volume: winograd_conv3d(volume, products, padded=False)


@pytest.fixture(params=[1, 2**23], ids=["of four disparities", "of all"])
def slab(request, monkeypatch):
    monkeypatch.setattr(slabs, "_SLAB_BYTES", request.param)


SHAPES = [(2, 3, 9, 5, 6), (1, 2, 12, 4, 3), (1, 2, 1, 2, 2), (1, 3, 2, 1, 2), (1, 2, 5, 3, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("slab")
@pytest.mark.parametrize("convolve", [direct, halved])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_a_residual_block_adds_to_its_volume(shape, convolve, layout):
    volume, weight, bias, other, shift, _ = inputs(shape)
    hidden = F.conv3d(volume, weight, bias, padding=1).relu()
    expected = volume + F.conv3d(hidden, other, shift, padding=1)
    given = volume.contiguous(memory_format=layout)
    result = residual_in_place(given, activated(convolve(weight, bias)), convolve(other, shift))
    assert result is given
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("slab")
@pytest.mark.parametrize("convolve", [direct, halved])
def test_a_convolution_overwrites_its_volume(shape, convolve):
    volume, weight, bias, *_ = inputs(shape)
    expected = F.conv3d(volume, weight, bias, padding=1)
    result = convolve_in_place(volume, convolve(weight, bias))
    assert result is volume
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("slab")
@pytest.mark.parametrize("convolve", [direct, halved])
def test_a_score(shape, convolve):
    volume, weight, bias, _, _, taps = inputs(shape)
    expected = score_conv_reference(F.conv3d(volume, weight, bias, padding=1).relu(), taps)
    before = volume.clone()
    score = score_in_slabs(volume, activated(convolve(weight, bias)), taps)
    torch.testing.assert_close(score, expected, rtol=0, atol=1e-11)
    assert torch.equal(volume, before)


def test_a_score_is_summed_in_float32_and_slabs_are_channels_last():
    volume, weight, bias, _, _, taps = (t.bfloat16() for t in inputs((1, 16, 8, 4, 5)))
    seen = []

    def convolve(slab):
        seen.append(slab.stride(1))
        return direct(weight, bias)(slab)

    score = score_in_slabs(volume.contiguous(memory_format=torch.channels_last_3d), convolve, taps)
    assert score.dtype == torch.float32
    assert (score - score.bfloat16()).any()
    assert set(seen) == {1}
