"""What this process or its card holds, and the most it has held."""

from __future__ import annotations

import re
from pathlib import Path

import torch

__all__ = ["held_bytes", "peak_bytes", "reset_peak", "status_bytes"]


def status_bytes(field: str) -> int:
    """A figure of this process from Linux's /proc/self/status, in bytes.

    Raises:
        OSError: the system has no such figure.
    """
    status = Path("/proc/self/status")
    match = status.is_file() and re.search(rf"{field}:\s+(\d+) kB", status.read_text())
    if not match:
        raise OSError(f"/proc/self/status has no {field}: memory on the CPU is measured on Linux")
    return int(match[1]) * 1024


def held_bytes(device: torch.device) -> int:
    """Memory held now: resident on the CPU, allocated on a card."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else status_bytes("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """The most held since `reset_peak`, or since the start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return status_bytes("VmHWM")


def reset_peak(device: torch.device) -> None:
    """Start measuring the peak from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
