"""Runs that are killed, stopped or run out of disk, and what is left of them."""

import errno
import io
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import safetensors.torch
import torch

from ea_psmnet.training import checkpoint, loop, record, validation
from ea_psmnet.training.checkpoint import (
    load_newest,
    random_state,
    save_checkpoint,
    set_random_state,
)
from ea_psmnet.training.data import TrainingSamples
from ea_psmnet.training.logs import read_metrics
from ea_psmnet.training.loop import train
from ea_psmnet.training.processes import TrainingStopped

ROOT = Path(__file__).parents[2]


def weights(path):
    return safetensors.torch.load_file(path)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def steps_of(folder):
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.pt"))


@pytest.fixture
def on_step(monkeypatch):
    """Call a function at the start of each step: `on_step(f)`, with the step's number."""
    turn = loop._Trainer._turn

    def register(function):
        def spy(self, step, *rest):
            function(step)
            return turn(self, step, *rest)

        monkeypatch.setattr(loop._Trainer, "_turn", spy)

    return register


def arguments(config):
    """The command line of a configuration of the tests."""
    return (
        f"train --data folder --root {config.root} --out {config.out} --preset tiny --batch 2 "
        "--max-disparity 16 --crop 32 64 --steps 6 --save-every 2 --precision fp32 --device cpu "
        "--workers 0 --ema 0.9 --schedule cosine --clip 100 --micro-batch 2 --no-memory-check"
    ).split()


@pytest.mark.slow
def test_a_killed_run_ends_where_an_uninterrupted_one_does(config, tmp_path, on_step):
    """By SIGKILL, in a process of its own, in the middle of step 5; then the same command."""
    config = replace(config, ema=0.9, schedule="cosine", clip=100.0)
    killed = replace(config, out=tmp_path / "killed")
    command = [sys.executable, "-m", "training.dying_run", "5:kill", *arguments(killed)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    ended = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, timeout=300
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert steps_of(killed.out / "checkpoints") == [2, 4]
    taken = []
    on_step(taken.append)
    whole = weights(train(config))
    assert taken == [0, 1, 2, 3, 4, 5]
    taken.clear()
    resumed = weights(train(killed))
    assert taken == [4, 5]
    assert same(whole, resumed)
    states = [load_newest(run.out / "checkpoints") for run in (config, killed)]
    assert same(states[0]["model"], states[1]["model"])
    for one, other in zip(*(s["optimizer"]["state"].values() for s in states), strict=True):
        assert same(one, other)


def test_a_run_that_is_finished_takes_no_step(config, on_step):
    taken = []
    on_step(taken.append)
    first = weights(train(replace(config, steps=2)))
    taken.clear()
    assert same(first, weights(train(replace(config, steps=2))))
    assert taken == []


def test_a_finished_run_that_has_lost_its_weights_writes_them_again(config):
    model = train(replace(config, steps=2, ema=0.9))
    first = model.read_bytes()
    model.unlink()
    assert train(replace(config, steps=2, ema=0.9)).read_bytes() == first


def test_random_generators_go_on_where_they_were(config, tmp_path, monkeypatch):
    """The network draws nothing while it trains; what a later one may draw must resume, too."""
    judge, drawn = loop._Trainer._judge, []

    def drawing(self, *rest):
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002
        return judge(self, *rest)

    monkeypatch.setattr(loop._Trainer, "_judge", drawing)
    train(replace(config, steps=4))
    whole = drawn.copy()
    drawn.clear()
    parts = replace(config, out=tmp_path / "parts")
    train(replace(parts, steps=2))
    (parts.out / "config.json").unlink()  # two steps were the whole of another run
    (parts.out / "model.safetensors").unlink()
    train(replace(parts, steps=4))
    assert drawn == whole


def test_states_of_generators_survive_being_saved():
    buffer = io.BytesIO()
    torch.save(random_state(), buffer)
    first = (random.random(), np.random.rand(), torch.rand(2).tolist())  # noqa: NPY002
    buffer.seek(0)
    set_random_state(torch.load(buffer, weights_only=True))
    assert first == (random.random(), np.random.rand(), torch.rand(2).tolist())  # noqa: NPY002


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGINT, 130)],
)
def test_a_signal_saves_first_and_the_run_goes_on_later(
    config, tmp_path, monkeypatch, number, code
):
    """It comes between the two micro-batches of step 3: the step is undone and taken again."""
    config = replace(config, batch=4, steps=5, save_every=5)
    whole = weights(train(replace(config, out=tmp_path / "whole")))
    backward, calls = loop.OptimiserStep._backward, []

    def signalled(self, *arguments, **options):
        calls.append(None)
        if len(calls) == 3 * 2 + 1:
            os.kill(os.getpid(), number)
        return backward(self, *arguments, **options)

    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        patch.setattr(loop.OptimiserStep, "_backward", signalled)
        with pytest.raises(TrainingStopped, match="saved after 3 steps: the same") as stopped:
            train(config)
    assert stopped.value.exit_code == code
    assert len(calls) == 7
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert steps_of(config.out / "checkpoints") == [3]
    assert same(whole, weights(train(config)))


