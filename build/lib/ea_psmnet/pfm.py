"""Reading of one-channel PFM (Portable Float Map) files, in whole or in part."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Window", "read_pfm", "readable"]

Window = tuple[slice, slice]
"""Rows and columns of an image, counted from its top left corner."""

_HEADER = re.compile(rb"(P[Ff])\s+(\d+)\s+(\d+)\s+([-+.\deE]+)[ \t\r]*\n")
_HEADER_BYTES = 256


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


def read_pfm(path: str | Path, window: Window | None = None) -> NDArray[np.float32]:
    """Read a one-channel PFM (Portable Float Map), values as stored.

    The format stores rows bottom-up; a negative scale means little-endian. The magnitude of the
    scale is ignored, as Middlebury requires: its files state 1/255 but hold pixels. Colour PFM
    (`PF`) is refused: it holds three values per pixel, usually optical flow, not disparity.

    Args:
        path: The file.
        window: Rows and columns to read from the disk; default: all.

    Returns:
        (H, W) float32, top row first, of the window if there is one.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a one-channel PFM, or not exactly as long as its header states.
    """
    path = Path(path)
    with readable(path), path.open("rb") as file:
        header = _HEADER.match(file.read(_HEADER_BYTES))
        if header is None:
            raise ValueError(f"{path}: no PFM header ('Pf', width and height, scale)")
        if header[1] == b"PF":
            raise ValueError(f"{path}: colour PFM ('PF'), expected one channel ('Pf') of disparity")
        width, height = int(header[2]), int(header[3])
        start = header.end()
        _check_length(path, width, height, os.fstat(file.fileno()).st_size - start)
        dtype = _dtype(path, header[4])
        # Memory-mapped, so that only the rows of the window are read.
        bottom_up = np.memmap(file, dtype, "r", offset=start, shape=(height, width))
        part = bottom_up[::-1] if window is None else bottom_up[::-1][window]
        return np.array(part, np.float32, order="C", subok=False)


def _check_length(path: Path, width: int, height: int, actual: int) -> None:
    expected = 4 * width * height
    if expected == 0 or actual != expected:
        raise ValueError(
            f"{path}: {width}x{height} pixels need {expected} bytes after the header, "
            f"the file has {actual}; it is damaged, fetch it again"
        )


def _dtype(path: Path, scale: bytes) -> str:
    try:
        value = float(scale)
    except ValueError:
        value = 0.0
    if value == 0:
        raise ValueError(f"{path}: PFM scale {scale.decode()!r}, expected a number other than 0")
    return "<f4" if value < 0 else ">f4"
