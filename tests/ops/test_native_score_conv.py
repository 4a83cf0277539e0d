"""Convolutions to one channel in C equal torch's, for every part of a volume."""

from itertools import pairwise

import pytest
import torch

from ea_psmnet.ops import convolutions
from ea_psmnet.ops.convolutions import score_conv, score_conv_reference
from ea_psmnet.ops.native import score_conv as module
from ea_psmnet.ops.native.score_conv import add_score, is_compiled_for

SHAPES = [(5, 4, 24), (1, 1, 1), (2, 7, 8), (3, 1, 9), (4, 2, 31)]


@pytest.fixture
def compiled():
    if module._library() is None:
        pytest.skip("no C compiler")


def given(channels, shape, dtype=torch.float32, batch=1):
    generator = torch.Generator().manual_seed(channels)
    volume = torch.randn(batch, channels, *shape, generator=generator).to(dtype)
    weight = torch.randn(1, channels, 3, 3, 3, generator=generator).to(dtype)
    return volume.contiguous(memory_format=torch.channels_last_3d), weight


def exact(volume, weight):
    return score_conv_reference(volume.double(), weight.double())


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [8, 16, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_score_is_summed_in_float32(channels, shape, dtype):
    volume, weight = given(channels, shape, dtype, batch=2)
    assert is_compiled_for(volume, weight)
    score = score_conv(volume, weight)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score.double(), exact(volume, weight), rtol=0, atol=1e-4)
    assert torch.equal(score_conv(volume.contiguous(), weight), score)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("bounds", [(0, 2, 7), (0, 1, 2, 3, 7), (0, 7)])
def test_parts_of_a_volume_add_up(bounds):
    volume, weight = given(8, (7, 3, 10))
    total = torch.zeros(7, 3, 10)
    for start, stop in pairwise(bounds):
        add_score(total, volume[0, :, start:stop], weight, start)
    torch.testing.assert_close(total.double(), exact(volume, weight)[0, 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", [4, 24, 64])
def test_other_channels_are_left_to_torch(channels):
    volume, weight = given(channels, (3, 4, 5))
    assert not is_compiled_for(volume, weight)
    score = score_conv(volume, weight)
    torch.testing.assert_close(score.double(), exact(volume, weight), rtol=0, atol=1e-4)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [8, 16, 32])
def test_gradients_are_torchs(monkeypatch, channels, shape, compiled):
    volume, weight = given(channels, shape, batch=2)
    if not compiled:
        monkeypatch.setattr(convolutions, "is_compiled_for", lambda *_: False)
    elif not is_compiled_for(volume, weight):
        pytest.skip("no C compiler")
    tensors = [tensor.requires_grad_() for tensor in (volume, weight)]
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    ours, theirs = score_conv(*tensors), score_conv_reference(*doubles)
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-4)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(ours, tensors, weights)
    expected = torch.autograd.grad(theirs, doubles, weights.double())
    for mine, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-5, atol=1e-4)


def test_meta_tensors_empty_batches_and_wrong_weights_are_torchs():
    volume, weight = given(8, (3, 4, 5))
    assert score_conv(volume.to("meta"), weight.to("meta")).shape == (1, 1, 3, 4, 5)
    empty = volume[:0].requires_grad_()
    score_conv(empty, weight.requires_grad_()).sum().backward()
    assert empty.grad.shape == empty.shape
    with pytest.raises(RuntimeError, match="channels"):
        score_conv(volume, given(16, (3, 4, 5))[1])
