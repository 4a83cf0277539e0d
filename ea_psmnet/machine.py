"""The machine: devices, memory, threads and processes."""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]
"""Device; `auto` is a CUDA device where there is one."""

Precision = Literal["auto", "exact", "fast"]
"""`exact` is float32; `fast`, like `auto`, is bfloat16 where the device is fast at it."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4

_PR_SET_PDEATHSIG = 1  # of Linux's prctl

_PLANNABLE = 0.9

_MOST_THREADS = 1024


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory, so that large buffers are not paged in again in each layer.

    Prediction and training on the CPU are faster (docs/performance.md), and the process keeps its
    peak resident until it ends. The commands call this; other programs may, once, at their start.

    Returns:
        Whether the allocator accepted the settings; false without glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 16 * 2**20))
    return all(mallopt(option, value) == 1 for option, value in settings)


def use_threads(count: int | None) -> None:
    """Set the number of threads of this process and of its child processes, unless it is None.

    Raises:
        ValueError: The number is out of range.
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
    """Resolve a device to `cpu`, `cuda` or, if its index is given, for example `cuda:1`.

    Raises:
        ValueError: There is no such device.
    """
    import torch

    name = str(device)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name in ("auto", "cpu"):
        return "cuda" if gpus and name == "auto" else "cpu"
    asked = re.fullmatch(r"cuda(?::(\d+))?", name)
    if asked is None:
        raise ValueError(f"unknown device '{name}': choose auto, cpu, cuda or cuda:NUMBER")
    if int(asked[1] or 0) >= gpus:
        seen = f"only {gpus}, from cuda:0" if gpus else "no CUDA device"
        raise ValueError(f"device '{name}' was asked for, but torch sees {seen}")
    return name


def device_name(device: torch.device) -> str:
    """Name of a device, for the readers of measurements."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def has_fast_bfloat16(device: str) -> bool:
    """Whether a device computes bfloat16 faster than float32: AVX-512-BF16, AMX or CUDA."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def available_memory(device: torch.device) -> int:
    """Bytes that this process can still allocate: its share, if processes share a machine."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    share = free_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(share, _free_for_process())


def free_memory() -> int:
    """Free bytes of main memory of the machine or the container."""
    return min(_free_on_machine(), _free_in_groups())


def plannable(free: int) -> int:
    """The part of the free bytes to plan with; data workers and other programs need the rest."""
    return int(_PLANNABLE * free)


def held_memory(device: torch.device) -> int:
    """Bytes that the system has given to this process: resident, or reserved on a GPU."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return psutil.Process().memory_info().rss


def held_bytes(device: torch.device) -> int:
    """Bytes in use: resident on a CPU, allocated on a GPU.

    Raises:
        OSError: The system does not report it.
    """
    import torch

    return torch.cuda.memory_allocated(device) if device.type == "cuda" else status_bytes("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """Peak of `held_bytes` since `reset_peak`, or since the process started."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        return status_bytes("VmHWM")
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts in bytes, others in KiB


def reset_peak(device: torch.device) -> None:
    """Restart the measurement of `peak_bytes`.

    Raises:
        OSError: The system cannot restart it.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM


def status_bytes(field: str) -> int:
    """A field of Linux's /proc/self/status in bytes.

    Raises:
        OSError: The system does not report it.
    """
    status = Path("/proc/self/status")
    found = status.is_file() and re.search(rf"{field}:\s+(\d+) kB", status.read_text())
    if not found:
        raise OSError(f"/proc/self/status has no {field}: memory on the CPU is measured on Linux")
    return int(found[1]) * 1024


def _free_on_machine() -> int:
    import psutil

    return psutil.virtual_memory().available


def _free_in_groups(system: Path = Path("/")) -> int:
    """Bytes that the control groups of this process still allow (Linux, version 2)."""
    groups, own = system / "sys/fs/cgroup", system / "proc/self/cgroup"
    path = re.search("^0::/(.*)$", own.read_text(), re.MULTILINE) if own.is_file() else None
    folder = groups / (path[1] if path else "")
    each = (_free_in_group(f) for f in (folder, *folder.parents) if f.is_relative_to(groups))
    return max(0, min(each))


def _free_in_group(folder: Path) -> int:
    """Bytes that a control group allows; what only caches files makes room."""
    limit, used, details = (folder / f"memory.{name}" for name in ("max", "current", "stat"))
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return 2**63
    cached = re.search(r"^inactive_file (\d+)$", details.read_text(), re.MULTILINE)
    return int(limit.read_text()) - int(used.read_text()) + (int(cached[1]) if cached else 0)


def _free_for_process() -> int:
    """Bytes left by the limits of the address space and the data of this process (`ulimit`)."""
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


def is_first_process() -> bool:
    """Whether this is the first process of a launch (torchrun), which speaks for all of them."""
    return os.environ.get("RANK", "0") == "0"


def leave_group_at_exit() -> None:
    """Leave torch's process group when this program ends; with gloo's threads it may abort."""
    atexit.register(_leave_group)


def _leave_group() -> None:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def single_opencv_thread() -> None:
    """Make OpenCV use one thread in this process and in data workers forked later.

    Otherwise each worker would use all cores. A worker must not call it: having inherited a pool of
    threads, it would wait forever for the pool to end.
    """
    import cv2

    cv2.setNumThreads(1)


@contextmanager
def ending_children() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, so that cleanup runs and child processes end.

    By default these signals end this process alone, and its child processes continue. Where Python
    ignores exceptions, in destructors and callbacks, the signal is sent again a moment later. Under
    `nohup` SIGHUP remains ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # Python allows it only there
        yield
        return

    endings = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        endings.append(signal.SIGHUP)  # a terminal was closed
    signals = {128 + number: number for number in endings}
    pending: dict[int, threading.Timer] = {}

    def report(ignored: sys.UnraisableHookArgs) -> None:
        error = ignored.exc_value
        if not isinstance(error, SystemExit) or error.code not in signals:
            return report_before(ignored)
        again = threading.Timer(0.01, os.kill, (os.getpid(), signals[error.code]))
        again.daemon = True
        again.start()
        pending[error.code] = again

    report_before, sys.unraisablehook = sys.unraisablehook, report
    before = {n: signal.signal(n, lambda n, _: sys.exit(128 + n)) for n in endings}
    try:
        yield
    finally:
        waiting = {code: timer for code, timer in pending.items() if timer.is_alive()}
        for timer in waiting.values():
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = report_before
        if waiting:
            sys.exit(next(iter(waiting)))


def end_with_parent(parent: int) -> None:
    """Make Linux kill this process when its parent, of this process id, ends in any way.

    If the parent has ended already, this process exits. Other systems do not support this.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(f"error: process {parent}, which started this one, has ended")


def when_parent_ends(then: Callable[[], object]) -> None:
    """Call a function, in a thread, when the parent of this process has ended in any way.

    Unlike with `end_with_parent`, the parent's thread that started this process may end before.
    Windows does not support this.
    """

    def wait(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(1)
        then()

    threading.Thread(target=wait, args=(os.getppid(),), daemon=True).start()
