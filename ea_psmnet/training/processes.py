"""The processes of a run: how they find each other, and what the main one tells the others."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list

from ea_psmnet.machine import Device, choose_device

__all__ = ["from_main", "is_first", "join_processes"]

_PATIENCE = timedelta(minutes=5)
"""How long processes wait for one that neither answers nor has died."""


def is_first() -> bool:
    """Whether this is the main process, or the only one; known before they have met."""
    return os.environ.get("RANK", "0") == "0"


def join_processes(device: Device) -> Accelerator:
    """Meet the other processes that torchrun has started, if it has."""
    if is_first() and _restarts_on_a_shared_store():
        print(
            "warning: a worker that torchrun restarts may hang on the addresses of those before "
            "it: start by scripts/launch, which keeps them apart",
            file=sys.stderr,
        )
    AcceleratorState._reset_state()  # a run before this one may have been on another device
    return Accelerator(
        cpu=choose_device(device) == "cpu",
        mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )


def from_main(value: Any) -> Any:
    """The main process's value, in every process."""
    return broadcast_object_list([value])[0]


def _restarts_on_a_shared_store() -> bool:
    """Whether restarted workers would read what dead ones wrote (pytorch issue 135712).

    torchrun then lends all starts one store, without a prefix for each.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return shared and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
