"""What a program tells its caller: an exit code, and one line where the input was bad."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["exit_code", "is_out_of_memory"]


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
    """Run a program, whose result may be its exit code; bad input is one line on stderr and 2."""
    try:
        result = program()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: {_OUT_OF_MEMORY} ({_first_line(error)})", file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory was refused: to Python, torch or another library."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _REFUSALS)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
