"""Helpers of the benchmarks: fresh processes that answer requests, result files, the machine.

Import it before torch: it makes the packages importable and settings of threads take effect.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import ea_psmnet
from ea_psmnet.console import exit_code
from ea_psmnet.experiments.own_process import run_program
from ea_psmnet.files import write_json, write_text
from ea_psmnet.records import parse_record
from ea_psmnet.store import Store, digest

T = TypeVar("T")
Request = dict[str, Any]
"""Plain values that a process is asked for, or answers."""

_ANSWER = "--answer"
"""The argument with which a script answers a request instead of running."""


# Processes ----------------------------------------------------------------------------------------


def ask(script: str | Path, request: Request, env: dict[str, str] | None = None) -> Request:
    """Let a fresh process of a script answer a request.

    Args:
        script: Path of the script, whose main program is `run(..., answer)`.
        request: Plain values.
        env: Environment variables of the process; None for those of this one.

    Raises:
        ChildProcessError: The process died; its traceback is on stderr.
        ValueError: The answer is not JSON.
    """
    process = run_program(
        str(Path(script).resolve()),
        [_ANSWER],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=env,
    )
    if process.returncode:
        told = f"{script}: the process that measures ended with exit status {process.returncode}"
        raise ChildProcessError(f"{told}; the reason is above, and the request was {request}")
    return parse_record(process.stdout, Request, f"the answer of {script}", finite=False)


def run(main: Callable[[], object], answer: Callable[[Request], Request] | None = None) -> None:
    """Run a script: its main program, or the answer to a request of `ask`."""
    if answer is None or sys.argv[1:] != [_ANSWER]:
        sys.exit(exit_code(main))
    json.dump(answer(json.load(sys.stdin)), sys.stdout)


class Answers:
    """Answers to requests, kept on disk so that a benchmark that was stopped goes on.

    Args:
        folder: Folder for the answers.
        settings: Everything that all answers depend on.

    Raises:
        ValueError: The folder has answers under other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self._store = Store(folder, settings)
        name = f"{digest('sittings')}.json"
        self.sittings = 1 + (self._store.read(name, int, f"delete {folder} to begin anew") or 0)
        """How often the benchmark was started, including this time."""
        self._store.write(name, self.sittings)

    def answer(
        self, request: Request, number: int, ask: Callable[[Request], Request], kind: type[T]
    ) -> T:
        """Return the answer to the `number`th repetition of a request, kept or from `ask`.

        Args:
            request: Plain values.
            number: Number of the repetition, from 0.
            ask: Answers requests in plain values.
            kind: Type of the answer, such as a dataclass.

        Raises:
            ValueError: The answer is not of this type.
        """
        key = json.dumps([request, number], sort_keys=True)
        name = f"{digest(key)}.json.gz"
        remedy = f"the answer to {key} is damaged: delete the file to measure again"
        found = self._store.read(name, kind, remedy)
        if found is None:
            answered = ask(request)
            found = parse_record(json.dumps(answered), kind, key, finite=False)
            self._store.write(name, answered)
        return found

    def clear(self) -> None:
        """Delete the answers, which are in the report."""
        self._store.clear()


def told_sittings(sittings: int) -> str:
    """A remark for the report of a benchmark that was started more than once; otherwise nothing."""
    return f", measured in {sittings} sittings" if sittings > 1 else ""


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Run processes that only compute beside what is measured."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"from ea_psmnet.machine import end_with_parent\nend_with_parent({os.getpid()})\n"
        "while True: pass"
    )
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


# Machine and results ------------------------------------------------------------------------------


def code_hash() -> str:
    """SHA-256 of the sources that are measured: the package and the benchmarks."""
    hashed = hashlib.sha256()
    package = Path(ea_psmnet.__file__).parent
    # `datasets` is a link, which rglob does not enter.
    for folder in (package, (package / "datasets").resolve(), Path(__file__).parent):
        for source in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".c")):
            name = str(source.relative_to(folder))
            hashed.update(name.encode() + b"\0" + source.read_bytes())
    return hashed.hexdigest()


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def worker_counts() -> list[int]:
    """Numbers of workers to try: 0, 1, 2, 4 and so on, up to the number of cores."""
    return [0, *(2**k for k in range(cores().bit_length()) if 2**k <= cores())]


def machine(*libraries: str) -> str:
    """Describe the machine: cores, architecture, GPU and versions of libraries."""
    import torch

    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    parts = [f"{cores()} cores", platform.machine(), *gpu, *libraries]
    return ", ".join([*parts, f"torch {torch.__version__}"])


def write_results(out: Path, record: Any, text: str) -> None:
    """Write the results of a benchmark as OUT.json and OUT.md."""
    write_json(out.with_suffix(".json"), record)
    write_text(out.with_suffix(".md"), text)
