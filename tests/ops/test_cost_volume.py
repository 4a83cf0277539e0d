import torch

from ea_psmnet.ops.cost_volume import concat_volume_reference


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


def test_disparities_wider_than_the_image_are_zero():
    volume = concat_volume_reference(*torch.randn(2, 1, 3, 4, 5), 8)
    assert not volume[:, :, 5:].any()
