"""Progress of long work: a bar on terminals, a line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

_LINE_EVERY_S = 30.0
"""Least seconds between lines where there is no terminal."""


class Progress(tqdm):
    """A `tqdm` bar that writes whole lines, at most two a minute, if its stream is not a terminal.

    Logs of batch systems and CI would otherwise hold one long line of carriage returns.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        stream = options.get("file") or sys.stderr
        if not stream.isatty():
            options = {
                "mininterval": _LINE_EVERY_S,
                "maxinterval": _LINE_EVERY_S,
                "miniters": 1,
                "delay": _LINE_EVERY_S,  # short work says nothing
                "ncols": 0,  # figures without a bar
                "leave": True,  # a line cannot be taken back
            } | options
        super().__init__(*args, **options)

    def close(self) -> None:
        """End the display; without a terminal, with a last line if there were any."""
        if self.disable or self.fp.isatty():
            super().close()
            return
        if self.last_print_n > self.initial and self.n > self.last_print_n:
            self.display()
        self.disable = True
        type(self)._decr_instances(self)  # type: ignore[attr-defined]

    def clear(self, *args: Any, **options: Any) -> None:
        """Make room for other text: lines are in nobody's way."""
        if self.fp.isatty():
            super().clear(*args, **options)

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> None:
        """Draw the bar again; lines are not repeated after other text, which sets `nolock`."""
        if self.fp.isatty() or not nolock:
            super().refresh(nolock, lock_args)

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:  # type: ignore[override]
        """Return the function that prints the state: over the last one, or as a line."""
        if file.isatty():
            return tqdm.status_printer(file)

        def print_line(text: str) -> None:
            if text.strip():
                file.write(f"{text.strip()}\n")
                file.flush()

        return print_line
