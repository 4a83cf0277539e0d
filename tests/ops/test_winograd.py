import pytest
import torch
from torch.nn import functional as F

from ea_psmnet.ops import winograd
from ea_psmnet.ops.winograd import winograd_conv2d, winograd_conv3d, winograd_products


def inputs(shape, outputs=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    taps = (3,) * (len(shape) - 2)
    sizes = shape, (outputs, shape[1], *taps), (outputs,)
    return [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]


@pytest.mark.parametrize("slab", [1, 3000, 2**23])
@pytest.mark.parametrize(
    "shape", [(2, 3, 8, 5, 6), (1, 2, 13, 7, 3), (1, 4, 1, 1, 1), (1, 3, 6, 1, 2)]
)
def test_volumes_get_the_same_convolution(shape, slab, monkeypatch):
    monkeypatch.setattr(winograd, "_SLAB_BYTES", slab)
    volume, weight, bias = inputs(shape)
    given = volume.contiguous(memory_format=torch.channels_last_3d)
    fast = winograd_conv3d(given, winograd_products(weight, bias))
    plain = F.conv3d(volume, weight, bias, padding=1)
    assert fast.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("slab", [1, 3000, 2**23])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (1, 2, 21, 7), (1, 4, 1, 1), (1, 3, 2, 5)])
def test_images_get_the_same_convolution(shape, dilation, slab, monkeypatch):
    monkeypatch.setattr(winograd, "_SLAB_BYTES", slab)
    images, weight, bias = inputs(shape)
    given = images.contiguous(memory_format=torch.channels_last)
    fast = winograd_conv2d(given, winograd_products(weight, bias), dilation=dilation)
    plain = F.conv2d(images, weight, bias, padding=dilation, dilation=dilation)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)


def test_a_volume_in_any_layout_stays_as_it_is():
    volume, weight, bias = inputs((1, 3, 5, 4, 6))
    before = volume.clone()
    fast = winograd_conv3d(volume, winograd_products(weight, bias))
    torch.testing.assert_close(fast, F.conv3d(volume, weight, bias, padding=1), rtol=0, atol=1e-12)
    assert torch.equal(volume, before)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 4), (torch.bfloat16, 7)])
def test_rounding_errors_are_few_times_those_of_the_plain_convolution(dtype, most):
    exact = [t.to(dtype).double() for t in inputs((1, 32, 16, 9, 11), outputs=32)]
    volume, weight, bias = (t.to(dtype) for t in exact)
    truth = F.conv3d(*exact, padding=1)
    fast = winograd_conv3d(volume, winograd_products(weight, bias))
    plain = F.conv3d(volume, weight, bias, padding=1)
    assert fast.dtype == dtype
    assert (fast - truth).std() < most * (plain - truth).std()


def test_half_precision_kernels_are_rounded_once():
    _, weight, bias = inputs((1, 4, 5, 5, 5))
    narrow = weight.bfloat16()
    expected = winograd_products(narrow.double(), bias).kernels
    rounded = winograd_products(narrow, bias.bfloat16()).kernels
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.double(), expected, rtol=2**-8, atol=1e-6)
    assert torch.equal(rounded, winograd_products(narrow.float(), bias.float()).kernels.bfloat16())
