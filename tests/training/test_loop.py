import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ea_psmnet.files import write_image, write_npy
from ea_psmnet.models import config as config_module
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.psmnet import build_model
from ea_psmnet.models.weights import load_model, save_model
from ea_psmnet.training import loop
from ea_psmnet.training.checkpoint import load_newest, save_checkpoint
from ea_psmnet.training.config import TrainingConfig
from ea_psmnet.training.loop import learning_rate, train

ROOT = Path(__file__).parents[2]
TINY = PSMNetConfig(width=0.25, attention="efficient", attention_sites=("encoder",))


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    monkeypatch.setitem(config_module.PRESETS, "tiny", TINY)


@pytest.fixture
def pairs(tmp_path):
    """Six pairs of noise with a constant disparity each: easy to learn, quick to read."""
    rng = np.random.default_rng(0)
    for number in range(6):
        disparity = 3 + 2 * number
        wide = rng.integers(0, 255, (36, 96, 3), dtype=np.uint8)
        folder = tmp_path / "pairs" / f"{number}"
        write_image(folder / "left.png", wide[:, :70])
        write_image(folder / "right.png", wide[:, disparity : 70 + disparity])
        write_npy(folder / "disp.npy", np.full((36, 70), disparity, np.float32))
    return tmp_path / "pairs"


@pytest.fixture
def config(pairs, tmp_path):
    return TrainingConfig(
        out=tmp_path / "run",
        data="folder",
        root=pairs,
        preset="tiny",
        max_disparity=16,
        crop=(32, 64),
        batch=2,
        steps=6,
        save_every=2,
        precision="fp32",
        device="cpu",
        workers=0,
    )


def weights(path):
    return safetensors.torch.load_file(path)


@pytest.fixture
def steps_taken(monkeypatch):
    """The steps that runs take from here on; `stop_at` in it ends the next run there."""
    original, taken = loop._Trainer._step, Steps()

    def spy(self, step, batches):
        if step == taken.stop_at:
            taken.stop_at = None
            raise KilledError
        taken.append(step)
        return original(self, step, batches)

    monkeypatch.setattr(loop._Trainer, "_step", spy)
    return taken


class Steps(list):
    stop_at = None


class KilledError(Exception):
    pass


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(config, tmp_path, steps_taken):
    whole = weights(train(config))
    assert steps_taken == [0, 1, 2, 3, 4, 5]
    broken = replace(config, out=tmp_path / "broken")
    steps_taken.clear()
    steps_taken.stop_at = 5
    with pytest.raises(KilledError):
        train(broken)
    steps_taken.clear()
    resumed = weights(train(broken))
    assert steps_taken == [4, 5]  # the last checkpoint was after step 3
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_that_is_finished_takes_no_step(config, steps_taken):
    first = weights(train(replace(config, steps=2)))
    steps_taken.clear()
    again = weights(train(replace(config, steps=2)))
    assert steps_taken == []
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_accumulated_micro_batches_are_one_batch(config, monkeypatch):
    """With batch normalisation frozen, two micro-batches give the gradient of the whole batch."""
    whole = gradients_of_first_step(config, monkeypatch, batch=4, micro_batch=4)
    parts = gradients_of_first_step(config, monkeypatch, batch=4, micro_batch=2)
    for a, b in zip(whole, parts, strict=True):
        assert (a - b).norm() <= 1e-3 * a.norm()


def frozen(self, _=True):
    self.training = False
    return self


def gradients_of_first_step(config, monkeypatch, **changes):
    kept = []

    def keep(self, *_):
        kept.extend(p.grad.clone() for group in self.param_groups for p in group["params"])

    monkeypatch.setattr(torch.optim.Adam, "step", keep)
    monkeypatch.setattr(torch.nn.modules.batchnorm._BatchNorm, "train", frozen)
    out = config.out.with_name(f"run{changes['micro_batch']}")
    train(replace(config, out=out, steps=1, **changes))
    return kept


def test_the_optimiser_is_the_papers(config, monkeypatch):
    made = []
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, **k: made.append(adam(*a, **k)) or made[-1])
    train(replace(config, steps=1))
    assert made[0].defaults["betas"] == (0.9, 0.999)
    assert made[0].defaults["weight_decay"] == 0


def test_training_lowers_the_loss_and_logs_it(config):
    train(replace(config, steps=25, save_every=25, batch=6, lr=5e-3))
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == 25
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert {"train/epe", "train/lr"} <= set(events.Tags()["scalars"])


def test_bf16_trains(config):
    trained = load_model(train(replace(config, precision="bf16", steps=2, max_disparity=48)))
    assert all(torch.isfinite(p).all() for p in trained.parameters())
    assert trained.config == replace(TINY, max_disparity=48)


@pytest.mark.parametrize("max_disparity", [16, 32])
def test_bf16_is_refused_where_the_processors_gradient_is_broken(config, max_disparity):
    with pytest.raises(ValueError, match="take 48 or more"):
        train(replace(config, precision="bf16", max_disparity=max_disparity))
    train(replace(config, precision="auto", max_disparity=max_disparity, steps=1))


