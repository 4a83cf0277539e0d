import json
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


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(config, tmp_path):
    whole = weights(train(config))
    broken = replace(config, out=tmp_path / "broken")

    class KilledError(Exception):
        pass

    original = loop._Trainer._step

    def dies_at_five(self, step, batches):
        if step == 5:
            raise KilledError
        return original(self, step, batches)

    loop._Trainer._step = dies_at_five
    try:
        with pytest.raises(KilledError):
            train(broken)
    finally:
        loop._Trainer._step = original
    resumed = weights(train(broken))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_training_lowers_the_loss_and_logs_it(config):
    train(replace(config, steps=25, save_every=25, batch=6, lr=5e-3))
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == 25
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert {"train/epe", "train/lr"} <= set(events.Tags()["scalars"])


def test_accumulated_micro_batches_are_all_used(config, tmp_path):
    seen = []

    class Spy(loop.TrainingSamples):
        def __getitem__(self, position):
            seen.append(position)
            return super().__getitem__(position)

    loop.TrainingSamples, kept = Spy, loop.TrainingSamples
    try:
        train(replace(config, batch=4, micro_batch=2, steps=2))
    finally:
        loop.TrainingSamples = kept
    assert sorted(seen) == list(range(8))


def test_bf16_trains(config):
    trained = load_model(train(replace(config, precision="bf16", steps=2)))
    assert all(torch.isfinite(p).all() for p in trained.parameters())
    assert trained.config == replace(TINY, max_disparity=16)


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


def test_a_run_that_is_finished_stays_as_it_is(config):
    first = weights(train(replace(config, steps=2)))
    again = weights(train(replace(config, steps=2)))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_nothing_is_written_when_the_settings_cannot_work(config, tmp_path):
    for changes in ({"root": tmp_path / "missing"}, {"init": tmp_path / "none.safetensors"}):
        with pytest.raises(FileNotFoundError):
            train(replace(config, **changes))
    assert not config.out.exists()


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"weight": torch.tensor(step)})
    assert len(list(tmp_path.glob("*.pt"))) == 2
    newest = tmp_path / "step-0000003.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="step-0000003.pt: damaged"):
        state = load_newest(tmp_path)
    assert state == {"weight": torch.tensor(2), "step": 2}


def test_an_infinite_loss_stops_the_run(config, monkeypatch):
    monkeypatch.setattr(loop, "stereo_loss", lambda outputs, *_: outputs[-1].sum() * float("nan"))
    with pytest.raises(FloatingPointError, match=r"nan at step 0: lower --lr"):
        train(config)


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
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


@pytest.mark.slow
def test_two_processes_train_one_network(pairs, tmp_path):
    out = tmp_path / "run"
    options = (
        f"--data folder --root {pairs} --out {out} --preset psmnet-small --max-disparity 16 "
        "--crop 32 64 --batch 4 --steps 2 --precision fp32 --device cpu --workers 0"
    )
    launch = "-m torch.distributed.run --nproc-per-node 2 --master-port 29617"
    subprocess.run(
        [sys.executable, *launch.split(), "-m", "ea_psmnet", "train", *options.split()],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert json.loads((out / "config.json").read_text())["batch"] == 4
    assert load_newest(out / "checkpoints")["step"] == 2
    load_model(out / "model.safetensors")
