"""The folder of a run: whose it is, and whether it can be written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ea_psmnet.files import write_json
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.training.config import TrainingConfig

__all__ = ["check_writable", "claim", "recorded_micro_batch"]

_MAY_CHANGE = frozenset(
    (
        *("out", "device", "workers", "save_every", "keep", "max_skipped", "memory_check"),
        *("validate_every", "validate_data", "validate_root", "validate_count"),
        "network",  # what its file describes counts
    )
)
"""Settings that a continued run may change: they do not change what is to be computed."""


def check_writable(folder: Path) -> None:
    """Raise an OSError, before anything is loaded, if a folder cannot be made or written to."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing}: a file is in the way of the run folder {folder}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{existing}: no permission to write: choose another --out")


def recorded_micro_batch(config: TrainingConfig) -> int | None:
    """The micro-batch that the run was started with, if it was."""
    return _recorded(config.out / "config.json").get("micro_batch")


def claim(config: TrainingConfig, structure: PSMNetConfig) -> None:
    """Record the settings and the network's structure, or refuse a folder of a run with others.

    Raises:
        ValueError: the folder holds another run, or something else.
    """
    path, settings = config.out / "config.json", config.to_dict()
    # What older runs did not record yet is what they did: the default.
    defaults = TrainingConfig(out=config.out, data="synthetic").to_dict()
    recorded = _recorded(path)
    if not recorded and (config.out / "model.safetensors").exists():
        raise ValueError(f"{config.out}: holds weights of something else: give another --out")
    for name in sorted(settings.keys() - _MAY_CHANGE) if recorded else ():
        known = recorded.get(name, defaults[name])
        if settings[name] != known:
            raise ValueError(
                f"{config.out}: holds a run with {name} {known}, not {settings[name]}: "
                "give the same settings or another --out"
            )
    _check_structure(config, recorded.get("structure"), structure.to_dict())
    write_json(path, settings | {"structure": structure.to_dict()})


def _check_structure(config: TrainingConfig, recorded: Any, given: dict[str, Any]) -> None:
    """A file of the same name, or weights, may describe another network than before."""
    if not isinstance(recorded, dict):  # an older run's, or a new one's
        return
    for name, value in given.items():
        if recorded.get(name, value) != value:
            raise ValueError(
                f"{config.out}: holds a run of a network with {name} {recorded[name]}, not "
                f"{value}: give the same --network and --init or another --out"
            )


def _recorded(path: Path) -> dict[str, Any]:
    """The settings in the folder; empty if there are none."""
    if not path.is_file():
        return {}
    try:
        recorded = json.loads(path.read_text())
    except ValueError:
        recorded = None
    if not isinstance(recorded, dict):
        raise ValueError(f"{path}: damaged: delete it, or give another --out")
    return recorded