@pytest.mark.parametrize("steps", [pytest.param(6, marks=pytest.mark.slow), 4])
def test_a_signal_cuts_a_validation_off_which_is_made_up_for_later(
    config, tmp_path, monkeypatch, steps
):
    """It comes at the third of six images after step 4, which may be the last."""
    config = replace(config, steps=steps, validate_every=4, validate_root=config.root, save_every=9)
    whole = replace(config, out=tmp_path / "whole")
    expected = weights(train(whole))
    measured, calls = validation._measured, []

    def signalled(*arguments):
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return measured(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "_measured", signalled)
        with pytest.raises(TrainingStopped, match="saved after 4 steps"):
            train(config)
    assert len(calls) == 3
    assert not (config.out / "best.json").exists()
    with monkeypatch.context() as patch:  # making it up is not lost by a death after it
        patch.setattr(loop._Trainer, "_step", None)
        with pytest.raises(TypeError) if steps > 4 else nullcontext():
            train(config)
    assert same(expected, weights(train(config)))
    train(config)  # which has nothing left to do
    for name in ("best.json", "best.safetensors"):
        assert (config.out / name).read_bytes() == (whole.out / name).read_bytes()
    validated = [
        [line["step"] for line in lines if line["kind"] == "validation"]
        for lines in (read_metrics(run.out / "metrics.jsonl") for run in (config, whole))
    ]
    assert validated == [sorted({4, steps})] * 2


@pytest.mark.parametrize("moment", [pytest.param("before", marks=pytest.mark.slow), "after"])
def test_what_ends_a_run_in_a_validation_loses_no_step(config, tmp_path, monkeypatch, moment):
    """As a picture that is damaged, or a kill between the record and the checkpoint."""
    config = replace(
        config, validate_every=4, validate_root=config.root, validate_count=2, save_every=9
    )
    whole = replace(config, out=tmp_path / "whole")
    expected, validate = weights(train(whole)), loop._Trainer._validate

    def failing(self, done, *rest):
        if moment == "after":
            validate(self, done, *rest)
        raise ValueError("a damaged picture")

    with monkeypatch.context() as patch:
        patch.setattr(loop._Trainer, "_validate", failing)
        with pytest.raises(ValueError, match="damaged picture"):
            train(config)
    assert steps_of(config.out / "checkpoints") == [4]
    assert same(expected, weights(train(config)))
    lines = read_metrics(config.out / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [4, 6]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 3, 4, 5, 6]


