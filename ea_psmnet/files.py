"""Images and disparity maps on disk: strict reading, atomic writing.

Disparity formats, chosen by suffix:

| suffix | unknown pixels | source |
|---|---|---|
| `.pfm` | inf, NaN or negative | Scene Flow, Middlebury, ETH3D |
| `.png` | 0; 16-bit, 256 steps a pixel of disparity | KITTI |
| `.npy` | inf, NaN or negative; any floating type | numpy |
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ea_psmnet.atomic import atomic_path, readable, remove_leftovers, remove_own
from ea_psmnet.images import decode_image, read_image

__all__ = [
    "DISPARITY_SUFFIXES",
    "IMAGE_SUFFIXES",
    "atomic_path",
    "content_hash",
    "decode_image",
    "disparity_values",
    "printable",
    "read_disparity",
    "read_image",
    "read_npy",
    "read_pfm",
    "readable",
    "remove_leftovers",
    "remove_own",
    "write_depth_png",
    "write_disparity_png",
    "write_image",
    "write_json",
    "write_npy",
    "write_pfm",
    "write_share_png",
    "write_text",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".pgm", ".ppm", ".tif", ".tiff", ".bmp")
"""Suffixes by which images are found; `read_image` goes by content instead."""

_WRITTEN = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix != ".pgm")  # a grey format

Window = tuple[slice, slice]
"""Rows and columns of an image, counted from its top left corner."""

_PFM_HEADER = re.compile(rb"(P[Ff])\s+(\d+)\s+(\d+)\s+([-+.\deE]+)[ \t\r]*\n")
_PFM_HEADER_BYTES = 256

_PNG_STEPS = 256  # KITTI: stored value = 256 * disparity in pixels
_MILLIMETRES = 1000


# Text ---------------------------------------------------------------------------------------------


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, atomically; bytes of file names that are not UTF-8 are escaped."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str | Path) -> str:
    r"""Escape what a line of text cannot hold in every terminal and encoding.

    File names may contain line feeds, and bytes that are not UTF-8.

    Example:
        >>> print(printable(os.fsdecode(b"caf\xe9\n")))
        caf\xe9\n
    """
    return _UNPRINTABLE.sub(lambda found: _escape(found[0]), str(text))


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of paths, as many as distinguish them, in printable characters.

    Raises:
        ValueError: Two paths are the same.
    """
    for count in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = [printable("/".join(path.parts[-count:])) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"named twice: {', '.join(map(str, paths))}")


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python represents a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        ValueError: `value` has no JSON form, like NaN and infinity.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not written, the value has no JSON form: {error}") from error
    write_text(path, text + "\n")


# Images -------------------------------------------------------------------------------------------


def write_image(path: str | Path, rgb: NDArray[np.uint8]) -> None:
    """Write an (H, W, 3) uint8 RGB image in the format its suffix names, atomically.

    Raises:
        ValueError: The suffix is not that of a colour format, or the array is not such an image.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITTEN:
        raise ValueError(f"{path}: unknown image suffix; use one of {', '.join(_WRITTEN)}")
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ValueError(f"{path}: not written, {rgb.dtype} {rgb.shape} is not uint8 (H, W, 3)")
    _encode(path, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))


# Disparity maps -----------------------------------------------------------------------------------


def read_disparity(
    path: str | Path,
    decode: Callable[[Path], NDArray[np.float32]] | None = None,
    window: Window | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Read a disparity map, in the format of its suffix or by `decode`.

    Negative values are unknown: no point of a rectified pair has a negative disparity, and Scene
    Flow has wrong pixels of that kind. A stored 0 in `.pfm` and `.npy` is a known disparity (a
    point at infinity); in `.png` it means unknown.

    Args:
        path: The file.
        decode: Function that reads the values like `disparity_values`, for other formats.
        window: Rows and columns to read; of a PFM, only these are read from the disk.

    Returns:
        Disparity, (H, W) float32 in pixels, 0 where unknown; and the mask of valid pixels, (H, W).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or its scale is unknown, as that of an 8-bit PNG.
    """
    disparity = disparity_values(path, decode, window)
    with np.errstate(invalid="ignore"):
        valid = np.isfinite(disparity) & (disparity >= 0)
    return np.where(valid, disparity, np.float32(0)), valid


def disparity_values(
    path: str | Path,
    decode: Callable[[Path], NDArray[np.float32]] | None = None,
    window: Window | None = None,
) -> NDArray[np.float32]:
    """Like `read_disparity`, but values as stored: unknown ones are infinite, NaN or negative."""
    path = Path(path)
    suffix = path.suffix.lower()
    if decode is None and suffix == ".pfm":
        return read_pfm(path, window)
    reader = decode or _DISPARITY_READERS.get(suffix)
    if reader is None:
        raise ValueError(f"{path}: unknown disparity suffix; use {', '.join(DISPARITY_SUFFIXES)}")
    try:
        values = reader(path)
    except MemoryError:
        raise OSError(f"{path}: cannot be read (out of memory)") from None
    return values if window is None else values[window]


