"""What a program tells its caller: its help, an exit code, one line where the input was bad."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

__all__ = ["exit_code", "show_warning", "without_empty_defaults"]

_EMPTY_DEFAULT = re.compile(r"\(default:[\s│|]*(None)?\)")
_UNREAD = 128 + 13
"""The exit code of a program that SIGPIPE ends: whoever read what it printed has gone."""


def exit_code(program: Callable[[], Any]) -> int:
    """Run a program, whose result may be its exit code; bad input is one line on stderr and 2."""
    try:
        result = program()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would try to write the rest as it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _UNREAD
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {_told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return result if isinstance(result, int) else 0


def show_warning(message: Warning | str, *place: Any, **options: Any) -> None:
    """What `warnings.showwarning` does, in one line and without the place in the code."""
    print(f"warning: {message}", file=sys.stderr)


def _told(error: Exception) -> str:
    """Without the system's number of an error, and with the file first, as in all other errors."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


@contextmanager
def without_empty_defaults() -> Iterator[None]:
    """Leave out of what a parser prints that a default is None or nothing; the help tells what
    that means.
    """
    kept = _Kept(sys.stdout), _Kept(sys.stderr)
    try:
        with redirect_stdout(kept[0]), redirect_stderr(kept[1]):
            yield
    finally:
        for each in kept:
            each.pass_on()


class _Kept(io.StringIO):
    """Takes what is printed to a stream, and is like it for who asks how to print."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def pass_on(self) -> None:
        text = _EMPTY_DEFAULT.sub(lambda found: re.sub(r"[^│|\n]", " ", found[0]), self.getvalue())
        self._stream.write(text)
        self._stream.flush()
