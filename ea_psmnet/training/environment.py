"""What a run ran on: revision of the program, versions of its libraries, machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ea_psmnet.files import write_json
from ea_psmnet.ops.native.soft_argmin import is_compiled_for

__all__ = ["describe_environment", "read_sessions", "record_session"]

_LIBRARIES = ("torch", "torchvision", "accelerate", "numpy", "opencv-python", "safetensors")


_ROUNDING = ("device", "processor", "precision", "threads", "compiled", "torch")
"""What decides in which order numbers are added up, and so their last bits."""


def record_session(path: Path, facts: dict[str, Any]) -> str:
    """Add a start of the run to its file: `facts`, the environment, when, and the command.

    A run that was resumed has one record a start, as the program or the machine may have changed.

    Returns:
        What has changed since the start before and decides rounding, as `threads 1 instead of 2`:
        nothing, or the run does not end bit for bit as if it had not been stopped.
    """
    now = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "command": sys.argv}
    before, own = read_sessions(path), facts | now | describe_environment()
    write_json(path, [*before, own])
    old, new = (_rounding(session) for session in (before[-1] if before else {}, own))
    return ", ".join(
        f"{name} {new[name]} instead of {old[name]}"
        for name in _ROUNDING
        if name in old and name in new and old[name] != new[name]  # older runs lack some
    )


def read_sessions(path: Path) -> list[dict[str, Any]]:
    """The starts that were recorded, without what is damaged; empty if there are none."""
    try:
        sessions = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return []
    return [s for s in sessions if isinstance(s, dict)] if isinstance(sessions, list) else []


def describe_environment() -> dict[str, Any]:
    """Revision, versions and machine as plain values; None is what cannot be told."""
    revision, dirty = _git_state(Path(__file__))
    return {
        "revision": revision,
        "dirty": dirty,
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "cuda": torch.version.cuda,
        "system": platform.platform(),
        "host": platform.node(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "compiled": is_compiled_for(torch.empty(0)),
    }


def _rounding(session: dict[str, Any]) -> dict[str, Any]:
    libraries = session.get("libraries")
    torch_version = libraries.get("torch") if isinstance(libraries, dict) else None
    return session | ({"torch": torch_version} if torch_version else {})


def _git_state(program: Path) -> tuple[str | None, bool | None]:
    """Commit of the clone that holds a file, and whether tracked files differ from it.

    Both None without git or a clone, also where the file lies in somebody else's repository.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(program.parent), *arguments]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return ended.stdout.strip() if ended.returncode == 0 else None

    if git("ls-files", "--error-unmatch", program.name) is None:
        return None, None
    changes = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD"), None if changes is None else bool(changes)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Its name as Linux tells it, or as Python does elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
