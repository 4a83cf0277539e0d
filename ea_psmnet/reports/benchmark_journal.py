"""What an unfinished benchmark has measured, on disk: one that was killed goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ea_psmnet.records import parse_record

__all__ = ["BenchmarkJournal", "code_hash"]

T = TypeVar("T")

_PACKAGE = Path(__file__).parents[1]


def code_hash() -> str:
    """SHA-256 of this package's sources: what a measurement was of."""
    sources = (p for p in _PACKAGE.rglob("*") if p.suffix in (".py", ".c"))
    digest = hashlib.sha256()
    for source in sorted(sources):
        digest.update(str(source.relative_to(_PACKAGE)).encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


class BenchmarkJournal:
    """A file of requests and answers, a line each.

    Args:
        path: of the file; made here.
        settings: what all answers depend on.

    Raises:
        ValueError: the file holds answers under other settings.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path, self._settings = path, {"settings": settings}
        self._answers: dict[str, Any] = {}
        self.sittings = 1
        """How often the benchmark was started, this time included."""
        for record in self._read():
            self._take(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._append(self._settings)

    def answer(
        self,
        request: dict[str, Any],
        number: int,
        ask: Callable[[dict[str, Any]], dict[str, Any]],
        kind: type[T],
    ) -> T:
        """The answer to a request for the `number`th time: from the file, or asked for and kept.

        Args:
            request: Plain values.
            number: From 0 on.
            ask: Answers in plain values.
            kind: What the answer is made into, as a dataclass.

        Raises:
            ValueError: The answer is not of this kind, as in a damaged file.
        """
        key = json.dumps([request, number], sort_keys=True)
        if key not in self._answers:
            self._answers[key] = ask(request)
            self._append({"request": key, "answer": self._answers[key]})
        remedy = f"an answer to {key} is damaged: delete the file to begin anew"
        text = json.dumps(self._answers[key])
        return parse_record(text, kind, str(self._path), finite=False, remedy=remedy)

    def finish(self) -> None:
        """Delete the file: its answers are in the report."""
        self._path.unlink()

    def _read(self) -> Iterator[dict[str, Any]]:
        """Whole records; what the last line lacks was never answered."""
        if not self._path.is_file():
            return
        for line in self._path.read_bytes().splitlines():
            with suppress(ValueError):
                yield parse_record(line, dict[str, Any], str(self._path), finite=False)

    def _take(self, record: dict[str, Any]) -> None:
        if record.keys() == {"request", "answer"}:
            self._answers[str(record["request"])] = record["answer"]
        elif record == self._settings:
            self.sittings += 1
        else:
            raise ValueError(
                f"{self._path}: what was measured before the benchmark was stopped is of other "
                "code or another machine: delete it to begin anew, or name another OUT"
            )

    def _append(self, record: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(record))  # first, should the last line be torn
