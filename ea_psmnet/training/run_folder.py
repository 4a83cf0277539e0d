"""The run folder: its lock, the recorded configuration, and the environment of each start."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ea_psmnet.files import write_json
from ea_psmnet.losses import LOSS_WEIGHTS
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.ops.native import compiled_libraries
from ea_psmnet.records import read_record
from ea_psmnet.training.config import TrainingConfig

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

_MAY_CHANGE = frozenset(
    (
        *("out", "device", "workers", "save_every", "keep", "memory_check"),
        *("validate_every", "validate_data", "validate_root", "validate_count"),
        "network",  # the structure that the file describes is compared instead
    )
)
"""Options that may change when a run continues, as they do not change its result."""

_SETTLED = {"mirror": False, "loss_weights": [*LOSS_WEIGHTS]}
"""Former options whose values are settled: a run that was started with others cannot continue."""

_MEND = (
    "to continue with the given options, delete it and model.safetensors beside it; otherwise give "
    "another --out"
)


def check_writable(folder: Path) -> None:
    """Raise an OSError if a folder cannot be created or written to."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing}: a file is in the way of the run folder {folder}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{existing}: no permission to write: choose another --out")


def recorded_micro_batch(config: TrainingConfig) -> int | None:
    """The micro-batch that the run started with, if it has started.

    Raises:
        ValueError: The recorded value is not valid, or of another batch.
    """
    path = config.out / "config.json"
    recorded = _recorded(path)
    _check_same(config.out, "batch", recorded.get("batch", config.batch), config.batch)
    micro = recorded.get("micro_batch")
    if micro is not None and not (isinstance(micro, int) and micro > 0):
        raise ValueError(f"{path}: damaged, micro_batch cannot be {micro!r}: {_MEND}")
    return micro


@contextmanager
def claimed(
    config: TrainingConfig, structure: PSMNetConfig, lengths: Sequence[int]
) -> Iterator[None]:
    """Lock a run folder for this process and record the configuration in it.

    Args:
        config: Configuration of the run.
        structure: Structure of its network.
        lengths: Numbers of samples of its datasets.

    Raises:
        ValueError: Another process trains in the folder, or it holds another run or other files.
        OSError: The folder cannot be written.
    """
    with _locked(config.out / ".lock"):
        _record(config, structure, list(lengths))
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system releases when the process ends in any way.

    It is a record lock: one of `flock` would outlive a killed process in its data workers. Windows
    has none, so there two runs in one folder are not noticed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("ab+", buffering=0)
    except OSError as error:
        raise OSError(f"{path}: not written ({error.strerror}): choose another --out") from error
    with opened as file:
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().decode(errors="replace") or "another process"
            raise ValueError(
                f"{path.parent}: {holder} is training in it: wait for it, or give another --out "
                f"(if it died with its machine, delete {path})"
            ) from None
        except OSError:  # a file system without locks
            pass
        with suppress(OSError):  # only for the message above: later writes report a full disk
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())
        yield


def _record(config: TrainingConfig, structure: PSMNetConfig, lengths: list[int]) -> None:
    """Record the configuration, or refuse the folder of a run with another one."""
    path, settings = config.out / "config.json", config.to_dict() | _SETTLED
    # Options that older runs did not record had their defaults.
    defaults = TrainingConfig(out=config.out, data="synthetic").to_dict() | _SETTLED
    recorded = _recorded(path)
    if not recorded and (config.out / "model.safetensors").exists():
        raise ValueError(
            f"{config.out}: holds weights but no config.json of a run: give another --out, or, to "
            "continue a run with the given options, delete model.safetensors"
        )
    for name in sorted(settings.keys() - _MAY_CHANGE) if recorded else ():
        _check_same(config.out, name, recorded.get(name, defaults[name]), settings[name])
    _check_structure(config, recorded.get("structure"), structure.to_dict())
    known = recorded.get("samples", lengths)  # older runs did not record them
    if known != lengths:
        raise ValueError(
            f"{config.out}: holds a run on datasets of {known} samples, which now have {lengths}: "
            "make them what they were, or give another --out"
        )
    write_json(path, settings | {"structure": structure.to_dict(), "samples": lengths})