def test_bf16_gradients_are_close_to_float32s(config, monkeypatch):
    """At the depths that are allowed: 48 / 16 = 3 is the smallest."""
    config = replace(config, max_disparity=48, batch=4)
    exact = gradients_of_first_step(config, monkeypatch, micro_batch=4)
    rough = gradients_of_first_step(
        replace(config, precision="bf16", out=config.out.with_name("bf16")),
        monkeypatch,
        micro_batch=2,
    )
    assert all(torch.isfinite(g).all() for g in rough)
    norms = [sum(g.square().sum() for g in grads).sqrt() for grads in (exact, rough)]
    assert norms[1] / norms[0] == pytest.approx(1, abs=0.1)


def test_a_run_starts_from_other_weights_and_new_attention_is_the_identity(config, tmp_path):
    plain = build_model(PSMNetConfig(width=0.25, max_disparity=16))
    save_model(tmp_path / "plain.safetensors", plain)
    first = train(replace(config, init=tmp_path / "plain.safetensors", steps=1, lr=1e-9))
    trained = weights(first)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(trained[name], parameter.detach(), rtol=0, atol=1e-7)


def test_a_folder_with_another_run_is_refused(config):
    train(replace(config, steps=1))
    with pytest.raises(ValueError, match=r"holds a run with lr 0.002, not 0.001"):
        train(replace(config, steps=1, lr=1e-3))


def test_nothing_is_written_when_the_settings_cannot_work(config, tmp_path):
    for changes in ({"root": tmp_path / "missing"}, {"init": tmp_path / "none.safetensors"}):
        with pytest.raises(FileNotFoundError):
            train(replace(config, **changes))
    assert not config.out.exists()


def test_a_crop_that_does_not_fit_is_one_line_before_anything_is_written(config):
    with pytest.raises(ValueError, match="crop") as caught:
        train(replace(config, crop=(48, 64), workers=1))
    assert "\n" not in str(caught.value)
    assert not config.out.exists()


def test_a_folder_of_other_things_is_refused(config):
    config.out.mkdir()
    (config.out / "model.safetensors").touch()
    with pytest.raises(ValueError, match="weights of something else"):
        train(config)
    (config.out / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: damaged"):
        train(config)


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"weight": torch.tensor(step)})
    assert len(list(tmp_path.glob("*.pt"))) == 2
    newest = tmp_path / "step-0000003.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="step-0000003.pt: damaged"):
        state = load_newest(tmp_path)
    assert state == {"weight": torch.tensor(2), "step": 2}


@pytest.mark.parametrize(
    "spoil", [lambda x: x * float("nan"), lambda x: x + (x - x.detach()).abs().sqrt()]
)
def test_what_is_not_finite_stops_the_run(config, monkeypatch, spoil):
    """A loss that is NaN, and one that is finite with a gradient that is not."""
    monkeypatch.setattr(loop, "stereo_loss", lambda outputs, *_: spoil(outputs[-1].mean()))
    with pytest.raises(FloatingPointError, match=r"not finite at step 0: lower --lr"):
        train(config)
    assert not (config.out / "checkpoints").exists()


def test_the_learning_rate_follows_its_schedule(config):
    assert {learning_rate(config, step, 100) for step in range(100)} == {2e-3}
    cycle = [learning_rate(replace(config, schedule="one-cycle"), s, 100) for s in range(100)]
    assert max(cycle) == pytest.approx(2e-3)
    assert cycle[0] == pytest.approx(2e-3 / 5)
    assert cycle[-1] < 1e-5
    assert cycle[5:] == sorted(cycle[5:], reverse=True)


def test_the_defaults_are_the_papers():
    config = TrainingConfig(out=Path("run"), root=Path("data"))
    assert (config.batch, config.lr, config.epochs) == (24, 2e-3, 100)
    assert (config.crop, config.max_disparity, config.schedule) == ((256, 512), 192, "constant")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch must be at least 1"),
        ({"crop": (30, 64)}, "multiples of 16"),
        ({"max_disparity": 192}, "wider than the crop"),
        ({"root": None}, "needs --root"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("inf")}, "finite"),
        ({"micro_batch": 0}, "micro_batch must be at least 1"),
        ({"workers": -1}, "workers must not be negative"),
        ({"seed": -1}, "seed must not be negative"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


@pytest.mark.slow
def test_two_processes_compute_what_one_does(pairs, tmp_path):
    """The same micro-batches, so the same weights; only batch statistics are each process's own."""
    options = (
        f"-m ea_psmnet train --data folder --root {pairs} --preset psmnet-small --workers 0 "
        "--max-disparity 16 --crop 32 64 --batch 4 --micro-batch 2 --steps 1 --precision fp32 "
        "--device cpu --lr 1e-5 --out"
    )
    launch = "-m torch.distributed.run --nproc-per-node 2 --master-port 29617 "
    for prefix, name in (("", "one"), (launch, "two")):
        command = [sys.executable, *f"{prefix}{options} {tmp_path / name}".split()]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    one, two = (load_newest(tmp_path / n / "checkpoints") for n in ("one", "two"))
    # Adam's first moment is a tenth of the gradient; the weights would show its sign alone.
    for index, state in one["optimizer"]["state"].items():
        ours, theirs = state["exp_avg"], two["optimizer"]["state"][index]["exp_avg"]
        assert (ours - theirs).norm() <= 1e-3 * ours.norm() + 1e-7
