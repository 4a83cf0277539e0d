"""Checkpoints of a run: written whole, found again, never trusted blindly."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from ea_psmnet.files import atomic_path

__all__ = ["load_newest", "save_checkpoint"]

_KEEP = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `step-0000123.pt` atomically and delete all but the newest two."""
    with atomic_path(folder / f"step-{step:07d}.pt") as temporary:
        torch.save(state | {"step": step}, temporary)
    for old in _newest_first(folder)[_KEEP:]:
        old.unlink()


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, on the CPU; None if there is none."""
    for path in _newest_first(folder):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            warnings.warn(f"{path}: damaged, passed over ({reason})", stacklevel=2)
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)
