"""Images and disparity maps on disk: read strictly, written whole or not at all.

Disparity formats, chosen by suffix:

| suffix | unknown pixels | source |
|---|---|---|
| `.pfm` | inf, NaN or negative | Scene Flow, Middlebury, ETH3D |
| `.png` | 0; 16-bit, 256 steps a pixel of disparity | KITTI |
| `.npy` | inf, NaN or negative; any floating type | numpy |
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "DISPARITY_SUFFIXES",
    "IMAGE_SUFFIXES",
    "atomic_path",
    "read_disparity",
    "read_image",
    "read_pfm",
    "write_disparity_png",
    "write_image",
    "write_json",
    "write_npy",
    "write_pfm",
    "write_text",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".ppm", ".tif", ".tiff", ".bmp")
"""What `write_image` writes; `read_image` goes by content and reads whatever OpenCV can."""

_PNG_STEPS = 256  # KITTI: stored value = 256 * disparity in pixels
_PFM_HEADER = re.compile(rb"(P[Ff])\s+(\d+)\s+(\d+)\s+([-+.\deE]+)[ \t\r]*\n")


# Writing, whole or not at all ---------------------------------------------------------------------


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` when the block ends without error.

    The temporary file lies in the same folder, which is created, and has the same suffix. When the
    block raises, it is removed and what was at `path` before is still there.

    Raises:
        OSError: the file cannot be written; the message names `path` and the reason.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid4().hex[:8]}{path.suffix}")
    try:
        # Replacing a device such as /dev/null by a file would break the machine for everybody.
        if path.exists() and not path.is_file():
            raise OSError(f"{path}: not written, what has this name is not a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)  # noqa: PTH105 - the atomic call is the point
    except OSError as error:
        if error.strerror is None:  # not the system's but told in full, by a write nested here
            raise
        raise OSError(
            f"{path}: not written ({error.strerror}); "
            "check the folder's permissions and the free space"
        ) from error
    finally:
        with suppress(OSError):  # usually gone: moved to `path`, or never made
            temporary.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        ValueError: `value` has no JSON form; NaN and infinity have none.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not written, the value has no JSON form: {error}") from error
    write_text(path, text + "\n")


# Images -------------------------------------------------------------------------------------------


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read a PNG, JPEG, WebP, PPM, TIFF or BMP image.

    Grey is repeated over three channels, a palette resolved, alpha dropped. Orientation tags are
    ignored (TIFF's apart, which the decoder applies): rectification aligned the rows as stored.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no image, or neither 8 nor 16 bits deep.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    image = _decode(Path(path), flags)
    if image.dtype == np.uint16:
        # 65535 / 255 = 257: full scale maps to full scale; dropping the low byte darkens by half
        # a step on average.
        image = np.rint(image / 257).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f"{path}: image of {image.dtype} values; convert it to 8 or 16 bits")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def write_image(path: str | Path, rgb: NDArray[np.uint8]) -> None:
    """Write an (H, W, 3) uint8 RGB image in the format its suffix names, atomically.

    Raises:
        ValueError: the suffix is none of `IMAGE_SUFFIXES`, or the array is no such image.
    """
    path = Path(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"{path}: unknown image suffix; use one of {', '.join(IMAGE_SUFFIXES)}")
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ValueError(f"{path}: not written, {rgb.dtype} {rgb.shape} is no uint8 (H, W, 3)")
    _encode(path, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))


# Disparity maps -----------------------------------------------------------------------------------


def read_disparity(path: str | Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Read a disparity map in the format its suffix names: `.pfm`, `.png` or `.npy`.

    A negative value is unknown, never its absolute value: in a rectified pair nothing lies beyond
    infinity, and Scene Flow has wrong pixels of that kind. A stored 0 in `.pfm` and `.npy` is a
    known disparity (a point at infinity); in `.png` it stands for unknown.

    Returns:
        Disparity, (H, W) float32 in pixels, 0 where unknown; and (H, W) bool, true where known.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or in a form whose scale is unknown, as an 8-bit PNG.
    """
    path = Path(path)
    reader = _DISPARITY_READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: unknown disparity suffix; use {', '.join(DISPARITY_SUFFIXES)}")
    disparity = reader(path)
    with np.errstate(invalid="ignore"):
        valid = np.isfinite(disparity) & (disparity >= 0)
    return np.where(valid, disparity, np.float32(0)), valid


