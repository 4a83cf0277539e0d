"""Atomic writes of files, cleanup after killed processes, and errors of reading in one line."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from uuid import uuid4

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where an open file can be neither replaced nor deleted
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = ".ea_psmnet-"
"""Prefix of names of temporary files; 32 random hexadecimal digits and the suffix follow."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` when the block ends without error.

    The temporary file lies in the same folder, which is created, and has the same suffix. When the
    block raises, it is removed and what was at `path` before is still there. Temporary files of
    processes that were killed are removed when a process first writes to their folder.

    Raises:
        OSError: The file cannot be written; the message names `path` and the reason.
    """
    path = Path(path)
    # Without the name of `path`, which may have the maximum length.
    temporary = path.with_name(f"{_TEMPORARY}{uuid4().hex}{path.suffix}")
    try:
        # Replacing a device such as /dev/null by a file would break the machine for everybody.
        if path.exists() and not path.is_file():
            raise OSError(f"{path}: not written, this name is not a regular file")
        path.parent.mkdir(parents=True, exist_ok=True)
        _clean_once(path.parent.resolve())
        with _held(temporary):
            yield temporary
            os.replace(temporary, path)  # noqa: PTH105 - the atomic call is the point
    except OSError as error:
        if error.strerror is None:  # complete message of a nested write
            raise OSError(str(error).replace(str(temporary), str(path))) from error
        raise OSError(
            f"{path}: not written ({error.strerror}); "
            "check the folder's permissions and the free space"
        ) from error
    finally:
        with suppress(OSError):  # usually moved to `path`, or never created
            temporary.unlink()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Make system errors of the block name `path` and the reason in one line.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The file is not a regular file (a pipe or a device may never end), cannot be read,
            or does not fit into memory.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise OSError(f"{what}, not a file")
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except MemoryError:
        raise OSError(f"{path}: cannot be read (out of memory)") from None
    except OSError as error:
        raise OSError(f"{path}: cannot be read ({error.strerror or error})") from error


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of `atomic_path` in a folder whose process has died.

    Other files, and files that another process is writing, are kept; on Windows, all of them.
    """
    if fcntl is None:
        return
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        name = leftover.stem.removeprefix(_TEMPORARY)
        if re.fullmatch(r"[0-9a-f]{32}", name) and leftover.is_file():
            with suppress(OSError), leftover.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()


def remove_own(folder: Path, pattern: str) -> None:
    """Delete files of a folder, which may be missing, and the folder if it is then empty.

    They are those whose whole names match the regular expression `pattern`.
    """
    remove_leftovers(folder)
    for path in folder.glob("*"):
        if re.fullmatch(pattern, path.name) and path.is_file():
            path.unlink()
    with suppress(OSError):  # missing, or not empty
        folder.rmdir()


@contextmanager
def _held(temporary: Path) -> Iterator[None]:
    """Create a file and lock it, so that no process deletes it as a leftover.

    The system releases the lock when the process ends in any way. On file systems without locks,
    leftovers are kept.
    """
    if fcntl is None:
        yield
        return
    while True:
        with temporary.open("ab") as file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_SH)
            if not temporary.exists():  # removed by another process before the lock was there
                continue
            yield
            return


_clean_once = cache(remove_leftovers)
