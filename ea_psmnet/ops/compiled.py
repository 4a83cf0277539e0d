"""C sources of this package, compiled for the processor at hand the first time they are needed.

That takes about a second, once on a machine. Where there is no C compiler the package works
without; `EA_PSMNET_COMPILE=0` asks for that.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

__all__ = ["load_library"]

_OPTIONS = ("-O3", "-ffp-contract=fast", "-shared", "-fPIC")
_PROCESSORS = ("-march=native", "-mcpu=native")
"""What compilers call the processor at hand; not every one knows both."""

_LIMIT_S = 120


@cache
def load_library(source: Path) -> ctypes.CDLL | None:
    """A C source as a library, or None where it cannot be had; why is warned of once.

    The library is kept in `$XDG_CACHE_HOME/ea_psmnet`, by default `~/.cache/ea_psmnet`.
    """
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_built(source, compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = f"{source.name} was not compiled, so convolutions take longer: {error}"
        warnings.warn(reason, stacklevel=2)
        return None


def _compiler() -> str | None:
    if os.environ.get("EA_PSMNET_COMPILE") == "0" or sys.platform == "win32":
        return None
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next((path for name in names if (path := shutil.which(name))), None)


def _built(source: Path, compiler: str) -> Path:
    """The library's path; it is there when this returns."""
    cache_folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(cache_folder) / "ea_psmnet"
    library = folder / f"{source.stem}-{_fingerprint(source, compiler)}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as workshop:
            made = Path(workshop) / library.name
            _compile(source, compiler, made)
            made.replace(library)  # whole or not at all, whoever else compiles just now
    return library


def _fingerprint(source: Path, compiler: str) -> str:
    """Of what a library depends on; a home folder may be shared by unlike machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    parts = (source.read_text(), compiler, *_OPTIONS, platform.platform(), features)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(source: Path, compiler: str, library: Path) -> None:
    said = ""
    for processor in _PROCESSORS:
        command = [compiler, *_OPTIONS, processor, "-o", str(library), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
        if done.returncode == 0:
            return
        said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else said
    raise RuntimeError(f"{compiler} failed: {said}")
