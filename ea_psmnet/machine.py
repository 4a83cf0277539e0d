"""Settings of the machine that must be made before tensors are."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

__all__ = [
    "Device",
    "Precision",
    "available_memory",
    "choose_device",
    "device_name",
    "end_with_parent",
    "ending_children",
    "free_memory",
    "has_fast_bfloat16",
    "held_memory",
    "keep_freed_memory",
    "plannable",
    "use_threads",
]

Device = Literal["auto", "cpu", "cuda"]
"""Where to compute; `auto` takes a CUDA device where there is one."""

Precision = Literal["auto", "exact", "fast"]
"""`exact` is float32; `fast`, which `auto` means, is bfloat16 where the device is fast at it."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4

_PR_SET_PDEATHSIG = 1  # of Linux's prctl

_PLANNABLE = 0.9

_MOST_THREADS = 1024


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, so that large buffers are not paged in at every layer.

    A process keeps its peak resident until it ends, and convolutions on the CPU run faster.

    Returns:
        Whether the allocator took the settings; false on other systems than glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 16 * 2**20))
    return all(mallopt(option, value) == 1 for option, value in settings)


def use_threads(count: int | None) -> None:
    """Compute with so many threads, here and in processes started from here; None changes nothing.

    Raises:
        ValueError: not a number of threads.
    """
    if count is None:
        return
    if not 1 <= count <= _MOST_THREADS:
        raise ValueError(f"{count} threads: expected 1 to {_MOST_THREADS}")
    os.environ["OMP_NUM_THREADS"] = str(count)
    import cv2
    import torch

    torch.set_num_threads(count)
    cv2.setNumThreads(count)


def choose_device(device: str | torch.device) -> str:
    """`cpu`, `cuda` or, where it was asked for by its number, `cuda:1`.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    name = str(device)
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name in ("auto", "cpu"):
        return "cuda" if cards and name == "auto" else "cpu"
    asked = re.fullmatch(r"cuda(?::(\d+))?", name)
    if asked is None:
        raise ValueError(f"unknown device '{name}': choose auto, cpu, cuda or cuda:NUMBER")
    if int(asked[1] or 0) >= cards:
        seen = f"only {cards}, from cuda:0" if cards else "no CUDA device"
        raise ValueError(f"device '{name}' was asked for, but torch sees {seen}")
    return name


def device_name(device: torch.device) -> str:
    """What figures were measured on, for their readers."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def has_fast_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 faster than float32: AVX-512-BF16, AMX or CUDA."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def available_memory(device: torch.device) -> int:
    """Bytes that this process may still take, its share where several share a machine."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    share = free_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(share, _free_for_process())


def free_memory() -> int:
    """Bytes of main memory that the machine, or the container, still has."""
    return min(_free_on_machine(), _free_in_group())


def plannable(free: int) -> int:
    """Of so many free bytes, those to plan with: loaders and other programs want some too."""
    return int(_PLANNABLE * free)


def held_memory(device: torch.device) -> int:
    """Bytes that this process holds: resident on the CPU, 0 where that is unknown, or on a card."""
    import torch

    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else 0


def _free_on_machine() -> int:
    meminfo = Path("/proc/meminfo")
    text = meminfo.read_text() if meminfo.is_file() else ""
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 2**63


def _free_in_group() -> int:
    """What a container may still take (Linux control groups, version 2)."""
    folder = Path("/sys/fs/cgroup")
    limit, used = (folder / name for name in ("memory.max", "memory.current"))
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return 2**63
    return max(0, int(limit.read_text()) - int(used.read_text()))


def _free_for_process() -> int:
    """What limits of this process leave it: of its address space and of its data (`ulimit`)."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return 2**63
    import resource

    pages = [int(count) for count in statm.read_text().split()]
    held = {resource.RLIMIT_AS: pages[0], resource.RLIMIT_DATA: pages[5]}
    limits = {kind: resource.getrlimit(kind)[0] for kind in held}
    size = resource.getpagesize()
    left = (limits[k] - held[k] * size for k in held if limits[k] != resource.RLIM_INFINITY)
    return max(0, min(left, default=2**63))


def single_opencv_thread() -> None:
    """Make OpenCV use one thread, here and in worker processes forked later.

    It would take all cores in each worker. Not for a worker itself to call: one that inherited a
    pool of threads waits forever when it tells that pool to end.
    """
    import cv2

    cv2.setNumThreads(1)


@contextmanager
def ending_children() -> Iterator[None]:
    """Let SIGTERM leave by an exception: what has begun is cleaned up, and `subprocess.run` within
    ends its child.

    By default it ends this process alone, and the child goes on with nobody to wait for it.
    """
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python forbids it
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_parent(parent: int) -> None:
    """Have the system kill this process when its parent ends, be it killed itself.

    On Linux; elsewhere a child may live on.

    Args:
        parent: Process number of the parent. If that is gone already, this process ends here.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(f"error: process {parent}, which started this one, has ended")
