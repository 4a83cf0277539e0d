"""Settings of the machine that must be made before tensors are."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Literal

__all__ = ["Device", "Precision", "choose_device", "has_fast_bfloat16", "keep_freed_memory"]

Device = Literal["auto", "cpu", "cuda"]
"""Where to compute; `auto` takes a CUDA device where there is one."""

Precision = Literal["auto", "exact", "fast"]
"""`exact` is float32; `fast`, which `auto` means, is bfloat16 where the device is fast at it."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, so that large buffers are not paged in at every layer.

    A process keeps its peak resident until it ends, and convolutions on the CPU run faster.

    Returns:
        Whether the allocator took the settings; false on other systems than glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 2**20))
    return all(mallopt(option, value) == 1 for option, value in settings)


def choose_device(device: Device) -> str:
    """`cpu` or `cuda`.

    Raises:
        ValueError: `cuda` was asked for and there is none.
    """
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ValueError("device 'cuda' was asked for, but torch sees no CUDA device")
    return "cuda" if available and device != "cpu" else "cpu"


def has_fast_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 faster than float32: AVX-512-BF16, AMX or CUDA."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags
