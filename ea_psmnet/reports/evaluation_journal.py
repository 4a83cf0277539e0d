"""What an unfinished evaluation has measured, on disk: one that was killed goes on from there."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ea_psmnet.files import atomic_path, write_json
from ea_psmnet.pfm import readable
from ea_psmnet.records import parse_record, read_record
from ea_psmnet.reports.evaluation_share import Share, ShareRecord

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
            remedy = f"delete {folder}, and all is measured again"
            recorded = read_record(self._claim, dict[str, str], remedy=remedy)
        for name in self._settings | recorded:
            before, now = recorded.get(name, "none"), self._settings.get(name, "none")
            if before != now:
                raise ValueError(
                    f"{folder}: what was measured here before it was stopped has {name} {before}, "
                    f"not {now}: go on with the same settings, give another --out or delete it"
                )

    def read(self, places: range, labels: Sequence[str], scores: int) -> dict[str, Share] | None:
        """What was measured of a batch, by the methods' labels; None where nothing was.

        Args:
            places: of its pairs in the dataset.
            labels: of the methods.
            scores: how many each pair has, one a protocol.

        Raises:
            ValueError: the file is damaged.
        """
        path = self._path(places.start)
        if not path.is_file():
            return None
        remedy = "damaged: delete it, and its pairs are measured again"
        try:
            with readable(path):
                data = path.read_bytes()
            text = gzip.decompress(data)
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise ValueError(f"{path}: {remedy}") from None
        found = parse_record(text, dict[str, ShareRecord], str(path), finite=False, remedy=remedy)
        expected = {label: [(place, scores) for place in places] for label in labels}
        if expected != {
            label: [(image.index, len(image.scores)) for image in record.images]
            for label, record in found.items()
        }:
            raise ValueError(f"{path}: has other methods, pairs or scores; {remedy}")
        return {label: record.share() for label, record in found.items()}

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
