"""Cost volumes against their definitions, and the fast forms against the references."""

import pytest
import torch
from torch.nn import functional as F

from ea_psmnet.ops.cost_volume import (
    PairVolume,
    concat_volume_reference,
    group_correlation,
    group_correlation_reference,
    volume_conv,
    volume_conv_reference,
)
from ea_psmnet.ops.native import group_correlation as module


def test_every_entry_is_as_defined():
    left, right = torch.randn(2, 2, 3, 4, 9, dtype=torch.float64)
    volume = concat_volume_reference(left, right, 4)
    assert volume.shape == (2, 6, 4, 4, 9)
    for d in range(4):
        for x in range(9):
            expected = torch.cat([left[..., x], right[..., x - d]], dim=1)
            if x < d:
                expected = torch.zeros_like(expected)
            assert torch.equal(volume[:, :, d, :, x], expected)


def test_gradients_of_gradients_are_refused():
    left, right = torch.randn(2, 1, 8, 4, 9).requires_grad_()
    volume = group_correlation(left, right, 4, 2)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(volume.square().sum(), left, create_graph=True)


def test_disparities_wider_than_the_image_are_zero():
    volume = concat_volume_reference(*torch.randn(2, 1, 3, 4, 5), 8)
    assert not volume[:, :, 5:].any()


def inputs(width, height=4, channels=3, outputs=2, batch=2):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, channels, height, width)] * 2 + [(outputs, 2 * channels, 3, 3, 3)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


@pytest.mark.parametrize("disparities", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 9, 12])
def test_factored_form_equals_reference_with_gradients(disparities, width):
    tensors = inputs(width)
    left, right, weights = tensors
    volume = PairVolume(left, right, disparities)
    plain, fast = (form(volume, weights) for form in (volume_conv_reference, volume_conv))
    torch.testing.assert_close(plain, fast, rtol=0, atol=1e-12)
    weight = torch.randn_like(plain)
    for a, b in zip(
        torch.autograd.grad(plain, tensors, weight),
        torch.autograd.grad(fast, tensors, weight),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("half_convolutions")
def test_half_precision_gradients_are_summed_in_float32():
    left, right, weight = (t.detach() for t in inputs(80, outputs=1, batch=1))
    exact = [t.requires_grad_() for t in (left, right)]
    half = [t.detach().bfloat16().requires_grad_() for t in exact]
    incoming = 1 + torch.rand(1, 1, 64, 4, 80, dtype=torch.float64)
    gradients = [
        torch.autograd.grad(
            volume_conv(PairVolume(*pair, 64), weight.to(pair[0].dtype)),
            pair,
            incoming.to(pair[0].dtype),
        )
        for pair in (exact, half)
    ]
    # 64 terms in bfloat16 would lose whole per cents of the largest gradients.
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() < 0.01 * a.abs().max()


def test_the_result_is_channels_last():
    left, right, weight = inputs(9)
    assert volume_conv(PairVolume(left, right, 4), weight).is_contiguous(
        memory_format=torch.channels_last_3d
    )


def features(channels=12, width=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    made = torch.randn(2, 2, channels, 3, width, generator=generator, dtype=dtype)
    return [view.clone().requires_grad_() for view in made]


@pytest.fixture(params=["compiled", "torch"])
def form(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(module, "_library", lambda: None)
    elif module._library() is None:
        pytest.skip("no C compiler")


def test_every_entry_is_a_cosine_or_zero():
    left, right = features()
    volume = group_correlation_reference(left, right, 5, 3)
    assert volume.shape == (2, 3, 5, 3, 9)
    for group, k, x in [(0, 0, 0), (1, 2, 2), (2, 4, 8), (0, 1, 5)]:
        part = slice(4 * group, 4 * group + 4)
        expected = F.cosine_similarity(left[:, part, :, x], right[:, part, :, x - k], dim=1)
        torch.testing.assert_close(volume[:, group, k, :, x], expected)
    assert not volume[:, :, 4, :, :4].any()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("groups", [3, 4])  # any number, and one with vectors of its own
@pytest.mark.parametrize(("levels", "width"), [(5, 9), (12, 9), (1, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_are_the_plain_forms(groups, levels, width, dtype):
    given = features(width=width, dtype=dtype)
    expected = group_correlation_reference(*given, levels, groups)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    volume = group_correlation(*given, levels, groups)
    close = {} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(volume, expected, **close)
    for ours, theirs in zip(
        torch.autograd.grad(volume, given, weights),
        torch.autograd.grad(expected, given, weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **close)


@pytest.mark.usefixtures("form")
def test_half_precision_rounds_the_volume_alone():
    given = features(channels=64, width=20, dtype=torch.float32)
    volume = group_correlation(*given, 6, 8, dtype=torch.bfloat16)
    assert volume.dtype == torch.bfloat16
    exact = group_correlation_reference(*given, 6, 8)
    assert torch.equal(volume, exact.bfloat16()) or (volume - exact).abs().max() < 2**-8
    gradients = torch.autograd.grad(volume, given, torch.ones_like(volume))
    for ours, theirs in zip(
        gradients, torch.autograd.grad(exact, given, torch.ones_like(exact)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_contrast_and_missing_texture_do_no_harm():
    left, right = features()
    volume = group_correlation(left, right, 4, 3)
    torch.testing.assert_close(group_correlation(7 * left, right / 9, 4, 3), volume)
    blank = torch.zeros_like(left, requires_grad=True)
    group_correlation(blank, right, 4, 3).sum().backward()
    assert blank.grad.isfinite().all()


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="12 feature channels do not split into 5 groups"):
        group_correlation(*features(), 4, 5)