def write_pfm(path: str | Path, array: ArrayLike) -> None:
    """Write an (H, W) array as little-endian PFM with unchanged values, atomically."""
    rows = _as_map(path, array).astype("<f4")
    height, width = rows.shape
    _write_bytes(path, f"Pf\n{width} {height}\n-1.0\n".encode() + rows[::-1].tobytes())


def write_npy(path: str | Path, array: ArrayLike) -> None:
    """Write an array as `.npy` with unchanged values and type, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.asarray(array), allow_pickle=False)


def write_disparity_png(path: str | Path, disparity: ArrayLike) -> None:
    """Write an (H, W) disparity in pixels as KITTI's 16-bit PNG, atomically.

    Values are rounded to 1/256 pixel. As 0 means unknown, positive values below 1/256 are stored as
    1/256, and zero, negative and non-finite values as unknown. Values over 65535/256 = 255.996
    pixels, the maximum of the format, are also stored as unknown: clipped, they would form a wall
    of false points in a point cloud. `write_pfm` has no such limit.
    """
    _write_steps(path, disparity, _PNG_STEPS)


def write_depth_png(path: str | Path, depth: ArrayLike) -> None:
    """Write an (H, W) depth in metres as 16-bit PNG of millimetres, atomically.

    This is what RGB-D cameras write. 0 means unknown, which includes depths over 65.535 m.
    """
    _write_steps(path, depth, _MILLIMETRES)


def write_share_png(path: str | Path, shares: ArrayLike) -> None:
    """Write an (H, W) array from 0 to 1 as grey 8-bit PNG, 0 to 255, atomically."""
    grey = np.rint(255 * np.clip(_as_map(path, shares), 0, 1))
    _encode(Path(path), grey.astype(np.uint8), suffix=".png")


def _write_steps(path: str | Path, values: ArrayLike, steps_per_unit: int) -> None:
    pixels = _as_map(path, values)
    with np.errstate(invalid="ignore"):
        steps = np.maximum(np.rint(pixels.astype(np.float64) * steps_per_unit), 1)
        storable = (pixels > 0) & (steps <= np.iinfo(np.uint16).max)
    _encode(Path(path), np.where(storable, steps, 0).astype(np.uint16), suffix=".png")


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
        header = _PFM_HEADER.match(file.read(_PFM_HEADER_BYTES))
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


def read_npy(path: Path) -> NDArray[np.float32]:
    """Read an (H, W) array of floats from an `.npy` file."""
    with readable(path):
        array = _mapped(path)
        if array.ndim != 2:
            raise ValueError(f"{path}: expected one array (H, W), got {array.shape}")
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(
                f"{path}: {array.dtype} values, whose scale is unknown; save floats in pixels"
            )
        with np.errstate(over="ignore"):
            return np.array(array, np.float32, order="C", subok=False)


def _mapped(path: Path) -> NDArray[Any]:
    """Memory-map an array, which checks its header against the size of the file."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # NumPy parses the header as Python code: any error
        told = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"{path}: damaged, or not an .npy file of numbers: {told or type(error).__name__}"
        ) from error


def _read_disparity_png(path: Path) -> NDArray[np.float32]:
    image = decode_image(path, cv2.IMREAD_UNCHANGED)
    if image.dtype != np.uint16 or image.ndim != 2:
        channels = image.shape[2] if image.ndim == 3 else 1
        raise ValueError(
            f"{path}: {8 * image.itemsize}-bit PNG of {channels} channel(s), whose scale is "
            "unknown; expected 16 bits, 1 channel, value = 256 * disparity (KITTI): "
            "convert it, or save floats in pixels as .npy or .pfm"
        )
    return np.where(image == 0, np.float32(np.nan), image.astype(np.float32) / _PNG_STEPS)


_DISPARITY_READERS: dict[str, Callable[[Path], NDArray[np.float32]]] = {
    ".npy": read_npy,
    ".pfm": read_pfm,
    ".png": _read_disparity_png,
}

DISPARITY_SUFFIXES = tuple(_DISPARITY_READERS)
"""Suffixes that `read_disparity` reads."""


# Bytes --------------------------------------------------------------------------------------------


def _write_bytes(path: str | Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _encode(path: Path, image: NDArray[Any], suffix: str = "") -> None:
    kind = suffix or path.suffix.lower()
    encoded, data = cv2.imencode(kind, image)
    if not encoded:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise ValueError(f"{path}: not written, {size} pixels are too large for {kind}")
    _write_bytes(path, data.tobytes())


def _as_map(path: str | Path, array: ArrayLike) -> NDArray[Any]:
    pixels = np.asarray(array)
    if pixels.ndim != 2 or pixels.size == 0:
        raise ValueError(f"{path}: not written, expected an array (H, W), got {pixels.shape}")
    return pixels


def content_hash(path: Path | str) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
