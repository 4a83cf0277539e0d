"""Messages of a program to its caller: help text, exit codes, one line for bad input."""

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

from ea_psmnet.machine import ending_children, is_first_process

_EMPTY_DEFAULT = re.compile(r"\(default:[\s│|]*(None)?\)")
_UNREAD = 128 + 13
"""Exit code after SIGPIPE: the reader of the output has ended."""
_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM

_LAUNCHER_S = 3.0
"""Seconds within which a launcher ends the other processes after one has failed."""

_OUT_OF_MEMORY = (
    "out of memory: close other programs, raise limits on this one (as `ulimit -v`), or ask for "
    "less: smaller images, batches or --memory, fewer workers"
)

_PACKAGES = (
    'the packages of all commands are installed by `pip install ".[train,app,export]"`, in the '
    "project's folder"
)

_REFUSALS = (
    *("can't allocate memory", "Cannot allocate memory", "could not create a memory object"),
    *("bad_alloc", "out of memory", "STATUS_ALLOC_FAILED", "Failed to allocate"),
    *("can't start new thread", "failed to map segment from shared object"),
)
"""Error messages of torch's CPU allocator, the system, oneDNN, C++, CUDA, OpenCV, Python and the
dynamic loader about memory, for which they have no exception type of their own."""


def exit_code(program: Callable[[], Any]) -> int:
    """Run a program and return its exit code; bad input gives one line on stderr and 2.

    SIGTERM raises an exception like Ctrl-C, so that the program cleans up; a line says what ended
    it.
    """
    try:
        with ending_children():
            result = program()
        sys.stdout.flush()
    except BrokenPipeError:
        # Otherwise Python would fail to write the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _UNREAD
    except (ValueError, OSError, FloatingPointError) as error:
        if not is_first_process():  # the first has most likely failed, too: one line suffices
            time.sleep(_LAUNCHER_S)
        _say(f"error: {_told(error)}")
        return 2
    except KeyboardInterrupt:
        return _stopped("Ctrl-C", _INTERRUPTED)
    except SystemExit as ended:
        if ended.code != _TERMINATED:  # raised by a parser
            raise
        return _stopped("SIGTERM", _TERMINATED)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ea_psmnet"):
            raise
        _say(f"error: {error}" + (f": {_PACKAGES}" if error.name else ""))
        return 2
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _say(f"error: {_OUT_OF_MEMORY} ({_first_line(error)})")
        return 2
    return result if isinstance(result, int) else 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python, torch or another library means out of memory."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _REFUSALS)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def show_warning(message: Warning | str, *place: Any, **options: Any) -> None:
    """Replacement for `warnings.showwarning`: one line without the place in the code."""
    tqdm.write(f"warning: {message}", file=sys.stderr)


def _stopped(by: str, code: int) -> int:
    if is_first_process():
        _say(f"stopped by {by}")
    return code


def _say(line: str) -> None:
    """Close progress bars and print a line on stderr."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
    print(line, file=sys.stderr)


def _told(error: Exception) -> str:
    """Message of an error: the file first, without the number of a system error."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


@contextmanager
def without_empty_defaults() -> Iterator[None]:
    """Remove None and empty defaults from the output of a parser; the help text explains them."""
    kept = _Kept(sys.stdout), _Kept(sys.stderr)
    try:
        with redirect_stdout(kept[0]), redirect_stderr(kept[1]):
            yield
    finally:
        for each in kept:
            each.pass_on()


class _Kept(io.StringIO):
    """Collects output for a stream and has its properties."""

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
