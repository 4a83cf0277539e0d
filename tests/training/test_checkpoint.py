"""Which checkpoints are kept, and which a run goes on from."""

import errno
import shutil
from dataclasses import replace

import pytest
import torch
from training.tiny import TINY

from ea_psmnet.models.psmnet import build_model
from ea_psmnet.training import checkpoint
from ea_psmnet.training.checkpoint import load_newest, refusing_strangers, save_checkpoint
from ea_psmnet.training.loop import train


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_of_later_steps_keep_no_good_one_out(tmp_path, keep):
    """A run whose newest checkpoints were damaged has started again and saves."""
    for step in (40, 50):
        (tmp_path / f"step-{step:07d}.pt").write_bytes(b"damaged")
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, {}, keep)
    good = [path.name for path in sorted(tmp_path.iterdir())][:-2]
    assert good == ["step-0000020.pt", "step-0000030.pt"][-keep:]
    with pytest.warns(UserWarning, match="damaged"):
        assert load_newest(tmp_path)["step"] == 30
    save_checkpoint(tmp_path, 50, {}, keep)
    assert load_newest(tmp_path)["step"] == 50


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


def with_moments(state, value):
    optimizer = state["optimizer"]
    return state | {"optimizer": optimizer | {"state": optimizer["state"] | {0: value}}}


STRANGE = {
    "of another network": lambda s: (
        s | {"model": build_model(replace(TINY, width=0.5)).state_dict()}
    ),
    "with a missing weight": lambda s: s | {"model": without(s["model"], next(iter(s["model"])))},
    "without weights": lambda s: s | {"model": None},
    "with moments of another shape": lambda s: with_moments(
        s, dict.fromkeys(("step", "exp_avg", "exp_avg_sq"), torch.zeros(3))
    ),
    "with moments missing": lambda s: with_moments(s, {}),
    "without optimiser": lambda s: s | {"optimizer": {}},
    "without average": lambda s: without(s, "average"),
    "with another average": lambda s: s | {"average": {"updates": 1, "weights": {}}},
    "without random states": lambda s: without(s, "random"),
    "with odd random states": lambda s: s | {"random": [{"python": 1}]},
    "with a text as best": lambda s: s | {"best": "good"},
    "with a text as count": lambda s: s | {"guard": {"skipped": "some", "in_a_row": 0}},
    "of another step": lambda s: s | {"step": 2},
    "without step": lambda s: without(s, "step"),
    "that is a list": lambda s: [s],
}
"""Checkpoints that can be read and are not this run's."""


@pytest.mark.slow
def test_a_whole_file_that_is_no_checkpoint_of_the_run_is_refused_in_a_line(config):
    """Only a user can have put it there: the run neither starts anew nor goes on with it."""
    config = replace(config, ema=0.9, steps=2, save_every=1)
    train(config)
    folder = config.out / "checkpoints"
    first, second = sorted(folder.iterdir())
    second.unlink()
    good = first.read_bytes()
    for what, strange in STRANGE.items():
        torch.save(strange(torch.load(first, weights_only=True)), first)
        with pytest.raises(
            ValueError, match=r"step-0000001.pt: not a checkpoint of this run"
        ) as told:
            train(config)
        assert "\n" not in str(told.value), what
        assert len(str(told.value)) < len(str(first)) + 300, what
        assert list(folder.iterdir()) == [first], what
        first.write_bytes(good)
    train(config)
    assert second.is_file()


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(config):
    config = replace(config, steps=3, save_every=1)
    train(config)
    weights = (config.out / "model.safetensors").read_bytes()
    shutil.rmtree(config.out / "checkpoints")
    with pytest.raises(ValueError, match=r"checkpoints: no checkpoint .* has taken 3 steps: train"):
        train(config)
    assert (config.out / "model.safetensors").read_bytes() == weights
    (config.out / "model.safetensors").unlink()
    train(config)
    assert (config.out / "model.safetensors").read_bytes() == weights


def test_a_checkpoint_after_the_last_step_is_refused(config):
    """As when a dataset has lost images, and its epochs have become shorter."""
    train(replace(config, steps=2))
    (config.out / "config.json").unlink()
    (config.out / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"step-0000002.pt: .* \(the run has 1 steps\)"):
        train(replace(config, steps=1))


@pytest.mark.filterwarnings("error")
def test_other_things_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "step-0000001.pt").mkdir()
    users = ["step-best.pt", "step-1.pt", "step-00000001.pt"]
    for name in users:
        (tmp_path / name).write_bytes(b"mine")
    for step in (2, 3):
        save_checkpoint(tmp_path, step, {}, keep=1)
    assert load_newest(tmp_path)["step"] == 3
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == sorted(["step-0000001.pt", "step-0000003.pt", *users])


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "denied"), MemoryError()])
def test_what_cannot_be_read_just_now_is_not_taken_for_damaged(tmp_path, monkeypatch, error):
    def fail(path):
        raise error

    save_checkpoint(tmp_path, 3, {})
    monkeypatch.setattr(checkpoint, "_load", fail)
    with pytest.raises(type(error)):
        load_newest(tmp_path)


def test_a_full_card_says_nothing_about_a_checkpoint(tmp_path):
    with pytest.raises(torch.OutOfMemoryError), refusing_strangers(tmp_path, 3):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_the_newest_is_that_of_the_most_steps_however_many_digits(tmp_path):
    for step in (9_999_999, 10_000_000):
        save_checkpoint(tmp_path, step, {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-10000000.pt"]
