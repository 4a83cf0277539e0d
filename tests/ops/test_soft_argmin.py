import pytest
import torch

from ea_psmnet.ops.soft_argmin import soft_argmin, soft_argmin_reference


def score(gain=5.0, shape=(2, 6, 3, 5), dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return (gain * torch.randn(shape, generator=generator, dtype=dtype)).requires_grad_()


@pytest.mark.parametrize("gain", [0.0, 1.0, 30.0, 2000.0])
def test_fast_head_equals_reference_with_gradients(gain):
    c = score(gain)
    size = (24, 12, 20)
    plain, fast = soft_argmin_reference(c, size), soft_argmin(c, size)
    torch.testing.assert_close(plain, fast, rtol=0, atol=1e-11)
    weight = torch.randn_like(plain)
    (a,), (b,) = (torch.autograd.grad(out, c, weight) for out in (plain, fast))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_fast_head_passes_gradcheck():
    assert torch.autograd.gradcheck(
        lambda c: soft_argmin(c, (16, 8, 12)), (score(shape=(1, 4, 2, 3)),)
    )


def test_slabs_of_rows_join_without_a_seam():
    c = score(shape=(1, 48, 24, 40)).detach()  # larger than one slab
    size = (192, 96, 160)
    torch.testing.assert_close(
        soft_argmin(c, size), soft_argmin_reference(c, size), rtol=0, atol=1e-10
    )


def test_a_sharp_peak_gives_its_disparity():
    c = torch.full((1, 12, 2, 2), -100.0, dtype=torch.float64)
    c[:, 7] = 100.0
    # Score 7 covers disparities 28 to 31; upsampling ranks the middle two first, and equally.
    expected = torch.full((1, 8, 8), 29.5, dtype=torch.float64)
    torch.testing.assert_close(soft_argmin(c, (48, 8, 8)), expected, rtol=0, atol=1e-6)


def test_a_lonely_peak_of_any_height_is_found():
    c = torch.full((1, 12, 2, 2), -1e6, requires_grad=True)
    peak = c.clone()
    peak[:, 7] = 1e6
    out = soft_argmin(peak, (48, 8, 8))
    torch.testing.assert_close(out, torch.full((1, 8, 8), 29.5))
    out.sum().backward()
    assert torch.isfinite(c.grad).all()


@pytest.mark.parametrize("align_corners", [True, False])
def test_other_scales_and_alignments_fall_back(align_corners):
    c, size = score(), (18, 10, 15)
    assert torch.equal(
        soft_argmin(c, size, align_corners=align_corners),
        soft_argmin_reference(c, size, align_corners=align_corners),
    )


@pytest.mark.parametrize("form", [soft_argmin, soft_argmin_reference])
def test_autocast_does_not_reach_the_sums(form):
    c, size = score(shape=(1, 24, 3, 5), dtype=torch.float32).detach(), (96, 12, 20)
    expected = soft_argmin_reference(c.double(), size).float()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(form(c, size), expected, rtol=0, atol=1e-4)


def test_half_precision_scores_are_summed_in_float32():
    c = score(dtype=torch.float32).detach().bfloat16()
    out = soft_argmin(c, (24, 12, 20))
    assert out.dtype == torch.float32
    torch.testing.assert_close(
        out, soft_argmin_reference(c.double(), (24, 12, 20)).float(), atol=1e-4, rtol=0
    )


# The likeliest alone ------------------------------------------------------------------------------


def two_surfaces():
    """Scores of a pixel with a surface at 9.5 px, and a little less likely one at 37.5 px."""
    c = torch.full((1, 12, 2, 2), -40.0, dtype=torch.float64)
    c[:, 2], c[:, 9] = 20.0, 19.9
    return c


def test_with_a_reach_an_edge_is_one_surface_and_no_mean_of_two():
    both = soft_argmin(two_surfaces(), (48, 8, 8))
    one = soft_argmin(two_surfaces(), (48, 8, 8), reach=3)
    assert both.min() > 20
    torch.testing.assert_close(one, torch.full_like(one, 9.5), rtol=0, atol=1e-3)


@pytest.mark.parametrize("reach", [1, 3])
@pytest.mark.parametrize("shape", [(2, 6, 3, 5), (1, 48, 24, 40)])
def test_the_fast_head_with_a_reach_equals_the_reference(reach, shape):
    c = score(shape=shape).detach()
    size = tuple(4 * side for side in shape[1:])
    plain = soft_argmin_reference(c, size, reach=reach)
    torch.testing.assert_close(soft_argmin(c, size, reach=reach), plain, rtol=0, atol=1e-10)
    assert (plain - soft_argmin_reference(c, size)).abs().mean() > 0.1


def test_a_reach_over_all_levels_is_the_whole_expectation():
    c, size = score().detach(), (24, 12, 20)
    assert torch.equal(soft_argmin(c, size, reach=5), soft_argmin(c, size))


def test_what_lies_beyond_the_reach_gets_no_gradient():
    c = two_surfaces().requires_grad_()
    soft_argmin(c, (48, 8, 8), reach=3).sum().backward()
    assert c.grad[:, :6].abs().sum() > 0
    assert c.grad[:, 6:].abs().sum() == 0
