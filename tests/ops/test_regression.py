import pytest
import torch

from ea_psmnet.ops import regression
from ea_psmnet.ops.native.regression import compiled_expectation, is_compiled_for
from ea_psmnet.ops.regression import (
    around_peak,
    convex_upsampling,
    convex_upsampling_reference,
    near_peak,
    soft_argmin,
    soft_argmin_reference,
)


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


def test_gradients_of_gradients_are_refused():
    score = torch.randn(1, 4, 3, 5, requires_grad=True)
    disparity = soft_argmin(score, (16, 12, 20))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(disparity.square().sum(), score, create_graph=True)


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


needs_compiler = pytest.mark.skipif(not is_compiled_for(torch.empty(1)), reason="no C compiler")


@pytest.fixture(params=["compiled", "torch"])
def form(request, monkeypatch):
    """Both forms of the float32 head: the second is what runs without a compiler."""
    if request.param == "torch":
        monkeypatch.setattr(regression, "is_compiled_for", lambda scores: False)
    elif not is_compiled_for(torch.empty(1)):
        pytest.skip("no C compiler")


def scores(shape, gain):
    generator = torch.Generator().manual_seed(1)
    return (gain * torch.randn(shape, generator=generator)).requires_grad_()


def size_of(score):
    return tuple(4 * side for side in score.shape[1:])


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("gain", [0.0, 1.0, 30.0])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 6, 3, 5),
        (1, 2, 1, 1),
        (1, 48, 2, 32),  # one whole group of columns
        (2, 12, 2, 33),  # and a column more
        (1, 5, 9, 70),
    ],
)
def test_float32_head_equals_the_reference_in_float64(shape, gain):
    score = scores(shape, gain)
    exact = score.detach().double().requires_grad_()
    fast, plain = soft_argmin(score, size_of(score)), soft_argmin_reference(exact, size_of(score))
    # Large scores have few digits behind the point, and disparities follow their differences.
    tolerance = 1e-5 * max(1.0, gain) * shape[1] / 6
    torch.testing.assert_close(fast.double(), plain, rtol=0, atol=tolerance)
    weight = torch.randn_like(fast)
    (found,) = torch.autograd.grad(fast, score, weight)
    (wanted,) = torch.autograd.grad(plain, exact, weight.double())
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=10 * tolerance)


@pytest.mark.usefixtures("form")
def test_a_lonely_peak_keeps_its_disparity_and_a_finite_gradient():
    score = torch.full((1, 12, 2, 40), -1e6)
    score[:, 7] = 1e6
    score.requires_grad_()
    out = soft_argmin(score, (48, 8, 160))
    torch.testing.assert_close(out, torch.full_like(out, 29.5))
    out.sum().backward()
    assert torch.isfinite(score.grad).all()


@pytest.mark.usefixtures("form")
def test_what_is_no_number_stays_so_where_it_is():
    score = scores((1, 6, 2, 40), 1.0).detach()
    score[0, 3, 1, 20] = torch.nan
    out = soft_argmin(score, size_of(score))
    assert out[0, 7, 80:84].isnan().all()
    assert out[0, :, :70].isfinite().all()


