"""The folder of a run: whose it is, and whether it can be written."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ea_psmnet.files import write_json
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.records import read_record
from ea_psmnet.training.config import TrainingConfig

__all__ = ["check_writable", "claimed", "recorded_micro_batch"]

_MAY_CHANGE = frozenset(
    (
        *("out", "device", "workers", "save_every", "keep", "max_skipped", "memory_check"),
        *("validate_every", "validate_data", "validate_root", "validate_count"),
        "network",  # what its file describes counts
    )
)
"""Settings that a continued run may change: they do not change what is to be computed."""

_MEND = (
    "to go on with the settings given now, delete it and model.safetensors beside it; else give "
    "another --out"
)


def check_writable(folder: Path) -> None:
    """Raise an OSError, before anything is loaded, if a folder cannot be made or written to."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing}: a file is in the way of the run folder {folder}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{existing}: no permission to write: choose another --out")


def recorded_micro_batch(config: TrainingConfig) -> int | None:
    """The micro-batch that the run was started with, if it was.

    Raises:
        ValueError: what is recorded cannot be one.
    """
    path = config.out / "config.json"
    micro = _recorded(path).get("micro_batch")
    if micro is not None and not (isinstance(micro, int) and micro > 0):
        raise ValueError(f"{path}: damaged, micro_batch cannot be {micro!r}: {_MEND}")
    return micro


@contextmanager
def claimed(
    config: TrainingConfig, structure: PSMNetConfig, lengths: Sequence[int]
) -> Iterator[None]:
    """Have a run's folder for this process alone, with what is to be computed recorded.

    Args:
        config: the run.
        structure: its network.
        lengths: samples of its datasets.

    Raises:
        ValueError: another process trains in it, or it holds another run, or something else.
        OSError: it cannot be written.
    """
    with _locked(config.out / ".lock"):
        _record(config, structure, list(lengths))
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system takes back when the process ends, however it does.

    A record lock, as one of `flock` would outlive a killed process in its loader workers.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("ab+", buffering=0)
    except OSError as error:
        raise OSError(f"{path}: not written ({error.strerror}): choose another --out") from error
    with opened as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().decode(errors="replace") or "another process"
            raise ValueError(
                f"{path.parent}: {holder} trains in it: let it end first, or give another --out "
                f"(if it is gone with its machine, delete {path})"
            ) from None
        except OSError:  # a file system without locks
            pass
        with suppress(OSError):  # only for the message: a full disk is told of by what comes next
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())
        yield


def _record(config: TrainingConfig, structure: PSMNetConfig, lengths: list[int]) -> None:
    """Record what is to be computed, or refuse a folder of a run that computes something else."""
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
    known = recorded.get("samples", lengths)  # older runs did not record them
    if known != lengths:
        raise ValueError(
            f"{config.out}: holds a run on datasets of {known} samples, which now have {lengths}: "
            "make them what they were, or give another --out"
        )
    write_json(path, settings | {"structure": structure.to_dict(), "samples": lengths})


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
    return read_record(path, dict[str, Any], remedy=f"damaged: {_MEND}")
