"""Convolutions of 8 channels equal torch's, gradients included, compiled or not."""

import pytest
import torch

from ea_psmnet.models.layers import conv3d_bn
from ea_psmnet.ops.native import narrow_conv3d as module
from ea_psmnet.ops.native.narrow_conv3d import is_narrow, narrow_conv3d, narrow_conv3d_reference

SIZES = [(1, 3, 5, 7), (2, 5, 9, 33), (1, 4, 17, 48), (1, 3, 8, 100)]


@pytest.fixture(params=["compiled", "torch"])
def form(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(module, "_library", lambda: None)
    elif module._library() is None:
        pytest.skip("no C compiler, or a processor that does not multiply bfloat16")


def tensors(batch, depth, height, width, layout=torch.channels_last_3d):
    generator = torch.Generator().manual_seed(depth)
    volume = torch.randn(batch, 8, depth, height, width, generator=generator)
    weight = torch.randn(8, 8, 3, 3, 3, generator=generator) / 10
    bias = torch.randn(8, generator=generator)
    return volume.bfloat16().to(memory_format=layout), weight.bfloat16(), bias


def close(ours, expected, digits=2**-8):
    assert ours.shape == expected.shape
    assert (ours.float() - expected).abs().max() <= digits * expected.abs().max()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("layout", [torch.channels_last_3d, torch.contiguous_format])
def test_values_are_those_of_torch(size, padded, layout):
    volume, weight, bias = tensors(*size, layout)
    expected = narrow_conv3d_reference(volume.float(), weight.float(), bias, padded=padded)
    half_bias = bias if module._library() else bias.bfloat16()
    close(narrow_conv3d(volume, weight, half_bias, padded=padded), expected)


@pytest.mark.usefixtures("form", "half_convolutions")
@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_those_of_torch(size):
    volume, weight, _ = tensors(*size)
    weights = torch.randn(volume.shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    given = [volume.requires_grad_(), weight.requires_grad_()]
    gradients = torch.autograd.grad(narrow_conv3d(*given), given, weights)
    exact = [tensor.detach().float().requires_grad_() for tensor in given]
    expected = torch.autograd.grad(narrow_conv3d_reference(*exact), exact, weights.float())
    for ours, theirs in zip(gradients, expected, strict=True):
        close(ours, theirs)


def test_autocast_and_parts_of_a_volume_are_taken():
    volume, weight, _ = tensors(2, 6, 4, 20)
    part = volume[:, :, 1:5]
    with torch.autocast("cpu", torch.bfloat16):
        ours = narrow_conv3d(part.float(), weight.float())
    assert ours.dtype == torch.bfloat16
    close(ours, narrow_conv3d_reference(part.float(), weight.float()))


def test_other_widths_and_types_are_left_to_torch():
    volume, weight, bias = tensors(1, 3, 4, 5)
    assert not is_narrow(volume.float(), weight)
    assert not is_narrow(volume, weight[:4])
    exact = narrow_conv3d(volume.double(), weight.double(), bias.double())
    torch.testing.assert_close(
        exact, narrow_conv3d_reference(volume.double(), weight.double(), bias.double())
    )


def test_a_bias_learns():
    volume, weight, bias = tensors(1, 3, 4, 5)
    bias = bias.bfloat16().requires_grad_()
    narrow_conv3d(volume, weight, bias).sum().backward()
    assert bias.grad.unique().tolist() == [60]


def test_the_network_uses_it():
    if module._library() is None:
        pytest.skip("no C compiler, or a processor that does not multiply bfloat16")
    layer = conv3d_bn(8, 8).train()
    with torch.autocast("cpu", torch.bfloat16):
        made = layer(torch.randn(1, 8, 4, 8, 8))
    names = set()
    pending = [made.grad_fn]
    while pending:
        node = pending.pop()
        names.add(type(node).__name__)
        pending += [following for following, _ in node.next_functions if following is not None]
    assert {"_NarrowConv3dBackward", "_BatchNormBackward"} <= names


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gradients_of_shallow_volumes_are_of_their_own_memory(depth):
    """Freed memory holds NaN, which oneDNN's gradient for 16 channels would meet."""
    torch.manual_seed(0)
    volume, weight = torch.randn(1, 16, depth, 4, 8), torch.randn(16, 16, 3, 3, 3) / 10
    expected = []
    for dtype in (torch.float32, torch.bfloat16):
        given, kernel = (t.to(dtype).requires_grad_() for t in (volume, weight))
        for _ in range(3):
            spoilt = [torch.full((2**n,), torch.nan) for n in range(6, 22) for _ in range(4)]
            del spoilt
            made = narrow_conv3d(given, kernel)
            found = torch.autograd.grad(made.float().square().sum(), (given, kernel))
            expected = expected or found
            for mine, right in zip(found, expected, strict=True):
                assert (mine - right).abs().mean() < 0.02 * right.abs().mean()
