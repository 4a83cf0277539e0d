"""The program in a process of its own, as a user starts it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def command(*arguments: object) -> list[str]:
    """The line that starts a command, for `subprocess` with `cwd=ROOT`."""
    return [sys.executable, "-m", "ea_psmnet", *map(str, arguments)]


def run_command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever its exit code; `options` go to `subprocess.run`."""
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        **options,
    )


def alive(number: int) -> bool:
    """Whether a process runs; a zombie does not, as nobody need be there to collect it."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; fail after 30 seconds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 30 seconds"
        time.sleep(0.05)


def write_programs(folder: Path, programs: Mapping[str, str]) -> None:
    """Write executable files, texts by path, as stand-ins for what a script starts."""
    for name, text in programs.items():
        program = folder / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
