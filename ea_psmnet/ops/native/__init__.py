"""C sources of the package, compiled for the processor at hand when they are first needed.

Compilation takes a few seconds, once per machine, and happens only on Linux, where torch and the
compiler share one OpenMP library. On other systems, without a C compiler, or with
`EA_PSMNET_COMPILE=0`, the package uses torch alone.

A library runs with the user's rights. It is therefore loaded only if no other user can have written
it, and if its size and hash are those of the library that was compiled.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ea_psmnet.files import atomic_path

_PROCESSOR = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
"""Compiler option for the processor at hand."""

_OPTIONS = ("-O3", _PROCESSOR, "-fopenmp", "-ffp-contract=fast", "-shared", "-fPIC")

_LIMIT_S = 120


def is_readable(tensor: Tensor) -> bool:
    """Whether compiled code can read a tensor: on the CPU, with numbers, and not traced."""
    there = tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor)
    return there and not torch.compiler.is_compiling()


def needs_gradients(*tensors: Tensor) -> bool:
    """Whether gradients of an operation of these tensors are needed."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def learns_in_float32(x: Tensor, weight: Tensor) -> bool:
    """Whether gradients of an operation of two tensors are needed, and its type is float32."""
    half = torch.is_autocast_enabled(x.device.type)
    return needs_gradients(x, weight) and not half and x.dtype == weight.dtype == torch.float32


@cache
def load_library(
    source: Path, functions: tuple[str, ...], version: int, *structures: type[ctypes.Structure]
) -> ctypes.CDLL | None:
    """Compile a C source and load it as a library.

    The library is kept in `$XDG_CACHE_HOME/ea_psmnet`, by default `~/.cache/ea_psmnet`, a folder
    that must belong to the user.

    Args:
        source: The file, `NAME.c`. It defines an array of int64_t `NAME_interface`: a version that
            changes whenever its structures do, followed by the size of each structure.
        functions: Functions that the library must have.
        version: The version that the caller was written for.
        structures: The structures as the caller lays them out.

    Returns:
        The library; None if there is no compiler, or, with a warning, if compiling or loading
        fails.
    """
    try:
        compiler = _compiler()
        if compiler is None:
            return None
        library = ctypes.CDLL(str(_built(source, compiler)))
        interface = version, *map(ctypes.sizeof, structures)
        _check(library, source.stem, functions, interface)
        return library
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        reason = f"networks run slower because {source.name} could not be compiled: {error}"
        warnings.warn(reason, stacklevel=2)
        return None


def compiled_libraries() -> dict[str, bool]:
    """Whether each of the package's C sources is compiled and loaded here, by name."""
    names = sorted(source.stem for source in Path(__file__).parent.glob("*.c"))
    modules = {name: import_module(f"{__name__}.{name}") for name in names}
    return {name: module._library() is not None for name, module in modules.items()}


def _compiler() -> list[str] | None:
    """The compiler's path, followed by the options in `CC`; None if there is none.

    Raises:
        ValueError: `CC` cannot be parsed.
    """
    if os.environ.get("EA_PSMNET_COMPILE") == "0" or sys.platform != "linux":
        return None
    wanted = os.environ.get("CC", "")
    try:
        asked = shlex.split(wanted)
    except ValueError as error:
        raise ValueError(f"CC={wanted!r} names no compiler ({error})") from None
    names = [asked] if asked else [["gcc"], ["cc"], ["clang"]]
    found = ([path, *options] for name, *options in names if (path := shutil.which(name)))
    return next(found, None)


# The cache ---------------------------------------------------------------------------------------


def _built(source: Path, compiler: list[str]) -> Path:
    """Path of the library, which exists, is complete and belongs to the user."""
    library = _own_folder() / f"{source.stem}-{_fingerprint(source, compiler)}.so"
    seal = library.with_suffix(".sha256")
    if not _is_sealed(library, seal):
        data = _compile(source, compiler)
        _write(library, data)
        _write(seal, _seal(data))  # last: a library without a seal is compiled again
    return library


def _own_folder() -> Path:
    """The folder of compiled libraries, created if it does not exist.

    Raises:
        RuntimeError: There is no home folder, or other users can write to the folder.
        OSError: The folder cannot be created.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # as the XDG Base Directory Specification says
        base = Path.home() / ".cache"
    if not base.is_absolute():
        raise RuntimeError("there is no home folder to keep it in")
    folder = base / "ea_psmnet"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if not _is_own(folder.stat()):
        raise RuntimeError(
            f"{folder} belongs to another user, or others can write to it: delete it, or set "
            "XDG_CACHE_HOME to a folder of your own"
        )
    return folder


def _is_own(status: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user, and no other user can write to it."""
    others = stat.S_IWGRP | stat.S_IWOTH
    return status.st_uid == os.geteuid() and not status.st_mode & others


def _is_sealed(library: Path, seal: Path) -> bool:
    """Whether a library exists, belongs to the user, and matches its seal."""
    try:
        statuses = library.lstat(), seal.lstat()
        own = all(_is_own(status) and stat.S_ISREG(status.st_mode) for status in statuses)
        return own and _seal(library.read_bytes()) == seal.read_bytes()
    except OSError:
        return False


def _seal(data: bytes) -> bytes:
    """Size and hash of a library, as text."""
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}\n".encode()


def _write(path: Path, data: bytes) -> None:
    """Write a file that only this user can read; it gets its name once it is on the disk."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        temporary.chmod(0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _fingerprint(source: Path, compiler: list[str]) -> str:
    """Hash of all that a library depends on; different machines may share a home folder."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    code = source.read_text(encoding="utf-8")
    version = str(Path(compiler[0]).stat().st_mtime_ns)
    parts = (code, *compiler, version, *_OPTIONS, platform.machine(), features)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


# Compiling and checking ---------------------------------------------------------------------------


def _compile(source: Path, compiler: list[str]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "library.so"
        command = [*compiler, *_OPTIONS, "-o", str(library), str(source), "-lm"]
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=_LIMIT_S
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no reason given"]
            reason = next((line for line in said if "error" in line), said[-1])
            raise RuntimeError(f"{compiler[0]} failed: {reason}")
        return library.read_bytes()


def _check(
    library: ctypes.CDLL, name: str, functions: Sequence[str], interface: Sequence[int]
) -> None:
    """Raise a RuntimeError if a library lacks a function or lays out its structures differently."""
    missing = [function for function in functions if not hasattr(library, function)]
    if missing:
        raise RuntimeError(f"it has no {missing[0]}")
    numbers = ctypes.c_int64 * len(interface)
    found = list(numbers.in_dll(library, f"{name}_interface"))
    if found != list(interface):
        raise RuntimeError(f"its structures are {found}, not {list(interface)}")
