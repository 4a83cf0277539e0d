"""Worker processes that load samples: what reaches them, what ends them, and what is told of it."""

import errno
import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children

import pytest
from command_line import ROOT, alive, wait_for

from ea_psmnet.datasets import workers
from ea_psmnet.datasets.workers import loaded


class Samples:
    """Calls a function in the process that loads."""

    def __init__(self, function):
        self.function = function

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.function(index)


def raising(error):
    def fail(_):
        raise error

    return fail


def handlers(_):
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("error", [OSError("gone"), ValueError("bad"), MemoryError("none")])
def test_errors_come_as_if_they_had_been_met_here(count, error):
    with (
        pytest.raises(type(error), match=str(error)) as told,
        loaded(Samples(raising(error)), count, batch_size=None) as samples,
    ):
        next(samples)
    assert "Traceback" not in str(told.value)


def test_workers_leave_signals_to_the_main_process():
    with loaded(Samples(handlers), 1, batch_size=None) as samples:
        assert next(samples) == [signal.SIG_IGN, signal.SIG_IGN]


def test_a_worker_that_dies_is_one_line_with_cause_and_remedy():
    with (
        pytest.raises(
            OSError, match=r"has died( \(Killed\))?, .* memory ran out: .*--workers"
        ) as e,
        loaded(Samples(die), 2, batch_size=None) as samples,
    ):
        next(samples)
    assert "\n" not in str(e.value)
    assert active_children() == []


def test_a_programming_error_in_a_worker_keeps_its_traceback():
    with (
        pytest.raises(RuntimeError, match="a mistake") as told,
        loaded(Samples(raising(RuntimeError("a mistake"))), 1, batch_size=None) as samples,
    ):
        next(samples)
    assert "Traceback" in str(told.value)


def test_no_worker_is_waited_for_that_does_not_end(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    start = time.monotonic()
    with (
        pytest.raises(RuntimeError, match="made to fail with 2 workers"),
        loaded(Samples(lambda _: time.sleep(60)), 2, batch_size=None),
    ):
        raise RuntimeError(f"made to fail with {len(active_children())} workers")
    assert time.monotonic() - start < 40
    assert active_children() == []


def test_workers_that_cannot_be_started_are_one_line(monkeypatch):
    monkeypatch.setattr(workers, "Queue", lambda: raising(OSError(errno.ENOSPC, "No space"))(0))
    with (
        pytest.raises(OSError, match=r"cannot be started \(No space\).*--workers.*/dev/shm"),
        loaded(Samples(handlers), 1, batch_size=None),
    ):
        pytest.fail("it was entered")


ORPHANING = """
import numpy as np
from multiprocessing import active_children
from ea_psmnet.datasets.workers import loaded
class Large:
    def __len__(self): return 100
    def __getitem__(self, index): return np.zeros(2_000_000)
with loaded(Large(), 1, batch_size=None, collate_fn=np.asarray) as samples:
    next(samples)
    print(active_children()[0].pid, flush=True)
    input()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_worker_ends_with_the_main_process_even_while_it_sends():
    main = subprocess.Popen(
        [sys.executable, "-c", ORPHANING],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = int(main.stdout.readline())
    time.sleep(0.5)  # until the pipe is full
    main.kill()
    main.wait(30)
    wait_for(lambda: not alive(worker))
