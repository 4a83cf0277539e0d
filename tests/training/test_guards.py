"""What is left of a run that too many steps in a row have ended."""

from dataclasses import replace

import pytest
import safetensors.torch
import torch

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