def test_a_signal_that_comes_again_while_the_summary_is_written_changes_nothing(
    config, monkeypatch, on_step
):
    """Where it would end the process, nothing would tell that the run has saved."""
    ways = []
    monkeypatch.setattr(record, "write_summary", lambda _: ways.append(signal.getsignal(15)))
    on_step(lambda step: step == 1 and os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingStopped, match="saved after 1 steps"):
        train(config)
    assert [way.__name__ for way in ways] == ["_note"]


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_is_heard_while_a_sample_is_waited_for(
    config, tmp_path, monkeypatch, capfd, workers
):
    """One that never comes, as where a disk hangs: in the midst of step 2."""
    config = replace(config, batch=4, steps=3, save_every=9, workers=workers)
    whole = weights(train(replace(config, out=tmp_path / "whole")))
    getitem = TrainingSamples.__getitem__

    def hanging(self, position):
        if position == 2 * 4 + 3:
            os.kill(os.getppid() if workers else os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return getitem(self, position)

    start = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
        patch.setattr(TrainingSamples, "__getitem__", hanging)
        with pytest.raises(TrainingStopped, match=r"saved after [012] steps"):  # a worker is ahead
            train(config)
    assert time.monotonic() - start < 40
    assert (
        "\nSIGTERM: the run will stop after this micro-batch and save\n" in capfd.readouterr().err
    )
    assert active_children() == []
    assert same(whole, weights(train(config)))


def test_a_run_that_fails_waits_for_no_loader(config, on_step):
    """Their process would wait for them at its end, as they ignore the signal it sends them."""

    def fail(step):
        if step == 1:
            assert len(active_children()) == 2
            raise RuntimeError("made to fail")

    on_step(fail)
    with pytest.raises(RuntimeError, match="made to fail"):
        train(replace(config, workers=2))
    assert active_children() == []


def test_a_loader_that_is_killed_ends_the_run_in_a_line(config, on_step):
    """As by the system when memory runs out."""
    on_step(lambda step: step == 1 and os.kill(active_children()[0].pid, signal.SIGKILL))
    with pytest.raises(ChildProcessError, match=r"has died( \(Killed\))?, .*--workers") as told:
        train(replace(config, steps=500, workers=1))
    assert "\n" not in str(told.value)
    assert active_children() == []


def test_a_full_disk_ends_the_run_in_a_line_and_spares_the_last_checkpoint(
    config, monkeypatch, on_step
):
    """The disk is full from step 3 on: the write after it fails with its first bytes there."""

    def fill(step):
        if step == 3:
            monkeypatch.setattr(checkpoint, "os", FullDisk())

    on_step(fill)
    with pytest.raises(OSError, match=r"step-0000004.pt: not written \(No space left") as caught:
        train(config)
    assert "\n" not in str(caught.value)
    folder = config.out / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-0000002.pt"]
    assert load_newest(folder)["step"] == 2


class FullDisk:
    """`os` as it is when there is no space left."""

    @staticmethod
    def fsync(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    """One cut short, one with a single bit turned in the midst of its numbers."""
    state = {"weight": torch.arange(10_000.0)}
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, state | {"number": step}, keep=3)
    cut = tmp_path / "step-0000003.pt"
    cut.write_bytes(cut.read_bytes()[:-100])
    turned = tmp_path / "step-0000002.pt"
    content = bytearray(turned.read_bytes())
    content[len(content) // 2] ^= 1
    turned.write_bytes(content)
    with (
        pytest.warns(UserWarning, match="step-0000003.pt: damaged"),
        pytest.warns(UserWarning, match="step-0000002.pt: damaged"),
    ):
        found = load_newest(tmp_path)
    assert (found["step"], found["number"]) == (1, 1)
    assert torch.equal(found["weight"], state["weight"])


def test_a_folder_without_a_whole_checkpoint_has_none(tmp_path):
    assert load_newest(tmp_path / "missing") is None
    (tmp_path / "step-0000001.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"):
        assert load_newest(tmp_path) is None


def test_the_newest_are_kept(config):
    train(replace(config, steps=4, save_every=1, keep=2))
    assert steps_of(config.out / "checkpoints") == [3, 4]


def test_what_killed_writes_left_is_removed_before_the_first_step(config, on_step):
    """A full disk may need the room; files of the user's stay, whatever their names."""
    users = [".my.private.notes.md", ".vscode.settings.json", ".a.b.png", ".model.0123abcd.pt"]
    leftovers = [config.out / f".ea_psmnet-{uuid4().hex}.safetensors"]
    leftovers.append(config.out / "checkpoints" / f".ea_psmnet-{uuid4().hex}.pt")
    leftovers[1].parent.mkdir(parents=True)
    for path in [*leftovers, *(config.out / name for name in users)]:
        path.touch()
    there = []
    on_step(lambda step: there.extend(path.exists() for path in leftovers))
    train(replace(config, steps=1))
    assert there == [False, False]
    assert all((config.out / name).exists() for name in users)
