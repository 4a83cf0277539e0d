"""Batch normalisation in C equals torch's in outputs, gradients and running statistics."""

import pytest
import torch

from ea_psmnet.models.normalisation import BatchNorm2d, BatchNorm3d
from ea_psmnet.ops.native import batch_norm as module
from ea_psmnet.ops.native.batch_norm import batch_norm, batch_norm_reference

SHAPES = [(1, 8, 4, 6, 10), (2, 16, 3, 4, 5), (2, 24, 6, 8), (2, 96, 5, 7), (1, 1280, 2, 2)]


@pytest.fixture
def compiled():
    if module._library() is None:
        pytest.skip("no C compiler")


def given(shape, dtype, offset=0.0):
    generator = torch.Generator().manual_seed(len(shape))
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = (torch.randn(shape, generator=generator) + offset).to(dtype).to(memory_format=layout)
    weight, bias = torch.randn(2, shape[1], generator=generator)
    return [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]


def everything(function, tensors, weights):
    channels = tensors[0].shape[1]
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    statistics = [torch.full((channels,), value, dtype=dtype) for value in (0.5, 2.0)]
    out = function(*tensors, *statistics, 0.1, 1e-5)
    return [out, *torch.autograd.grad(out, tensors, weights.to(out)), *statistics]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 2**-16), (torch.bfloat16, 2**-7)])
def test_everything_is_as_in_float64(shape, offset, dtype, digits):
    tensors = given(shape, dtype, offset)
    assert module._lanes(tensors[0]) is not None
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours = everything(batch_norm, tensors, weights)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = everything(batch_norm_reference, exact, weights)
    assert [tensor.dtype for tensor in ours] == [dtype] * 2 + [torch.float32] * 4
    for mine, theirs in zip(ours, expected, strict=True):
        assert (mine - theirs).abs().max() <= digits * theirs.abs().max()
    for mine, theirs in zip(ours[2:], expected[2:], strict=True):  # always in float32
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("compiled")
def test_a_single_value_a_channel_is_refused_as_by_torch():
    x = torch.ones(1, 32, 1, 1, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm(x, torch.ones(32), torch.zeros(32), None, None, 0.1, 1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.double(),
        lambda x: x.contiguous(),
        lambda x: x[..., :3],
        lambda x: x[:, :7, :1, :1, :1].contiguous(memory_format=torch.channels_last_3d),
    ],
)
def test_what_it_does_not_know_is_left_to_torch(change):
    x, weight, bias = given((2, 8, 4, 6, 5), torch.bfloat16)
    x = change(x.detach())
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight, bias = weight[: x.shape[1]].to(dtype), bias[: x.shape[1]].to(dtype)
    expected = batch_norm_reference(x, weight, bias, None, None, 0.1, 1e-5)
    assert torch.equal(batch_norm(x, weight, bias, None, None, 0.1, 1e-5), expected)


def test_parameters_of_other_layouts_and_sizes_are_torchs():
    x, weight, bias = given((2, 8, 4, 6, 5), torch.float32)
    strided = torch.stack([weight.detach(), bias.detach()], 1)[:, 0]
    expected = batch_norm_reference(x, weight, bias, None, None, 0.1, 1e-5)
    found = batch_norm(x, strided, bias, None, None, 0.1, 1e-5)
    torch.testing.assert_close(found, expected)
    with pytest.raises(RuntimeError, match="weight"):
        batch_norm(x, weight[:4], bias, None, None, 0.1, 1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (BatchNorm2d, torch.nn.BatchNorm2d, (2, 16, 4, 8)),
        (BatchNorm3d, torch.nn.BatchNorm3d, (2, 8, 4, 4, 8)),
    ],
)
def test_the_modules_are_torchs(ours, theirs, shape):
    mine, reference = ours(shape[1]), theirs(shape[1])
    x = given(shape, torch.bfloat16)[0].detach()
    for _ in range(3):
        out, expected = mine(x), reference(x.float())
        assert (out.float() - expected).abs().max() < 2**-6
    assert set(mine.state_dict()) == set(reference.state_dict())
    for name, value in mine.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=1e-4, atol=1e-4)
    assert torch.equal(mine.eval()(x.float()), mine(x.float()))
    with pytest.raises(ValueError, match="expected"):
        mine.train()(x[0])
