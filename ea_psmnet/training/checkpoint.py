"""Checkpoints of a run: written whole, found again, never trusted blindly."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ea_psmnet.files import atomic_path

__all__ = ["load_newest", "newest_path", "remove_leftovers", "save_checkpoint"]


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> None:
    """Write `step-0000123.pt` atomically, then delete all but `keep` of it and those before it.

    Raises:
        OSError: it cannot be written; those before it are still there.
    """
    buffer = io.BytesIO()  # torch's own writer would tell a full disk as a RuntimeError
    torch.save(state | {"step": step}, buffer)
    path = folder / f"step-{step:07d}.pt"
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())  # on the disk before it gets its name: power may fail, too
    # One of a later step was damaged, or the run would have gone on from it: it keeps none out.
    for old in [other for other in _newest_first(folder) if other <= path][keep:]:
        old.unlink()


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, on the CPU; None if there is none."""
    for path in _newest_first(folder):
        try:
            return _load(path)
        except (RuntimeError, EOFError, OSError, ValueError, *_DAMAGE) as error:
            reason = str(error).partition("\n")[0]
            warnings.warn(f"{path}: damaged, passed over ({reason})", stacklevel=2)
    return None


def newest_path(folder: Path) -> Path | None:
    """The newest checkpoint, whole or not."""
    return next(iter(_newest_first(folder)), None)


def remove_leftovers(folder: Path) -> None:
    """Delete what writes that were killed left behind in a folder."""
    for leftover in folder.glob(".*.*.*"):
        if leftover.suffix in (".pt", ".safetensors", ".json", ".jsonl", ".md", ".png"):
            with suppress(OSError):
                leftover.unlink()


_DAMAGE = (pickle.UnpicklingError, zipfile.BadZipFile)


def _load(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # torch checks no sums
    if damaged is not None:
        raise ValueError(f"{damaged} has changed")
    return torch.load(path, map_location="cpu", weights_only=True)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)