def read_pfm(path: str | Path) -> NDArray[np.float32]:
    """Read a one-channel PFM (Portable Float Map), values as stored.

    The format keeps rows bottom-up and tells little-endian by a negative scale. The scale's size is
    ignored, as Middlebury asks: its files state 1/255 there and hold plain pixels. Colour PFM
    (`PF`) is refused: it holds three values a pixel, usually optical flow, not disparity.

    Returns:
        (H, W) float32, top row first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no one-channel PFM, or not exactly as long as its header states.
    """
    data = _read_bytes(Path(path))
    header = _PFM_HEADER.match(data)
    if header is None:
        raise ValueError(f"{path}: no PFM header ('Pf', width and height, scale)")
    if header[1] == b"PF":
        raise ValueError(f"{path}: colour PFM ('PF'), expected one channel ('Pf') of disparity")
    width, height = int(header[2]), int(header[3])
    expected, actual = 4 * width * height, len(data) - header.end()
    if expected == 0 or actual != expected:
        raise ValueError(
            f"{path}: {width}x{height} pixels need {expected} bytes after the header, "
            f"the file has {actual}; it is damaged, fetch it again"
        )
    dtype = _pfm_dtype(Path(path), header[4])
    bottom_up = np.frombuffer(data, dtype, offset=header.end()).reshape(height, width)
    return bottom_up[::-1].astype(np.float32, order="C")


def write_pfm(path: str | Path, array: ArrayLike) -> None:
    """Write an (H, W) array as little-endian PFM, values as they are, atomically."""
    rows = _as_map(path, array).astype("<f4")
    height, width = rows.shape
    _write_bytes(path, f"Pf\n{width} {height}\n-1.0\n".encode() + rows[::-1].tobytes())


def write_npy(path: str | Path, array: ArrayLike) -> None:
    """Write an array in numpy's own format, values and type as they are, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.asarray(array), allow_pickle=False)


def write_disparity_png(path: str | Path, disparity: ArrayLike) -> None:
    """Write an (H, W) disparity in pixels as KITTI's 16-bit PNG, atomically.

    Values are rounded to 1/256 pixel. The format's 0 is unknown, so a positive value below 1/256 is
    stored as 1/256, while zero, negative and non-finite ones are stored as unknown. So are those
    over 65535/256 = 255.996 pixels, the most the format holds: clipped, they would become a wall of
    false points in a point cloud. `write_pfm` has no such limit.
    """
    pixels = _as_map(path, disparity)
    with np.errstate(invalid="ignore"):
        steps = np.maximum(np.rint(pixels.astype(np.float64) * _PNG_STEPS), 1)
        storable = (pixels > 0) & (steps <= np.iinfo(np.uint16).max)
    _encode(Path(path), np.where(storable, steps, 0).astype(np.uint16), suffix=".png")


def _read_npy(path: Path) -> NDArray[np.float32]:
    data = _read_bytes(path)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: damaged, or no .npy file of plain numbers: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.size == 0:
        raise ValueError(f"{path}: expected one array (H, W), got {np.shape(array)}")
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"{path}: {array.dtype} values, whose scale is unknown; save floats in pixels"
        )
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _read_disparity_png(path: Path) -> NDArray[np.float32]:
    image = _decode(path, cv2.IMREAD_UNCHANGED)
    if image.dtype != np.uint16 or image.ndim != 2:
        channels = image.shape[2] if image.ndim == 3 else 1
        raise ValueError(
            f"{path}: {8 * image.itemsize}-bit PNG of {channels} channel(s), whose scale is "
            "unknown; expected 16 bits, 1 channel, value = 256 * disparity (KITTI): "
            "convert it, or save floats in pixels as .npy or .pfm"
        )
    disparity = image.astype(np.float32) / _PNG_STEPS
    return np.where(image == 0, np.float32(np.nan), disparity)


_DISPARITY_READERS: dict[str, Callable[[Path], NDArray[np.float32]]] = {
    ".npy": _read_npy,
    ".pfm": read_pfm,
    ".png": _read_disparity_png,
}

DISPARITY_SUFFIXES = tuple(_DISPARITY_READERS)
"""What `read_disparity` reads."""


# Bytes --------------------------------------------------------------------------------------------


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise OSError(f"{path}: cannot be read ({error.strerror or error})") from error


def _write_bytes(path: str | Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _decode(path: Path, flags: int) -> NDArray[Any]:
    data = _read_bytes(path)
    # OpenCV raises for an empty buffer and for a header of too many pixels; else it returns None.
    image = None
    with suppress(cv2.error):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise ValueError(f"{path}: damaged, or not an image ({len(data)} bytes); fetch it again")
    return image


def _encode(path: Path, image: NDArray[Any], suffix: str = "") -> None:
    _, data = cv2.imencode(suffix or path.suffix.lower(), image)
    _write_bytes(path, data.tobytes())


def _as_map(path: str | Path, array: ArrayLike) -> NDArray[Any]:
    pixels = np.asarray(array)
    if pixels.ndim != 2 or pixels.size == 0:
        raise ValueError(f"{path}: not written, expected an array (H, W), got {pixels.shape}")
    return pixels


def _pfm_dtype(path: Path, scale: bytes) -> str:
    try:
        value = float(scale)
    except ValueError:
        value = 0.0
    if value == 0:
        raise ValueError(f"{path}: PFM scale {scale.decode()!r}, expected a number other than 0")
    return "<f4" if value < 0 else ">f4"
