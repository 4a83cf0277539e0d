"""Convolutions equal torch's in training, compiled or not."""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.layers import SameSizeConv2d, conv2d_bn, conv3d_bn
from ea_psmnet.models.psmnet import PSMNet
from ea_psmnet.ops import trained_conv as module
from ea_psmnet.ops.convolutions import score_conv
from ea_psmnet.ops.trained_conv import (
    learns_faster,
    trained_conv,
    trained_conv_reference,
    trained_conv_transpose3d,
    trained_conv_transpose3d_reference,
)

CASES = [
    ((2, 16, 5, 7), 32, {}),
    ((1, 32, 9, 33), 16, {"dilation": 2}),
    ((3, 16, 3, 2), 16, {"dilation": 4}),
    ((1, 16, 1, 1), 16, {}),
    ((2, 16, 3, 5, 7), 16, {}),
    ((1, 32, 1, 4, 18), 16, {}),
    ((1, 16, 2, 1, 1), 32, {}),
    ((2, 16, 6, 8, 10), 32, {"stride": 2}),
    ((1, 8, 5, 3, 7), 16, {"stride": 2}),
    ((1, 32, 1, 2, 1), 16, {"stride": 2}),
    ((2, 16, 9, 12), 16, {"stride": 2, "dilation": 2}),
]
"""Sizes, outputs and settings; 16 channels fill the registers of every processor."""


@pytest.fixture
def compiled():
    if not learns_faster(*tensors((1, 16, 2, 2), 16)):
        pytest.skip("no C compiler")


def tensors(size, outputs, dtype=torch.float32):
    generator = torch.Generator().manual_seed(outputs)
    layout = torch.channels_last if len(size) == 4 else torch.channels_last_3d
    taps = [3] * (len(size) - 2)
    x = torch.randn(size, generator=generator, dtype=dtype).to(memory_format=layout)
    weight = torch.randn(outputs, size[1], *taps, generator=generator, dtype=dtype) / 10
    return [x.requires_grad_(), weight.requires_grad_()]


def everything(function, given, weights):
    out = function(*given)
    return out, *torch.autograd.grad(out, given, weights)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def check(function, reference, given):
    """Compare outputs and gradients with those of the reference in float64."""
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    weights = torch.randn(reference(*exact).shape, generator=torch.Generator().manual_seed(1))
    expected = everything(reference, exact, weights.double())
    ours = everything(function, given, weights)
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.shape == theirs.shape
        assert (mine - theirs).abs().max() <= 2**-17 * theirs.abs().max()


@pytest.mark.usefixtures("compiled", "threads")
@pytest.mark.parametrize(("size", "outputs", "settings"), CASES)
@pytest.mark.parametrize("adjacent", [True, False])
def test_everything_is_as_in_float64(size, outputs, settings, adjacent):
    given = tensors(size, outputs)
    if not adjacent:
        given[0] = given[0].detach().contiguous().requires_grad_()
    assert learns_faster(*given, stride=settings.get("stride", 1))
    check(partial(trained_conv, **settings), partial(trained_conv_reference, **settings), given)


@pytest.mark.usefixtures("compiled", "threads")
@pytest.mark.parametrize("size", [(2, 16, 3, 4, 5), (1, 32, 1, 1, 2)])
@pytest.mark.parametrize("outputs", [8, 16])
def test_transposed_convolutions_are_as_in_float64(size, outputs):
    x, weight = tensors(size, outputs)
    weight = weight.detach().transpose(0, 1).requires_grad_()
    assert learns_faster(x, weight, stride=2, transposed=True)
    check(trained_conv_transpose3d, trained_conv_transpose3d_reference, [x, weight])


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("learning", [0, 1])
def test_only_what_learns_has_a_gradient(learning):
    given = tensors((1, 16, 4, 5), 16)
    given[1 - learning].requires_grad_(False)
    trained_conv(*given).sum().backward()
    assert given[1 - learning].grad is None
    expected = torch.autograd.grad(trained_conv_reference(*given).sum(), given[learning])[0]
    torch.testing.assert_close(given[learning].grad, expected, rtol=1e-4, atol=1e-4)


