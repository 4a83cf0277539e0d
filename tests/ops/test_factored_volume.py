import pytest
import torch

from ea_psmnet.ops.factored_volume import PairVolume, volume_conv, volume_conv_reference


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
