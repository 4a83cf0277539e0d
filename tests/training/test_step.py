"""Steps that are skipped, undone or taken, and runs that end because they learn nothing."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from training.tiny import TINY

from ea_psmnet.losses import weighted_sum
from ea_psmnet.models.psmnet import build_model
from ea_psmnet.training import step as step_module
from ea_psmnet.training.checkpoint import load_newest
from ea_psmnet.training.loop import train
from ea_psmnet.training.network import WeightAverage
from ea_psmnet.training.step import FiniteGuard, OptimiserStep, TruthGuard


def nan_loss(loss):
    return loss * float("nan")


def nan_gradient(loss):
    return loss + (loss - loss.detach()).abs().sqrt()


@pytest.fixture
def spoil(monkeypatch):
    """Make losses of chosen calls not finite: `spoil(how, which)`."""
    calls = []

    def register(how, which):
        def spoiled(*arguments):
            calls.append(None)
            loss = weighted_sum(*arguments)
            return how(loss) if which(len(calls) - 1) else loss

        monkeypatch.setattr(step_module, "weighted_sum", spoiled)

    return register


@pytest.mark.parametrize("how", [nan_loss, nan_gradient])
def test_a_step_that_is_not_finite_is_skipped_counted_and_told(config, spoil, how, capsys):
    """The second micro-batch of step 1; weights and batch statistics are those without it."""
    config = replace(config, batch=4, micro_batch=2, steps=2, save_every=1)
    spoil(how, lambda call: call == 3)
    train(config)
    before, after = (
        torch.load(config.out / "checkpoints" / f"step-000000{n}.pt", weights_only=True)
        for n in (1, 2)
    )
    assert after["guard"] == {"skipped": 1, "in_a_row": 1}
    for name, tensor in before["model"].items():
        assert torch.equal(tensor, after["model"][name]), name
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "skipped:" in x)
    what = "loss" if how is nan_loss else "gradient"
    assert f"step 2 skipped: the {what} is not finite; samples: " in line
    # Only the micro-batch whose loss it was; a gradient may be any sample's.
    assert line.partition("samples: ")[2].count(",") == (1 if how is nan_loss else 3)


def test_too_many_in_a_row_end_the_run_with_the_last_good_weights(config, spoil, monkeypatch):
    spoil(nan_loss, lambda call: call >= 2)
    monkeypatch.setattr(FiniteGuard, "LIMIT", 3)
    config = replace(config, save_every=1)
    with pytest.raises(FloatingPointError, match="3 steps in a row were not finite") as caught:
        train(config)
    assert "step 5 skipped: the loss" in str(caught.value)
    assert "model.safetensors by --init" in str(caught.value)
    assert "\n" not in str(caught.value)
    model = safetensors.torch.load_file(config.out / "model.safetensors")
    assert all(t.isfinite().all() for t in model.values())
    assert load_newest(config.out / "checkpoints")["step"] == 4


def test_good_steps_between_bad_ones_let_the_run_go_on(config, spoil, monkeypatch):
    spoil(nan_loss, lambda call: call % 2 == 1)
    monkeypatch.setattr(FiniteGuard, "LIMIT", 2)
    train(config)
    assert load_newest(config.out / "checkpoints")["guard"] == {"skipped": 3, "in_a_row": 1}


def test_the_count_in_a_row_survives_a_restart(monkeypatch):
    monkeypatch.setattr(FiniteGuard, "LIMIT", 2)
    guard = FiniteGuard()
    guard.skip(0, "loss", ["a"])
    later = FiniteGuard()
    later.load_state_dict(guard.state_dict())
    with pytest.raises(FloatingPointError, match="samples: b"):
        later.skip(1, "loss", ["b"])


def test_a_batch_without_a_known_pixel_moves_nothing(config, pairs):
    """Not even by Adam's momentum."""
    config = replace(config, batch=6, micro_batch=6, save_every=1, keep=9)
    train(replace(config, steps=1))
    weight = dict(load_newest(config.out / "checkpoints")["model"])
    for number in range(6):
        np.save(pairs / f"{number}" / "disp.npy", np.full((36, 70), np.nan, np.float32))
    settings = config.out / "config.json"
    settings.write_text(settings.read_text().replace('"steps": 1', '"steps": 2'))
    train(replace(config, steps=2))
    state = load_newest(config.out / "checkpoints")
    parameters = {n for n, _ in build_model(replace(TINY, max_disparity=16)).named_parameters()}
    assert state["step"] == 2
    assert state["guard"]["skipped"] == 0
    assert all(torch.equal(weight[n], state["model"][n]) for n in parameters)
    assert all(t.isfinite().all() for t in state["model"].values())


def test_an_average_follows_its_formula_and_resumes():
    network = torch.nn.BatchNorm2d(1)
    average = WeightAverage(network, 0.5)
    expected, rng = 1.0, np.random.default_rng(0)
    for update in range(1, 12):
        value = float(rng.normal())
        torch.nn.init.constant_(network.weight, value)
        network.num_batches_tracked += 1
        average.update(network)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
        other = WeightAverage(network, 0.5)
        other.load_state_dict(average.state_dict())
        average = other
    assert average.weights["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert average.weights["num_batches_tracked"] == 11


# Guards -------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(FiniteGuard, "LIMIT", 2)
    ended = replace(config, out=config.out.with_name("ended"), save_every=100)
    with pytest.raises(FloatingPointError, match=r"continue from the run's model.safetensors"):
        train(ended)
    left = safetensors.torch.load_file(ended.out / "model.safetensors")
    assert left.keys() == two.keys()
    assert all(torch.equal(left[name], two[name]) for name in two)
    assert not (ended.out / "checkpoints").exists()


def test_a_dataset_without_truth_ends_the_run_in_a_line(config, pairs, monkeypatch):
    monkeypatch.setattr(TruthGuard, "LIMIT", 3)  # steps of two of the six pairs
    for number, unknown in enumerate((np.nan, np.inf, -3.0, 1e30, 16.0, np.nan)):
        np.save(pairs / f"{number}" / "disp.npy", np.full((36, 70), unknown, np.float32))
    with pytest.raises(ValueError, match=r"3 steps without a single pixel .* below 16:") as caught:
        train(config)
    assert "\n" not in str(caught.value)


def test_a_run_that_has_seen_truth_may_have_any_number_of_steps_without():
    guard = TruthGuard(192)
    for pixels in (0, 1, *[0] * 3 * TruthGuard.LIMIT):
        guard.saw(pixels)
    resumed = TruthGuard(192)
    resumed.load_state_dict(guard.state_dict())
    for _ in range(3 * TruthGuard.LIMIT):
        resumed.saw(0)
