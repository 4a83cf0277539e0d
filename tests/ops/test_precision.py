from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from ea_psmnet.ops.precision import _walk, round_kernel


@pytest.mark.parametrize("taps", [(3, 3, 3), (3, 3), (1, 3), (1, 1)])
def test_a_kernels_sum_is_off_by_one_taps_rounding(taps):
    weight = torch.randn(20, 10, *taps, generator=torch.Generator().manual_seed(0))
    rounded = round_kernel(weight, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    assert rounded.shape == weight.shape
    off = (rounded.double() - weight.double()).flatten(2).sum(dim=2).abs()
    largest = weight.abs().flatten(2).amax(dim=2)
    assert (off <= 2**-7 * largest).all()
    # Each tap by itself is off by two roundings at most.
    assert ((rounded - weight).abs().flatten(2).amax(dim=2) <= 2**-6 * largest).all()


def test_smooth_input_sees_less_error_than_with_every_tap_rounded_alone():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 16, 3, 3, generator=generator)
    images = F.interpolate(torch.rand(1, 16, 8, 8, generator=generator), size=64, mode="bicubic")
    truth = F.conv2d(images, weight)
    plain, diffused = (
        (F.conv2d(images, kernel.float()) - truth).std()
        for kernel in (weight.bfloat16(), round_kernel(weight, torch.bfloat16))
    )
    assert diffused < 0.6 * plain


def test_nothing_is_lost_in_the_same_type():
    weight = torch.randn(4, 3, 3, 3)
    assert torch.equal(round_kernel(weight, torch.float32), weight)


def test_the_walk_goes_from_neighbour_to_neighbour():
    places = [torch.tensor((i // 9, i // 3 % 3, i % 3)) for i in _walk(torch.Size((3, 3, 3)))]
    assert len({tuple(p.tolist()) for p in places}) == 27
    assert all((a - b).abs().sum() == 1 for a, b in pairwise(places))
