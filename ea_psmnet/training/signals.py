"""SIGTERM, Ctrl-C and a launcher that died: the run is asked to save and end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

__all__ = ["StopRequest", "TrainingStopped", "end_with_launcher"]

T = TypeVar("T")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ECHO = 3.0
"""Seconds in which a terminal's Ctrl-C and torchrun's copy of it reach a process."""
_GRACE = 150.0
"""Seconds to save in for a process whose launcher has died, as `scripts/launch` gives others: it
may wait for processes that do not answer any more."""


class TrainingStopped(Exception):  # noqa: N818 - not an error: what was asked for
    """A run has saved and ended because a signal asked for it.

    Attributes:
        exit_code: 128 + the signal, as shells have it: 143 for SIGTERM, 130 for Ctrl-C.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(
            f"stopped by {_name(number)}, saved after {step} steps: "
            "the same command continues the run"
        )
        self.exit_code = 128 + number


class _CutOff(BaseException):
    """A signal has come while a value was waited for."""


class StopRequest:
    """Notes the first signal while it is entered, and tells at once that it has.

    SIGTERM again changes nothing: launchers and SLURM repeat it, and SIGKILL is there. Ctrl-C again
    ends the run at once, unless it is the same one, passed on by a launcher.
    """

    def __init__(self) -> None:
        self.number = 0
        """Of the signal that came; 0 for none."""
        self._came = 0.0
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def until_signal(self, values: Iterable[T]) -> Iterator[T]:
        """Pass values on until a signal comes, which is heard while one is waited for, too."""
        source = iter(values)
        while True:
            try:
                self._waiting = True
                if self.number:
                    return
                value = next(source)
            except (_CutOff, StopIteration):
                return
            finally:
                self._waiting = False
            yield value

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._came = number, now
            if os.environ.get("RANK", "0") == "0":  # one line, however many processes
                line = f"\n{_name(number)}: the run ends after the micro-batch at hand, and saves\n"
                os.write(2, line.encode())  # past Python's buffers, which may be in use just now
        elif number == signal.SIGINT and now - self._came > _ECHO:
            raise KeyboardInterrupt
        if self._waiting:
            self._waiting = False
            raise _CutOff


def end_with_launcher() -> None:
    """Under torchrun, send this process SIGTERM when torchrun has died, as by SIGKILL.

    Else it would train on alone, holding up the other machines and whoever starts the run again.
    Without torchrun a parent that ends is no reason to: `nohup` and `setsid` are there for that.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_outlive, args=(os.getppid(),), daemon=True).start()


def _outlive(launcher: int) -> None:
    """End this process when it gets another parent."""
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