def _check_same(folder: Path, name: str, known: Any, given: Any) -> None:
    if given != known:
        raise ValueError(
            f"{folder}: holds a run with {name} {known}, not {given}: "
            "give the same settings or another --out"
        )


def _check_structure(config: TrainingConfig, recorded: Any, given: dict[str, Any]) -> None:
    """Refuse a network other than the recorded one: its file or weights may have changed."""
    if not isinstance(recorded, dict):  # of an older run, or of a new one
        return
    for name, value in given.items():
        if recorded.get(name, value) != value:
            raise ValueError(
                f"{config.out}: holds a run of a network with {name} {recorded[name]}, not "
                f"{value}: give the same --network and --init or another --out"
            )


def _recorded(path: Path) -> dict[str, Any]:
    """The recorded configuration; empty if there is none."""
    if not path.is_file():
        return {}
    return read_record(path, dict[str, Any], remedy=f"damaged: {_MEND}")


# Environment --------------------------------------------------------------------------------------


_LIBRARIES = ("torch", "torchvision", "accelerate", "numpy", "opencv-python", "safetensors")


_ROUNDING = ("device", "processor", "precision", "processes", "threads", "compiled", "torch")
"""Facts that decide the order of summation, and so the rounding."""


def record_session(path: Path, facts: dict[str, Any]) -> str:
    """Append a start of the run to its file: `facts`, the environment, the time and the command.

    A resumed run has one record per start, as the program or the machine may have changed.

    Returns:
        Changes since the previous start that affect rounding, as `threads 1 instead of 2`. If it is
        not empty, the run does not end bit for bit as if it had not been stopped.
    """
    now = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "command": sys.argv}
    try:
        before = read_sessions(path)
    except ValueError as damage:
        warnings.warn(f"{damage}; it begins anew", stacklevel=2)
        before = []
    own = facts | now | describe_environment()
    write_json(path, [*before, own])
    old, new = (_rounding(session) for session in (before[-1] if before else {}, own))
    return ", ".join(
        f"{name} {new[name]} instead of {old[name]}"
        for name in _ROUNDING
        if name in old and name in new and old[name] != new[name]  # older runs lack some of them
    )


def read_sessions(path: Path) -> list[dict[str, Any]]:
    """The recorded starts of a run; empty if there is no file.

    Raises:
        ValueError: The file is damaged.
    """
    if not path.is_file():
        return []
    return read_record(path, list[dict[str, Any]], finite=False, remedy="damaged")


def describe_environment() -> dict[str, Any]:
    """Revision, versions and machine as plain values; None if unknown."""
    revision, dirty = _git_state(Path(__file__))
    return {
        "revision": revision,
        "dirty": dirty,
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "cuda": torch.version.cuda,
        "system": platform.platform(),
        "host": platform.node(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "compiled": ", ".join(k for k, v in compiled_libraries().items() if v) or "nothing",
    }


def _rounding(session: dict[str, Any]) -> dict[str, Any]:
    libraries = session.get("libraries")
    torch_version = libraries.get("torch") if isinstance(libraries, dict) else None
    return session | ({"torch": torch_version} if torch_version else {})


def _git_state(program: Path) -> tuple[str | None, bool | None]:
    """Commit of the repository that tracks a file, and whether tracked files differ from it.

    Both are None without git or such a repository.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(program.parent), *arguments]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return ended.stdout.strip() if ended.returncode == 0 else None

    if git("ls-files", "--error-unmatch", program.name) is None:
        return None, None
    changes = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD"), None if changes is None else bool(changes)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Name of the processor, from Linux or else from Python."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