def test_parts_of_a_volume_are_taken():
    x, weight = tensors((2, 16, 6, 5, 9), 16)
    part = x.detach()[:, :, 1:5, 1:].requires_grad_()
    ours = everything(trained_conv, [part, weight], torch.ones(2, 16, 4, 4, 9))
    expected = everything(trained_conv_reference, [part, weight], torch.ones(2, 16, 4, 4, 9))
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_what_it_does_not_know_is_left_to_torch():
    assert not learns_faster(*(tensor.detach() for tensor in tensors((1, 16, 4, 4), 16)))
    assert not learns_faster(*tensors((1, 16, 4, 4), 16, torch.float64))
    assert not learns_faster(*tensors((1, 16, 4, 4), 9))
    assert not learns_faster(*tensors((1, 3, 4, 4), 16))
    assert not learns_faster(*(tensor.to("meta") for tensor in tensors((1, 16, 4, 4), 16)))
    with FakeTensorMode():
        assert not learns_faster(*(torch.empty(size) for size in ((1, 16, 4, 4), (16, 16, 3, 3))))
    assert not learns_faster(
        tensors((1, 16, 4, 4), 16)[0], torch.empty(16, 16, 3, 3, device="meta")
    )
    assert not learns_faster(*tensors((1, 16, 2, 4, 4), 16), dilation=2)
    assert not learns_faster(tensors((16, 4, 4, 4), 16)[0][:, 0], tensors((1, 16, 4, 4), 16)[1])
    with pytest.raises(RuntimeError, match="channels"):
        trained_conv(tensors((1, 32, 4, 4), 16)[0], tensors((1, 16, 4, 4), 16)[1])
    with pytest.raises(RuntimeError, match="channels"):
        trained_conv_transpose3d(*tensors((1, 32, 2, 2, 2), 16))
    with torch.autocast("cpu", torch.bfloat16):
        assert not learns_faster(*tensors((1, 16, 4, 4), 16))
    with torch.no_grad():
        assert not learns_faster(*tensors((1, 16, 4, 4), 16))


@pytest.mark.usefixtures("compiled")
def test_outputs_may_be_changed_in_place():
    for x, weight in (tensors((1, 16, 4, 5), 16), tensors((1, 16, 2, 4, 5), 16)):
        trained_conv(x, weight).relu_().sum().backward()
    volume, weight = tensors((1, 8, 2, 4, 5), 1)
    score_conv(volume, weight).add_(1).sum().backward()


@pytest.mark.usefixtures("compiled", "threads")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_defaults_of_torch_change_nothing(dtype):
    x, weight = tensors((2, 64, 6, 7), 64)
    expected = everything(trained_conv, [x, weight], torch.ones(2, 64, 6, 7))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = everything(trained_conv, [x, weight], torch.ones(2, 64, 6, 7, dtype=torch.float32))
    finally:
        torch.set_default_dtype(before)
    assert all(map(torch.equal, found, expected))


@pytest.mark.usefixtures("compiled", "threads")
def test_the_same_bits_every_time():
    x, weight = tensors((2, 32, 4, 20, 21), 32)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    first, *others = (everything(trained_conv, [x, weight], weights) for _ in range(4))
    for other in others:
        assert all(map(torch.equal, first, other))


@pytest.mark.usefixtures("compiled")
def test_networks_train_by_it(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "_winograd", spy(module._winograd, seen))
    config = PSMNetConfig(width=0.5, max_disparity=16)
    network = PSMNet(config).train()
    network(*torch.rand(2, 1, 3, 32, 64)).disparity.sum()
    dimensions = {weight.dim() for _, weight, _ in seen}
    assert dimensions == {4, 5}
    assert {dilation for _, _, dilation in seen} == {1, 2}
    assert isinstance(conv2d_bn(16, 16)[0], SameSizeConv2d)
    seen.clear()
    network.eval().requires_grad_(False)
    network(*torch.rand(2, 1, 3, 32, 64))
    conv3d_bn(16, 16).requires_grad_(False)(torch.rand(1, 16, 2, 4, 4))
    assert not seen


def spy(function, seen):
    def watched(*args):
        seen.append(args)
        return function(*args)

    return watched
