"""What a step cost: time, waiting for data, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

__all__ = ["StepClock"]

T = TypeVar("T")


class StepClock:
    """Started before a step."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0

    def timed(self, values: Iterable[T]) -> Iterator[T]:
        """Pass values on, counting the time that they take to come as waiting for data."""
        source = iter(values)
        while True:
            before = time.perf_counter()
            try:
                value = next(source)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - before
            yield value

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
