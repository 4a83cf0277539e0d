"""Signals that ask a run to end, their repetitions, and launchers that die without one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import alive, wait_for

from ea_psmnet.training import processes
from ea_psmnet.training.processes import StopRequest

WORKER = """
import os, sys, time
from pathlib import Path
from ea_psmnet.training import processes
processes._GRACE = float(sys.argv[2])
with processes.StopRequest() as stop:
    processes.end_with_launcher()
    told = Path(sys.argv[1])
    told.write_text("up")
    while not (stop.number and processes._GRACE > 9):  # one of no grace is stuck in its saving
        time.sleep(0.01)
    told.write_text("saved")
"""


@pytest.fixture
def orphan(tmp_path):
    """A worker whose launcher is killed: `orphan(grace, settings)` gives its number and file."""
    started = []

    def start(grace, **settings):
        told = tmp_path / "told"
        launcher = subprocess.Popen(
            ["bash", "-c", '"$@" & echo $!; wait', "-", sys.executable, "-c", WORKER, told, grace],
            cwd=Path(__file__).parents[2],
            env={key: v for key, v in os.environ.items() if key != "TORCHELASTIC_RUN_ID"}
            | settings,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(int(launcher.stdout.readline()))
        wait_for(lambda: told.exists() and told.read_text() == "up")
        launcher.kill()
        launcher.wait(timeout=60)
        return started[0], told

    yield start
    for number in filter(alive, started):
        os.kill(number, signal.SIGKILL)


def test_a_worker_saves_and_ends_when_torchrun_was_killed(orphan):
    worker, told = orphan("60", TORCHELASTIC_RUN_ID="run")
    wait_for(lambda: not alive(worker))
    assert told.read_text() == "saved"


def test_a_worker_that_cannot_save_ends_all_the_same(orphan):
    """Others, which it waits for, may be gone, too."""
    worker, told = orphan("0.1", TORCHELASTIC_RUN_ID="run")
    wait_for(lambda: not alive(worker))
    assert told.read_text() == "up"


def test_without_torchrun_a_run_outlives_what_started_it(orphan):
    worker, told = orphan("0.1")
    time.sleep(2.5)
    assert alive(worker)
    assert told.read_text() == "up"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_a_launcher_repeats_is_one(number):
    """torchrun and SLURM do: the run must still save."""
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.number == 0
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert stop.number == number
    assert signal.getsignal(number) == before


def test_ctrl_c_again_ends_the_run_at_once_and_sigterm_again_does_not(monkeypatch):
    monkeypatch.setattr(processes, "_ECHO", -1.0)
    with StopRequest() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
