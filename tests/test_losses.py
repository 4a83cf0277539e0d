import math

import pytest
import torch

from ea_psmnet.losses import cross_entropies, mixture_loss, output_losses, stereo_loss


def tensors():
    truth = torch.tensor([[[1.0, 2.0, 40.0, 3.0]]])
    valid = torch.tensor([[[True, True, True, False]]])
    return truth, valid


def test_weights_masks_and_both_branches_of_smooth_l1():
    truth, valid = tensors()
    outputs = [truth + 0.5, truth + 1.0, truth - 3.0]
    # The third pixel is at or above the maximum, the fourth unknown: two pixels count.
    expected = 0.5 * (0.5 * 0.5**2) + 0.7 * 0.5 + 1.0 * (3.0 - 0.5)
    assert stereo_loss(outputs, truth, valid, 32).item() == pytest.approx(expected)


def test_a_single_output_takes_the_last_weight():
    truth, valid = tensors()
    assert stereo_loss([truth + 1.0], truth, valid, 32).item() == pytest.approx(0.5)


def test_uncounted_pixels_get_no_gradient():
    truth, valid = tensors()
    prediction = (truth + 1).requires_grad_()
    stereo_loss([prediction], truth, valid, 32).backward()
    assert prediction.grad.tolist() == [[[0.5, 0.5, 0.0, 0.0]]]


def test_a_batch_without_a_known_pixel_does_no_harm():
    truth, valid = tensors()
    prediction = (truth + 1).requires_grad_()
    loss = stereo_loss([prediction], truth, torch.zeros_like(valid), 32)
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad.abs().sum() == 0


def test_unknown_truth_may_be_anything():
    truth, valid = tensors()
    truth[~valid] = float("nan")
    prediction = torch.ones_like(truth).requires_grad_()
    loss = stereo_loss([prediction], truth, valid, 32)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(prediction.grad).all()


def random_cells(levels=4):
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(2, 8, 12, generator=generator) * 1.2 * 4 * levels
    valid = torch.rand(2, 8, 12, generator=generator) > 0.2
    scores = [torch.randn(2, levels, 2, 3, generator=generator).double() for _ in range(2)]
    return scores, truth.double(), valid


