"""What a step cost: time, waiting for data, memory."""

from __future__ import annotations

import resource
import sys
import time

import torch

__all__ = ["StepClock"]


class StepClock:
    """Started before a step asks for its data."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0

    def data_came(self) -> None:
        """The step's samples are here."""
        self._waited = time.perf_counter() - self._start

    def figures(self, samples: int) -> dict[str, float]:
        """Samples a second, the share of the time waiting for data, and the most memory in GiB."""
        seconds = time.perf_counter() - self._start
        return {
            "samples_per_second": samples / seconds,
            "waiting": self._waited / seconds,
            "memory": _peak_memory() / 2**30,
        }


def _peak_memory() -> int:
    """The most bytes held so far: on the card, or resident."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # Linux counts in KiB, macOS in bytes
