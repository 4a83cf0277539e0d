import pytest
import torch

from ea_psmnet.ops import soft_argmin as head
from ea_psmnet.ops.soft_argmin import soft_argmin, soft_argmin_reference
from ea_psmnet.ops.soft_argmin_compiled import compiled_expectation, is_compiled_for

needs_compiler = pytest.mark.skipif(not is_compiled_for(torch.empty(1)), reason="no C compiler")


@pytest.fixture(params=["compiled", "torch"])
def form(request, monkeypatch):
    """Both forms of the float32 head: the second is what runs without a compiler."""
    if request.param == "torch":
        monkeypatch.setattr(head, "is_compiled_for", lambda scores: False)
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