@needs_compiler
def test_other_layouts_give_the_same():
    score = scores((2, 8, 4, 36), 3.0).detach()
    last = score.contiguous(memory_format=torch.channels_last)
    assert torch.equal(soft_argmin(score, size_of(score)), soft_argmin(last, size_of(score)))


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads):
    tall = scores((2, 6, 7, 37), 0.5).detach()
    whole = compiled_expectation(tall, -78.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        again = compiled_expectation(tall, -78.0)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_are_not_for_it(dtype):
    assert not is_compiled_for(torch.empty(1, dtype=dtype))


def test_every_pixel_is_the_stated_mean_of_its_neighbours():
    generator = torch.Generator().manual_seed(1)
    cells = torch.rand(2, 3, 5, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 9 * 4, 3, 5, generator=generator, dtype=torch.float64)
    fine = convex_upsampling(cells, weights, 2)
    assert fine.shape == (2, 6, 10)
    for image, y, x in [(0, 0, 0), (1, 3, 7), (0, 5, 9), (1, 2, 4)]:
        shares = weights[image, :, y // 2, x // 2].view(9, 4)[:, 2 * (y % 2) + x % 2].softmax(0)
        expected = sum(
            shares[3 * dy + dx]
            * cells[image, min(max(y // 2 + dy - 1, 0), 2), min(max(x // 2 + dx - 1, 0), 4)]
            for dy in range(3)
            for dx in range(3)
        )
        torch.testing.assert_close(fine[image, y, x], expected)


def test_it_stays_within_the_neighbours_and_sums_in_float32():
    cells = torch.arange(12.0).view(1, 3, 4)
    fine = convex_upsampling(cells, torch.randn(1, 9 * 16, 3, 4).bfloat16(), 4)
    assert fine.dtype == torch.float32
    assert fine.min() >= 0
    assert fine.max() <= 11


def test_around_the_peak_are_the_levels_near_it():
    score = torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(1))
    score[0, 0] = score[1, 5] = 9  # at the ends levels are missing
    for reach in (1, 2, 7):
        values, levels = around_peak(score, reach)
        assert values.shape == levels.shape == (2, 2 * reach + 1, 3, 5)
        every = near_peak(score, reach).softmax(dim=1)
        expected = (every * torch.arange(6.0).view(-1, 1, 1)).sum(dim=1)
        torch.testing.assert_close((values.softmax(dim=1) * levels).sum(dim=1), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_a_reach_a_pixel_at_an_edge_is_on_one_side_of_it(dtype):
    cells = torch.tensor([[[10.0, 11, 40], [10, 12, 41], [11, 12, 42]]], dtype=dtype)
    weights = torch.zeros(1, 9, 16, 3, 3, dtype=dtype)
    weights[0, 4, 0, 1, 1] = 1  # the cell itself is the heaviest
    weights[0, 5, 1, 1, 1] = 1  # the one on its right is
    near, far = convex_upsampling(cells, weights.flatten(1, 2), 4, reach=4)[0, 4, 4:6]
    share = torch.e / (torch.e + 5)  # six of the nine are near the first
    torch.testing.assert_close(near.item(), 12 * share + (1 - share) * (10 + 11 + 10 + 11 + 12) / 5)
    share = torch.e / (torch.e + 2)
    torch.testing.assert_close(far.item(), 41 * share + (1 - share) * (40 + 42) / 2)


@needs_compiler
@pytest.mark.parametrize("reach", [0.0, 4.0, float("inf")])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 33)])
def test_compiled_upsampling_is_the_reference(reach, shape):
    generator = torch.Generator().manual_seed(1)
    cells = 20 * torch.rand(2, *shape, generator=generator)
    weights = (30 * torch.randn(2, 9 * 16, *shape, generator=generator)).bfloat16()
    compiled = convex_upsampling(cells, weights, 4, reach=reach)
    expected = convex_upsampling_reference(cells, weights, 4, reach=reach)
    torch.testing.assert_close(compiled, expected)


@needs_compiler
def test_compiled_upsampling_shows_what_is_no_number():
    cells = torch.rand(1, 3, 3)
    cells[0, 1, 1] = torch.nan
    found = convex_upsampling(cells, torch.zeros(1, 9 * 16, 3, 3), 4)
    assert found.isnan().all()
    weights = torch.zeros(1, 9 * 16, 3, 3)
    weights[0, 70, 2, 2] = torch.nan
    found = convex_upsampling(torch.rand(1, 3, 3), weights, 4)
    assert found.isnan().sum() == 1


def test_upsampling_has_gradients():
    cells = torch.rand(1, 1, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 9 * 16, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c, w: convex_upsampling(c, w, 4), (cells, weights))
    assert convex_upsampling(cells.float(), weights.float(), 4).requires_grad
