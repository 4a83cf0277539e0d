"""A question answered in a fresh process, where nothing measured before leaves a trace."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["ANSWER", "answer_parent", "in_own_process"]

ANSWER = "--answer"
"""The argument that tells a module it is to answer."""


def in_own_process(module: str, request: dict[str, Any]) -> dict[str, Any]:
    """What a fresh process of a module answers by `answer_parent`.

    Raises:
        subprocess.CalledProcessError: it died; its traceback is on stderr.
    """
    process = subprocess.run(
        [sys.executable, "-m", module, ANSWER],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return json.loads(process.stdout)


def answer_parent(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The fresh process's side."""
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
