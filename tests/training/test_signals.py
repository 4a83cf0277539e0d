"""Signals that ask a run to end, and their repetitions."""

import os
import signal

import pytest

from ea_psmnet.training import signals
from ea_psmnet.training.signals import StopRequest


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
    monkeypatch.setattr(signals, "_ECHO", -1.0)
    with StopRequest() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
