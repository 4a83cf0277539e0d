"""What an unfinished evaluation has measured, on disk: one that was killed goes on from there."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

from ea_psmnet.files import atomic_path, write_json
from ea_psmnet.reports.evaluation_share import Share

__all__ = ["JOURNAL_FILES", "Journal"]

JOURNAL_FILES = r"settings\.json|\d{6,}\.json\.gz"
"""Names of the files that a `Journal` writes, as a regular expression."""


class Journal:
    """A folder of measurements, a file a batch of pairs, each written whole or not at all.

    Whichever process has a batch to measure looks here first, so an evaluation goes on with any
    number of processes.

    Args:
        folder: made at the first measurement.
        settings: all that the measurements depend on, by name.

    Raises:
        ValueError: the folder holds measurements of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self._folder, self._settings = folder, dict(settings)
        self._claim = folder / "settings.json"
        recorded = self._settings
        if self._claim.is_file():
            recorded = json.loads(self._claim.read_text(encoding="utf-8"))
        for name in self._settings | recorded:
            before, now = recorded.get(name, "none"), self._settings.get(name, "none")
            if before != now:
                raise ValueError(
                    f"{folder}: what was measured here before it was stopped has {name} {before}, "
                    f"not {now}: go on with the same settings, give another --out or delete it"
                )

    def read(self, first: int) -> dict[str, Share] | None:
        """What was measured of the batch that starts with this pair, by the methods' labels.

        Raises:
            ValueError: the file is damaged.
        """
        path = self._path(first)
        if not path.is_file():
            return None
        try:
            shares = json.loads(gzip.decompress(path.read_bytes()))
            return {label: Share.from_dict(share) for label, share in shares.items()}
        except (
            OSError,
            EOFError,
            zlib.error,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ) as error:
            raise ValueError(
                f"{path}: damaged; delete it, and its pairs are measured again"
            ) from error

    def write(self, first: int, shares: Mapping[str, Share]) -> None:
        """Keep what was measured of a batch.

        Raises:
            OSError: it cannot be written.
        """
        if not self._claim.is_file():
            write_json(self._claim, self._settings)
        record = json.dumps({label: share.to_dict() for label, share in shares.items()})
        with atomic_path(self._path(first)) as temporary:
            temporary.write_bytes(gzip.compress(record.encode()))

    def _path(self, first: int) -> Path:
        return self._folder / f"{first:06}.json.gz"
