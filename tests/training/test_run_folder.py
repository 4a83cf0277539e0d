"""A run folder belongs to one process at a time."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training.tiny import TINY

from ea_psmnet.training.loop import train
from ea_psmnet.training.run_folder import claimed

HOLDER = """
import os, sys, time
from pathlib import Path
from ea_psmnet.training.run_folder import _locked
with _locked(Path(sys.argv[1])):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(300)
"""
"""As a run with a loader worker does, which outlives it when it is killed."""


@pytest.fixture
def holder(config):
    """A process that has the folder of `config`, and its worker's number."""
    config.out.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, config.out / ".lock"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = int(process.stdout.readline())
    yield process
    process.kill()
    os.kill(worker, signal.SIGKILL)
    process.communicate()


def test_a_folder_that_another_process_trains_in_is_refused_until_it_is_gone(config, holder):
    """Also while what it forked lives on."""
    with pytest.raises(ValueError, match=f"process {holder.pid} on .* trains in it") as caught:
        train(config)
    assert "\n" not in str(caught.value)
    assert [path.name for path in config.out.iterdir()] == [".lock"]
    holder.kill()
    holder.wait(timeout=60)
    assert train(config).is_file()


def test_a_run_gives_its_folder_back_at_its_end(config):
    for _ in range(2):
        with claimed(config, TINY, [6]):
            assert free(config.out / ".lock") == "held"
        assert free(config.out / ".lock") == "free"


def free(path):
    """What another process finds; this one would take its own lock once more."""
    code = (
        "import fcntl, sys\n"
        "try:\n    fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "    print('free')\nexcept BlockingIOError:\n    print('held')\n"
    )
    asked = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    return asked.stdout.strip()


def test_a_file_system_without_locks_is_used_without(config, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    with claimed(config, TINY, [6]):
        assert (config.out / "config.json").is_file()
