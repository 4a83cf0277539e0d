"""Checkpoints of a run: written whole, found again, never trusted blindly."""

from __future__ import annotations

import errno
import io
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from ea_psmnet.files import atomic_path

__all__ = ["load_newest", "refusing_strangers", "save_checkpoint"]

_UNREADABLE = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOMEM}
"""Reasons that are none of the file's."""

_NAMES = r"step-[0-9]{7,}\.pt"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> None:
    """Write `step-0000123.pt` atomically, then delete all but `keep` of it and those before it.

    Raises:
        OSError: it cannot be written; those before it are still there.
    """
    buffer = io.BytesIO()  # torch's own writer would tell a full disk as a RuntimeError
    torch.save(state | {"step": step}, buffer)
    path = _path(folder, step)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())  # on the disk before it gets its name: power may fail, too
    # One of a later step was damaged, or the run would have gone on from it: it keeps none out.
    for old in [other for other in _newest_first(folder) if _step(other) <= step][keep:]:
        old.unlink()


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, on the CPU; None if there is none.

    Raises:
        ValueError: it is whole, so nobody but a user has put it there, and not what its name says.
        OSError: it may not be read, or not now.
    """
    for path in _newest_first(folder):
        try:
            state = _load(path)
        except Exception as error:  # the unpickler raises whatever odd bytes lead it to
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in _UNREADABLE:
                raise
            reason = str(error).partition("\n")[0]
            warnings.warn(f"{path}: damaged, passed over ({reason})", stacklevel=2)
        else:
            if not isinstance(state, dict) or state.get("step") != _step(path):
                raise _stranger(path, "it does not hold the step that its name says")
            return state
    return None


@contextmanager
def refusing_strangers(folder: Path, step: int) -> Iterator[None]:
    """Tell of whatever does not fit while a checkpoint's state is put back into a run.

    Raises:
        ValueError: something did not; the message names the checkpoint and says why.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except KeyError as error:
        raise _stranger(_path(folder, step), f"it lacks {error}") from error
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise _stranger(_path(folder, step), shorten(str(error), 200)) from error


def _stranger(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path}: no checkpoint of this run ({reason}): take it away, or give another --out"
    )


def _load(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # torch checks no sums
    if damaged is not None:
        raise ValueError(f"{damaged} has changed")
    return torch.load(path, map_location="cpu", weights_only=True)


def _newest_first(folder: Path) -> list[Path]:
    """Files that are named exactly as checkpoints are."""
    named = (path for path in folder.glob("step-*.pt") if re.fullmatch(_NAMES, path.name))
    own = [path for path in named if path == _path(folder, _step(path)) and path.is_file()]
    return sorted(own, key=_step, reverse=True)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.pt"


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
