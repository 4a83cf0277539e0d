"""What a program tells its caller: its help, an exit code, one line where the input was bad."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from tqdm import tqdm

from ea_psmnet.machine import ending_children

__all__ = ["exit_code", "is_out_of_memory", "show_warning", "without_empty_defaults"]

_EMPTY_DEFAULT = re.compile(r"\(default:[\s│|]*(None)?\)")
_UNREAD = 128 + 13
"""The exit code of a program that SIGPIPE ends: whoever read what it printed has gone."""
_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM

_LAUNCHER_S = 3.0
"""Seconds in which a launcher ends the processes beside one that has failed."""

_OUT_OF_MEMORY = (
    "out of memory: close other programs, raise what limits this one (as `ulimit -v`), or ask for "
    "less: smaller images, batches or --memory, fewer workers"
)

_REFUSALS = (
    *("can't allocate memory", "Cannot allocate memory", "could not create a memory object"),
    *("bad_alloc", "out of memory", "STATUS_ALLOC_FAILED", "Failed to allocate"),
    *("can't start new thread", "failed to map segment from shared object"),
)
"""What torch's CPU allocator, the system, oneDNN, C++, a card's driver and its libraries, OpenCV,
Python and the loader of libraries say where memory is refused: they have no exception of their
own."""


def exit_code(program: Callable[[], Any]) -> int:
    """Run a program, whose result may be its exit code; bad input is one line on stderr and 2.

    SIGTERM ends it as Ctrl-C does, by an exception: what it has begun is cleaned up, and a line
    tells what has ended it.
    """
    try:
        with ending_children():
            result = program()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would try to write the rest as it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _UNREAD
    except (ValueError, OSError, FloatingPointError) as error:
        if not _is_first():  # most likely it has failed, too, and a line is enough
            time.sleep(_LAUNCHER_S)
        _say(f"error: {_told(error)}")
        return 2
    except KeyboardInterrupt:
        return _stopped("Ctrl-C", _INTERRUPTED)
    except SystemExit as ended:
        if ended.code != _TERMINATED:  # of a parser
            raise
        return _stopped("SIGTERM", _TERMINATED)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _say(f"error: {_OUT_OF_MEMORY} ({_first_line(error)})")
        return 2
    return result if isinstance(result, int) else 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory was refused: to Python, torch or another library."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _REFUSALS)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def show_warning(message: Warning | str, *place: Any, **options: Any) -> None:
    """What `warnings.showwarning` does, in one line and without the place in the code."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


def _stopped(by: str, code: int) -> int:
    if _is_first():
        _say(f"stopped by {by}")
    return code


def _say(line: str) -> None:
    """Print a line on stderr, not glued to a progress bar."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
    print(line, file=sys.stderr)


def _is_first() -> bool:
    """Whether this process tells what all those of a launch (torchrun) would."""
    return os.environ.get("RANK", "0") == "0"


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
