"""C sources of this package, compiled for the processor at hand the first time they are needed.

On Linux, where torch and the compiler share a library of threads (OpenMP). It takes a few seconds,
once on a machine. Elsewhere and without a C compiler the package works without;
`EA_PSMNET_COMPILE=0` asks for that.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

__all__ = ["load_library"]

_PROCESSOR = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
"""What compilers call the processor at hand."""

_OPTIONS = ("-O3", _PROCESSOR, "-fopenmp", "-ffp-contract=fast", "-shared", "-fPIC")

_LIMIT_S = 120


@cache
def load_library(source: Path) -> ctypes.CDLL | None:
    """A C source as a library; None where there is no compiler or, with a warning, where it fails.

    The library is kept in `$XDG_CACHE_HOME/ea_psmnet`, by default `~/.cache/ea_psmnet`.
    """
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_built(source, compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = (
            f"{source.name} was not compiled into {_folder()}, so networks take longer: {error}"
        )
        warnings.warn(reason, stacklevel=2)
        return None


def _compiler() -> list[str] | None:
    """Its path, and what the user wants it to be told."""
    if os.environ.get("EA_PSMNET_COMPILE") == "0" or sys.platform != "linux":
        return None
    asked = shlex.split(os.environ.get("CC", ""))
    names = [asked] if asked else [["gcc"], ["cc"], ["clang"]]
    found = ([path, *options] for name, *options in names if (path := shutil.which(name)))
    return next(found, None)


def _built(source: Path, compiler: list[str]) -> Path:
    """The library's path; it is there when this returns."""
    folder = _folder()
    library = folder / f"{source.stem}-{_fingerprint(source, compiler)}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as workshop:
            made = Path(workshop) / library.name
            _compile(source, compiler, made)
            made.replace(library)  # whole or not at all, whoever else compiles just now
    return library


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ea_psmnet"


def _fingerprint(source: Path, compiler: list[str]) -> str:
    """Of what a library depends on; a home folder may be shared by unlike machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    code = source.read_text(encoding="utf-8")
    version = str(Path(compiler[0]).stat().st_mtime_ns)
    parts = (code, *compiler, version, *_OPTIONS, platform.machine(), features)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(source: Path, compiler: list[str], library: Path) -> None:
    command = [*compiler, *_OPTIONS, "-o", str(library), str(source), "-lm"]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=_LIMIT_S
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise RuntimeError(f"{compiler[0]} failed: {said[-1]}")
