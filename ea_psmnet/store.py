"""Finished parts of a long job on disk, so that a job that was stopped goes on from there."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from ea_psmnet.files import atomic_path, readable, remove_own, write_json
from ea_psmnet.records import parse_record, read_record

T = TypeVar("T")

_FILES = r"settings\.json|[0-9a-f]{6,}\.json(\.gz)?"
"""Names of the files that `Store.clear` deletes, as a regular expression."""


class Store:
    """A folder of records, each in a file that is written whole or not at all.

    Args:
        folder: The folder; made with the first record.
        settings: Everything that all records depend on, by name.
        may_change: Names of settings that may differ from those of the records.

    Raises:
        ValueError: The folder holds records of other settings.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any] | None = None,
        may_change: Collection[str] = (),
    ) -> None:
        self.folder = folder
        self._settings = dict(settings or {})
        self._claim = folder / "settings.json"
        recorded = self._settings
        if settings is not None and self._claim.is_file():
            remedy = f"damaged: delete {folder} to begin anew"
            recorded = read_record(self._claim, dict[str, Any], remedy=remedy)
        for name in self._settings | recorded:
            before, now = recorded.get(name, "none"), self._settings.get(name, "none")
            if before != now and name not in may_change:
                raise ValueError(
                    f"{folder}: the unfinished run here has {name} {before}, not {now}: continue "
                    "with the same settings, give another --out, or delete it"
                )

    def claim(self) -> None:
        """Record the settings in `settings.json`, as writing the first record does."""
        if self._settings:
            write_json(self._claim, self._settings)

    def read(self, name: str, kind: type[T], remedy: str) -> T | None:
        """Read a record, a file `.json` or `.json.gz`, or return None if there is none.

        Raises:
            ValueError: The file is damaged; see `read_record`, also for `kind` and `remedy`.
        """
        path = self.folder / name
        if not path.is_file():
            return None
        if path.suffix != ".gz":
            return read_record(path, kind, remedy=remedy)
        try:
            with readable(path):
                data = path.read_bytes()
            text = gzip.decompress(data)
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise ValueError(f"{path}: {remedy}") from None
        return parse_record(text, kind, str(path), finite=False, remedy=remedy)

    def write(self, name: str, record: Any) -> None:
        """Keep a record of plain values; only a `.json.gz` may hold NaN and infinity.

        Raises:
            OSError: The file cannot be written.
        """
        if not self._claim.is_file():
            self.claim()
        path = self.folder / name
        if path.suffix != ".gz":
            write_json(path, record)
            return
        with atomic_path(path) as temporary:
            temporary.write_bytes(gzip.compress(json.dumps(record).encode()))

    def clear(self) -> None:
        """Delete settings and records, and the folder unless something else is in it."""
        remove_own(self.folder, _FILES)


def digest(text: str) -> str:
    """A short hash of a text, fit for names of files."""
    return sha256(text.encode()).hexdigest()[:16]


def stamp(paths: Iterable[Path]) -> str:
    """A short hash of files' paths, sizes and times, fit for names of files; empty for none.

    Raises:
        FileNotFoundError: A file does not exist.
    """
    stats = [(os.fspath(path), path.stat()) for path in paths]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return digest(repr(files)) if files else ""
