"""Memory and time: the budget of a process, and the time that work takes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

from ea_psmnet.machine import available_memory, status_bytes
from ea_psmnet.tables import format_bytes, parse_bytes

# A memory budget ----------------------------------------------------------------------------------


GPUS = {
    "GTX 1080 Ti": 11,
    "Titan Xp": 12,
    "RTX 2080 Ti": 11,
    "RTX 3080": 10,
    "RTX 3090": 24,
    "RTX 4090": 24,
    "T4": 16,
    "V100": 32,
    "A100": 80,
    "H100": 80,
}
"""Memory of GPUs in GiB, the largest of several sizes; the first is that of Shen et al., WACV
2021."""


@dataclass(frozen=True)
class Budget:
    """Memory that a process may take in addition to the network it has loaded."""

    name: str
    """The budget as the user wrote it."""
    bytes: int

    def __str__(self) -> str:
        size = format_bytes(self.bytes)
        return size if _plain(self.name) == _plain(size) else f"{self.name}, {size}"


def parse_budget(text: str, device: str) -> Budget:
    """Read a budget: a size such as `11GiB`, a GPU's name, or `physical`, the memory that is free.

    Raises:
        ValueError: The text is none of these; the message lists the GPUs.
    """
    if text == "physical":
        return Budget("physical memory", available_memory(torch.device(device)))
    for name, gib in GPUS.items():
        if _plain(name) == _plain(text):
            return Budget(name, gib * 2**30)
    try:
        size = parse_bytes(text)
    except ValueError as error:
        choices = f"physical, or the name of a GPU: {', '.join(GPUS)}"
        raise ValueError(f"{error}; or give {choices}") from None
    if size < 1:
        raise ValueError(f"a budget of {text} leaves nothing to compute with")
    return Budget(text, size)


def _plain(name: str) -> str:
    return re.sub(r"\.0(?![0-9])|[\W_]", "", name).lower()


@contextmanager
def limited(budget: int, device: torch.device) -> Iterator[None]:
    """Limit the memory that this process may take in addition to the memory that it holds.

    On a GPU this is the fraction of the caching allocator, on the CPU the limit of data segments
    (RLIMIT_DATA), not of address space, because the network does not use the libraries' mappings.
    """
    if device.type == "cuda":
        # The only call here that needs an index.
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.empty_cache()  # otherwise reserved memory would come on top
        total = torch.cuda.get_device_properties(index).total_memory
        allowed = torch.cuda.memory_reserved(index) + budget
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), index)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, index)
        return
    try:
        import resource
    except ModuleNotFoundError:
        raise OSError(
            "memory on the CPU is limited on Linux alone: measure on a GPU, or there"
        ) from None
    before = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = status_bytes("VmData") + budget
    soft = allowed if before[1] == resource.RLIM_INFINITY else min(allowed, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


# Time ---------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished everything that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that work on a device takes."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of several runs in seconds, after one that is not counted."""
    return median([timed(work, device) for _ in range(1 + repeats)][1:])
