"""Variants side by side under one memory budget, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ea_psmnet.reports.tables import format_bytes, markdown_table
from ea_psmnet.reports.trial import Outcome, Trial

__all__ = ["compare", "comparison_markdown"]

_FIGURES = ("EPE", "bad-1", "bad-2", "bad-3", "D1")


def compare(trials: Sequence[Trial], *, timeout: float = 3600) -> list[Outcome]:
    """Run each trial in its own process, one after the other; a failure is an outcome too."""
    return [_run(trial, timeout) for trial in trials]


def _run(trial: Trial, timeout: float) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "outcome.json"
        request: dict[str, Any] = {"trial": asdict(trial), "outcome": str(answer)}
        try:
            process = subprocess.run(
                [sys.executable, "-m", "ea_psmnet.reports.trial"],
                input=json.dumps(request),
                text=True,
                timeout=timeout,
                check=False,
            )
            end = f"ended with exit status {process.returncode}"
        except subprocess.TimeoutExpired:
            end = f"did not end within {timeout:.0f} s"
        if answer.is_file():
            return Outcome(**json.loads(answer.read_text()))
        return Outcome(trial.label, 0, False, error=end)


def comparison_markdown(outcomes: Sequence[Outcome], budget: int) -> str:
    """A table with a row a variant, and a line for each that ran out of memory."""
    rows: list[dict[str, object]] = []
    notes = []
    for outcome in outcomes:
        figures: dict[str, object] = {name: (outcome.figures or {}).get(name) for name in _FIGURES}
        rows.append(
            {
                "variant": outcome.label,
                "parameters": f"{outcome.parameters:,}",
                "memory": _memory(outcome),
                "s/pair": outcome.seconds,
            }
            | figures
        )
        if outcome.out_of_memory:
            asked = format_bytes(outcome.requested) if outcome.requested else "an unknown amount"
            notes.append(
                f"{outcome.label} ran out of memory: one tensor asked for {asked} "
                f"under a budget of {format_bytes(budget)} above the loaded network."
            )
        elif outcome.error:
            notes.append(f"{outcome.label} failed: {outcome.error}.")
    return "\n\n".join([markdown_table(rows), *notes])


def _memory(outcome: Outcome) -> str:
    if outcome.error:
        return "failed"
    return "out of memory" if outcome.out_of_memory else format_bytes(outcome.peak or 0)
