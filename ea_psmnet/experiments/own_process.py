"""Programs in fresh processes that end with the process that started them.

As a program it runs another: `python -m ea_psmnet.experiments.own_process PARENT PROGRAM ...`.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ea_psmnet.console import exit_code
from ea_psmnet.machine import end_with_parent, ending_children
from ea_psmnet.records import parse_record

__all__ = ["in_own_process", "run_module", "run_or_answer"]

_ANSWER = "--answer"
"""The argument that tells a module it is to answer."""


def run_module(
    module: str, arguments: Sequence[str] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a module as `python -m` does; its process ends when this one does, however that ends.

    Args:
        module: Its name.
        arguments: Of its command line.
        options: Of `subprocess.run`.

    Raises:
        subprocess.SubprocessError: As of `subprocess.run`.
    """
    tied = [sys.executable, "-m", "ea_psmnet.experiments.own_process", str(os.getpid())]
    with ending_children():
        return subprocess.run([*tied, module, *arguments], text=True, check=False, **options)


def in_own_process(module: str, request: dict[str, Any]) -> dict[str, Any]:
    """What a fresh process of a module answers by `run_or_answer`.

    Raises:
        subprocess.CalledProcessError: It died; its traceback is on stderr.
        ValueError: Its answer is no JSON.
    """
    process = run_module(
        module,
        [_ANSWER],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    process.check_returncode()
    return parse_record(process.stdout, dict[str, Any], f"the answer of {module}", finite=False)


def run_or_answer(
    run: Callable[[], object], answer: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """What a module that asks itself does as a program; ends the process.

    Args:
        run: the program, where a person started it.
        answer: to what `in_own_process` asked.
    """
    if sys.argv[1:] != [_ANSWER]:
        sys.exit(exit_code(run))
    json.dump(answer(json.load(sys.stdin)), sys.stdout)


def _main(parent: str, module: str, *arguments: str) -> None:
    end_with_parent(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
