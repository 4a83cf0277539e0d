"""The processes of a run: meeting, signals, and the death of a launcher.

Torch is imported late, so that a process notices the death of its launcher before.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from ea_psmnet.machine import (
    Device,
    choose_device,
    is_first_process,
    leave_group_at_exit,
    when_parent_ends,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

_PATIENCE = timedelta(minutes=5)
"""How long processes wait for one that is alive but does not answer."""


def join_processes(device: Device) -> Accelerator:
    """Join the process group, if torchrun has started several processes."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    if is_first_process() and _restarts_on_a_shared_store():
        print(
            "warning: a worker that torchrun restarts may hang on the addresses of those before "
            "it: start by scripts/launch, which keeps them apart",
            file=sys.stderr,
        )
    leave_group_at_exit()
    AcceleratorState._reset_state()  # an earlier run in this process may have used another device
    return Accelerator(
        cpu=choose_device(device) == "cpu",
        mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )


def from_main(value: Any) -> Any:
    """Broadcast a value from the main process."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def _restarts_on_a_shared_store() -> bool:
    """Whether restarted workers would read entries of dead ones (pytorch issue 135712).

    torchrun then uses one store for all starts, without a prefix for each.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return shared and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


# Signals ------------------------------------------------------------------------------------------


T = TypeVar("T")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ECHO = 3.0
"""Seconds within which a terminal's Ctrl-C and torchrun's copy of it arrive."""
_GRACE = 150.0
"""Seconds to save after the launcher died, as many as `scripts/launch` grants: the process may be
waiting for others that no longer answer."""


class TrainingStopped(Exception):  # noqa: N818 - not an error: requested
    """A run has saved and ended on a signal.

    Attributes:
        exit_code: 128 + the signal, as in shells: 143 for SIGTERM, 130 for Ctrl-C.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(
            f"stopped by {_name(number)}, saved after {step} steps: "
            "the same command continues the run"
        )
        self.exit_code = 128 + number


class _CutOff(BaseException):
    """A signal interrupted the wait for a value."""


class StopRequest:
    """Context manager that records the first SIGTERM or Ctrl-C and acknowledges it at once.

    Later SIGTERMs have no effect, because launchers and SLURM repeat them. A second Ctrl-C ends the
    run at once, unless it is the first one passed on by a launcher.
    """

    def __init__(self) -> None:
        self.number = 0
        """Number of the signal; 0 for none."""
        self._came = 0.0
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows it only there
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def until_signal(self, values: Iterable[T]) -> Iterator[T]:
        """Yield values until a signal comes, also if it comes during the wait for a value."""
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
            if is_first_process():
                line = f"\n{_name(number)}: the run will stop after this micro-batch and save\n"
                os.write(2, line.encode())  # not by Python's buffers, which may be in use
        elif number == signal.SIGINT and now - self._came > _ECHO:
            raise KeyboardInterrupt
        if self._waiting:
            self._waiting = False
            raise _CutOff


def end_with_launcher() -> None:
    """Under torchrun, send this process SIGTERM when torchrun dies, for example by SIGKILL.

    Otherwise it would train on alone and block the other machines and a new start of the run.
    Without torchrun a run outlives its parent, as under `nohup` and `setsid`.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        when_parent_ends(_end)


def _end() -> None:
    """Send this process SIGTERM, and SIGKILL once it has had time to save."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has no SIGKILL


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
