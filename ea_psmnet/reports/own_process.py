"""A question answered in a fresh process, where nothing measured before leaves a trace."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ea_psmnet.console import exit_code

__all__ = ["in_own_process", "run_or_answer"]

_ANSWER = "--answer"
"""The argument that tells a module it is to answer."""


def in_own_process(module: str, request: dict[str, Any]) -> dict[str, Any]:
    """What a fresh process of a module answers by `run_or_answer`.

    Raises:
        subprocess.CalledProcessError: it died; its traceback is on stderr.
    """
    process = subprocess.run(
        [sys.executable, "-m", module, _ANSWER],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return json.loads(process.stdout)


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
