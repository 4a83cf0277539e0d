import pytest
import torch

from ea_psmnet.losses import stereo_loss


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