def test_cross_entropy_shares_each_pixel_between_its_two_nearest_levels():
    scores, truth, valid = random_cells()
    expected = torch.zeros(2, dtype=torch.float64)
    counted = valid & (truth < 16)
    for image, y, x in counted.nonzero().tolist():
        place = min(max((truth[image, y, x].item() - 1.5) / 4, 0), 3)
        for output, score in enumerate(scores):
            logs = score[image, :, y // 4, x // 4].log_softmax(0)
            shares = [max(0.0, 1 - abs(place - level)) for level in range(4)]
            expected[output] -= sum(p * q for p, q in zip(shares, logs, strict=True))
    torch.testing.assert_close(cross_entropies(scores, truth, valid), expected / counted.sum())


def test_an_unknown_target_is_refused():
    known = torch.ones(1, 4, 4)
    with pytest.raises(ValueError, match="unknown target 'magic': choose from linear, adaptive"):
        cross_entropies([torch.zeros(1, 4, 1, 1)], known, known > 0, target="magic")


def test_cross_entropy_is_least_where_soft_argmin_would_be_right():
    truth, valid = torch.full((1, 4, 8), 7.5), torch.ones(1, 4, 8, dtype=torch.bool)
    score = torch.zeros(1, 4, 1, 2, requires_grad=True)  # 7.5 lies half way from 5.5 to 9.5
    for _ in range(200):
        (gradient,) = torch.autograd.grad(cross_entropies([score], truth, valid)[0], score)
        score = (score - 5 * gradient).detach().requires_grad_()
    found = score.softmax(1)[0, :, 0, 0]
    assert (found @ torch.tensor([1.5, 5.5, 9.5, 13.5])).item() == pytest.approx(7.5, abs=0.05)
    assert found[1:3].min() > 0.45


def test_both_losses_of_parts_of_a_batch_add_up_and_ignore_what_is_unknown():
    scores, truth, valid = random_cells()
    truth[~valid] = float("nan")
    pixels = (valid & (truth < 16)).sum()
    prediction = torch.ones_like(truth)
    for loss in (
        lambda b: cross_entropies([scores[0][b]], truth[b], valid[b], pixels=pixels),
        lambda b: cross_entropies(
            [scores[0][b]], truth[b], valid[b], target="adaptive", pixels=pixels
        ),
        lambda b: output_losses([prediction[b]], truth[b], valid[b], 16, pixels),
    ):
        torch.testing.assert_close(loss(slice(0, 1)) + loss(slice(1, 2)), loss(slice(None)))


def test_cross_entropy_of_a_batch_without_a_known_pixel_does_no_harm():
    scores, truth, valid = random_cells()
    score = scores[0].requires_grad_()
    loss = cross_entropies([score], truth, torch.zeros_like(valid))
    loss.sum().backward()
    assert loss.tolist() == [0]
    assert score.grad.abs().sum() == 0


def test_the_adaptive_target_has_a_peak_a_surface_and_the_medians_is_highest():
    truth, valid = torch.full((1, 4, 4), 6.0), torch.ones(1, 4, 4, dtype=torch.bool)
    truth[0, 0] = 30.0  # four pixels of sixteen show what is in front
    score = torch.zeros(1, 10, 1, 1, requires_grad=True)
    loss = cross_entropies([score], truth, valid, target="adaptive", first=2.0)
    (gradient,) = torch.autograd.grad(loss[0], score)
    target = 0.1 - gradient.flatten()  # softmax minus target, over uniform scores
    levels = torch.arange(10.0)
    near, far = ((-(levels - place).abs() / 0.8).softmax(0) for place in (7.0, 1.0))
    share = 0.8 + 11 * 0.2 / 15
    torch.testing.assert_close(target, share * far + (1 - share) * near)


def test_the_adaptive_target_leaves_out_what_is_unknown():
    truth, valid = torch.full((1, 4, 4), 6.0), torch.zeros(1, 4, 4, dtype=torch.bool)
    truth[0, 1:] = 30.0
    valid[0, 0, :3] = True
    score = torch.zeros(1, 10, 1, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        cross_entropies([score], truth, valid, target="adaptive", first=2.0)[0], score
    )
    expected = (-(torch.arange(10.0) - 1).abs() / 0.8).softmax(0)
    torch.testing.assert_close(0.1 - gradient.flatten(), expected)


def choice():
    """Three candidates of each pixel of a row of two cells of 2 x 2 pixels."""
    truth = torch.tensor([[[5.0, 5.0, 9.0, 40.0], [5.0, 5.0, 9.0, 9.0]]])
    candidates = torch.tensor([3.0, 5.0, 9.5]).view(1, 3, 1, 1, 1).expand(1, 3, 4, 1, 2)
    return candidates, torch.zeros(1, 3, 4, 1, 2, requires_grad=True), truth


def test_weights_are_drawn_towards_the_candidates_that_are_right():
    candidates, logits, truth = choice()
    valid = torch.ones_like(truth, dtype=torch.bool)
    mixture_loss(candidates, logits, truth, valid, 32).backward()
    drawn = -logits.grad[0, :, :, 0]  # (3, 4, 2)
    assert (drawn[1, :, 0] > 0).all()  # 5 is right
    assert (drawn[2, :, 1][[0, 2, 3]] > 0).all()  # 9.5 is within half a pixel of 9
    assert not drawn[:, 1, 1].any()  # 40 is above the maximum
    torch.testing.assert_close(drawn.sum(0), torch.zeros(4, 2))


def test_a_mixture_is_as_likely_as_defined():
    candidates = torch.tensor([4.0, 6.0, 20.0]).view(1, 3, 1, 1, 1)
    weights = torch.tensor([0.5, 0.3, 0.2])
    truth = torch.full((1, 1, 1), 4.5)
    valid = torch.ones_like(truth, dtype=torch.bool)
    likelihood = 0.5 * math.exp(-0.5) + 0.3 * math.exp(-1.5) + 0.2 * math.exp(-15.5)
    loss = mixture_loss(candidates, weights.log().view(1, 3, 1, 1, 1), truth, valid, 32)
    assert loss.item() == pytest.approx(-math.log(likelihood))


def test_equal_candidates_may_share_the_weight_in_any_way():
    candidates = torch.tensor([4.0, 4.0, 20.0]).view(1, 3, 1, 1, 1)
    truth = torch.full((1, 1, 1), 4.0)
    valid = torch.ones_like(truth, dtype=torch.bool)
    even, uneven = (
        mixture_loss(candidates, torch.tensor(x).log().view(1, 3, 1, 1, 1), truth, valid, 32)
        for x in ([0.45, 0.45, 0.1], [0.8, 0.1, 0.1])
    )
    torch.testing.assert_close(even, uneven)


def test_candidates_that_are_all_wrong_do_not_count():
    candidates, logits, truth = choice()
    valid = torch.ones_like(truth, dtype=torch.bool)
    loss = mixture_loss(candidates, logits, truth.clamp(max=5) + 20, valid, 64)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_mixtures_of_parts_of_a_batch_add_up():
    candidates, logits, truth = (torch.cat([maps, maps.flip(-1)]) for maps in choice())
    logits = logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    valid = torch.rand(truth.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    whole = mixture_loss(candidates, logits, truth, valid, 32)
    pixels = (valid & (truth < 32)).sum()
    given = (candidates, logits, truth, valid)
    parts = [mixture_loss(*(maps[i : i + 1] for maps in given), 32, pixels) for i in range(2)]
    torch.testing.assert_close(sum(parts), whole)
