"""`metrics.jsonl`: a line of JSON a step and a validation, for scripts and for the summary."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ea_psmnet.files import write_text
from ea_psmnet.training.validation import Validation

__all__ = ["MetricsLog", "read_metrics"]

Record = dict[str, Any]

_NEVER_NULL = {
    "step": ("elapsed", "samples_per_second", "waiting", "memory", "skipped"),
    "validation": ("elapsed", "images", "by_range"),
}


class MetricsLog:
    """Appends records, each on a line of its own and written at once.

    Every record has `kind` (step or validation), `step` (steps taken so far) and `elapsed` (seconds
    of training so far, those of runs before a resumption included). What is not finite is null.

    Args:
        path: the file; what is in it of steps after `start`, or of a line cut short, is dropped.
        start: steps taken before.
        validation_due: drop a validation after `start`, too: it comes again.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, start: int, *, validation_due: bool = False) -> None:
        self._path = path
        ends = {"step": start, "validation": start - validation_due}
        kept = [record for record in read_metrics(path) if record["step"] <= ends[record["kind"]]]
        write_text(path, "".join(map(_line, kept)))
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        before = max((record["elapsed"] for record in kept), default=0.0)
        self._began = time.perf_counter() - before

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Append a step.

        Raises:
            OSError: the disk is full; a line that was cut short is dropped when the run resumes.
        """
        self._append({"kind": "step", "step": step} | dict(figures))

    def validation(self, step: int, outcome: Validation) -> None:
        """Append a validation: figures of all pixels, and `by_range` those by true disparity.

        Raises:
            OSError: as of `step`.
        """
        record = {"kind": "validation", "step": step, "images": outcome.images}
        by_range = {band: errors.figures() for band, errors in outcome.by_range.items()}
        self._append(record | outcome.errors.figures() | {"by_range": by_range})

    def _append(self, record: Record) -> None:
        elapsed = round(time.perf_counter() - self._began, 3)
        line = _line(record | {"elapsed": elapsed}).encode()
        try:
            written = os.write(self._file, line)  # past Python's buffers: a kill loses nothing
        except OSError as error:
            raise OSError(f"{self._path}: not written ({error.strerror})") from error
        if written < len(line):
            raise OSError(f"{self._path}: not written ({os.strerror(errno.ENOSPC)})")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_metrics(path: Path) -> list[Record]:
    """The records of a file in their order; empty if there is none.

    Lines that a kill, a power failure or a hand left damaged are passed over.
    """
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        return [record for line in file if (record := _parsed(line)) is not None]


def _parsed(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if _is_whole(record) else None


def _is_whole(record: Any) -> bool:
    """Whether a record has all that its readers compute with."""
    if not isinstance(record, dict) or record.get("kind") not in ("step", "validation"):
        return False
    bands = record.get("by_range", {})
    figures = {name: value for name, value in record.items() if name not in ("kind", "by_range")}
    return (
        isinstance(record.get("step"), int)
        and record.get("samples_per_second") != 0
        and all(record.get(name) is not None for name in _NEVER_NULL[record["kind"]])
        and isinstance(bands, dict)
        and all(map(_are_figures, (figures, *bands.values())))
    )


def _are_figures(value: Any) -> bool:
    """Whether a value is a table of finite numbers and nulls."""
    return isinstance(value, dict) and all(
        each is None or (isinstance(each, int | float) and math.isfinite(each))
        for each in value.values()
    )


def _line(record: Record) -> str:
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The same with null for every number that JSON has no form for."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
