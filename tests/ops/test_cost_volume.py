import pytest
import torch

from ea_psmnet.ops.cost_volume import concat_volume, concat_volume_reference


def features(width=9):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 4, width)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(2)
    ]


@pytest.mark.parametrize("form", [concat_volume, concat_volume_reference])
def test_every_entry_is_as_defined(form):
    left, right = features()
    volume = form(left, right, 4)
    assert volume.shape == (2, 6, 4, 4, 9)
    for d in range(4):
        for x in range(9):
            expected = torch.cat([left[..., x], right[..., x - d]], dim=1)
            if x < d:
                expected = torch.zeros_like(expected)
            assert torch.equal(volume[:, :, d, :, x], expected)


@pytest.mark.parametrize("disparities", [1, 5, 12])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fast_form_equals_reference_with_gradients(disparities, layout):
    left, right = (f.detach().contiguous(memory_format=layout).requires_grad_() for f in features())
    plain = concat_volume_reference(left, right, disparities)
    fast = concat_volume(left, right, disparities)
    assert torch.equal(plain, fast)
    weight = torch.randn_like(plain)
    for a, b in zip(
        torch.autograd.grad(plain, (left, right), weight),
        torch.autograd.grad(fast, (left, right), weight),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_channels_last_features_give_a_channels_last_volume():
    left, right = (f.detach().contiguous(memory_format=torch.channels_last) for f in features())
    assert concat_volume(left, right, 3).is_contiguous(memory_format=torch.channels_last_3d)
