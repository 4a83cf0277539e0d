import pytest
import torch
from torch.nn import functional as F

from ea_psmnet.ops.native import winograd
from ea_psmnet.ops.native.winograd import (
    compiled_conv2d,
    compiled_conv3d,
    compiled_kernels,
    is_compiled_for,
    multiplies_narrow,
)

pytestmark = pytest.mark.skipif(not is_compiled_for(16, 16), reason="no C compiler")


def inputs(shape, outputs):
    generator = torch.Generator().manual_seed(0)
    taps = (3,) * (len(shape) - 2)
    sizes = shape, (outputs, shape[1], *taps), (outputs,)
    given, weight, bias = (torch.randn(size, generator=generator) for size in sizes)
    return given, weight / weight[0].numel() ** 0.5, bias


def in_float64(convolve, tensors, **options):
    return convolve(*(tensor.double() for tensor in tensors), **options)


@pytest.mark.parametrize(
    ("shape", "outputs"),
    [
        ((1, 16, 8, 8, 12), 16),
        ((2, 32, 5, 7, 9), 48),  # two images, odd sizes, a third register of outputs
        ((1, 16, 1, 1, 1), 32),
        ((1, 48, 2, 3, 70), 16),  # more tiles than go together
    ],
)
def test_volumes_get_the_same_convolution(shape, outputs):
    volume, weight, bias = inputs(shape, outputs)
    given = volume.contiguous(memory_format=torch.channels_last_3d)
    fast = compiled_conv3d(given, compiled_kernels(weight), bias)
    plain = in_float64(F.conv3d, (volume, weight, bias), padding=1)
    assert fast.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(fast.double(), plain, rtol=0, atol=3e-5)


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize(
    ("shape", "outputs"),
    [((2, 16, 8, 12), 16), ((1, 32, 21, 7), 48), ((1, 16, 1, 2), 16), ((3, 16, 5, 61), 32)],
)
def test_images_get_the_same_convolution(shape, outputs, dilation):
    images, weight, bias = inputs(shape, outputs)
    given = images.contiguous(memory_format=torch.channels_last)
    fast = compiled_conv2d(given, compiled_kernels(weight), bias, dilation=dilation)
    options = {"padding": dilation, "dilation": dilation}
    plain = in_float64(F.conv2d, (images, weight, bias), **options)
    assert fast.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast.double(), plain, rtol=0, atol=3e-5)


def test_a_volume_with_its_own_border_is_not_padded_along_disparities():
    volume, weight, bias = inputs((1, 16, 7, 6, 9), 16)
    fast = compiled_conv3d(volume, compiled_kernels(weight), bias, padded=False)
    plain = F.conv3d(volume, weight, bias, padding=(0, 1, 1))
    torch.testing.assert_close(fast, plain, rtol=0, atol=3e-5)


def test_parts_of_a_larger_volume_in_any_layout_are_read_where_they_lie():
    volume, weight, bias = inputs((1, 32, 6, 9, 10), 16)
    before = volume.clone()
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        part = volume.contiguous(memory_format=layout)[:, 16:, 1:5, 2:, :7]
        fast = compiled_conv3d(part, compiled_kernels(weight[:, :16]), bias)
        plain = F.conv3d(part, weight[:, :16], bias, padding=1)
        torch.testing.assert_close(fast, plain, rtol=0, atol=3e-5)
    assert torch.equal(volume, before)


@pytest.mark.parametrize("narrow", [False, True])
def test_bfloat16_is_rounded_where_it_is_told(narrow):
    tensors = inputs((1, 32, 8, 12, 20), 32)
    volume, weight, bias = tensors[0].bfloat16(), *tensors[1:]
    fast = compiled_conv3d(volume, compiled_kernels(weight, narrow=narrow), bias)
    truth = in_float64(F.conv3d, (volume, weight, bias), padding=1)
    error = (fast.double() - truth).std() / truth.std()
    assert fast.dtype == torch.bfloat16
    # A bfloat16's own rounding is 0.0017 of a normal distribution's spread.
    assert error < (0.03 if narrow else 0.002)
    assert error > (0.004 if narrow and multiplies_narrow() else 0.001)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_adds_to_a_total_in_place_and_keeps_what_is_positive(dtype):
    images, weight, bias = inputs((2, 16, 7, 10), 16)
    images, kernels = images.to(dtype), compiled_kernels(weight)
    total = torch.randn(2, 16, 7, 10).to(dtype).contiguous(memory_format=torch.channels_last)
    alone = compiled_conv2d(images, kernels, bias)
    expected = (total.float() + compiled_conv2d(images.float(), kernels, bias)).to(dtype)
    assert torch.equal(compiled_conv2d(images, kernels, bias, positive=True), alone.relu())
    made = compiled_conv2d(images, kernels, bias, total=total)
    assert made.data_ptr() == total.data_ptr()
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-6 if dtype.itemsize == 4 else 0.04)


def test_a_volumes_positive_part():
    volume, weight, bias = inputs((1, 16, 3, 5, 6), 16)
    kernels = compiled_kernels(weight)
    alone = compiled_conv3d(volume, kernels, bias)
    assert torch.equal(compiled_conv3d(volume, kernels, bias, positive=True), alone.relu())


def test_large_outputs_are_written_past_the_caches_alike(monkeypatch):
    images, weight, bias = inputs((1, 16, 9, 13), 16)
    kernels = compiled_kernels(weight)
    usual = compiled_conv2d(images, kernels, bias)
    monkeypatch.setattr(winograd, "_STREAMED_BYTES", 0)
    assert torch.equal(compiled_conv2d(images, kernels, bias), usual)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same(threads):
    volume, weight, bias = inputs((2, 16, 4, 9, 30), 16)
    kernels = compiled_kernels(weight)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = compiled_conv3d(volume, kernels, bias)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(compiled_conv3d(volume, kernels, bias), alone)
    finally:
        torch.set_num_threads(before)


def test_what_is_not_a_number_reaches_the_output():
    images, weight, bias = inputs((1, 16, 8, 8), 16)
    images[0, 3, 0, 0] = float("nan")
    made = compiled_conv2d(images, compiled_kernels(weight), bias)
    assert made[0, :, 0, 0].isnan().all()
    assert not made[0, :, 5:, 5:].isnan().any()


def test_channels_that_fill_no_registers_are_not_for_it():
    assert not is_compiled_for(16, 9)
    assert not is_compiled_for(3, 16)


def test_other_types_are_none_of_its():
    volume, weight, bias = inputs((1, 16, 4, 4, 4), 16)
    with pytest.raises(AssertionError):
        compiled_conv3d(volume.half(), compiled_kernels(weight), bias)
