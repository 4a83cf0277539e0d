"""Runs that end because they learn nothing, and what is left of them."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from ea_psmnet.training.guards import TruthGuard
from ea_psmnet.training.loop import train
from ea_psmnet.training.step import OptimiserStep


def test_the_weights_of_the_last_good_step_are_there_though_no_checkpoint_was_due(
    config, monkeypatch
):
    good, taken = OptimiserStep._loss, []

    def spoiled(self, *arguments):
        taken.append(None)
        loss, losses = good(self, *arguments)
        return loss * (torch.nan if len(taken) > 2 else 1), losses

    two = safetensors.torch.load_file(train(replace(config, steps=2)))
    monkeypatch.setattr(OptimiserStep, "_loss", spoiled)
    ended = replace(config, out=config.out.with_name("ended"), max_skipped=2, save_every=100)
    with pytest.raises(FloatingPointError, match=r"go on from the run's model.safetensors"):
        train(ended)
    left = safetensors.torch.load_file(ended.out / "model.safetensors")
    assert left.keys() == two.keys()
    assert all(torch.equal(left[name], two[name]) for name in two)
    assert not (ended.out / "checkpoints").exists()


@pytest.mark.parametrize("unknown", [np.nan, np.inf, -3.0, 1e30, 16.0])
def test_a_dataset_without_truth_ends_the_run_in_a_line(config, pairs, monkeypatch, unknown):
    monkeypatch.setattr(TruthGuard, "LIMIT", 3)
    for path in pairs.glob("*/disp.npy"):
        np.save(path, np.full((36, 70), unknown, np.float32))
    with pytest.raises(ValueError, match=r"3 steps without a single pixel .* below 16:") as caught:
        train(config)
    assert "\n" not in str(caught.value)


def test_a_run_that_has_seen_truth_may_have_any_number_of_steps_without():
    guard = TruthGuard(192)
    for pixels in (0, 1, *[0] * 3 * TruthGuard.LIMIT):
        guard.saw(pixels)
