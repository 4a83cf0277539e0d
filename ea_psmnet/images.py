"""Reading of images: their headers are checked, then OpenCV decodes them."""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ea_psmnet.atomic import readable
from ea_psmnet.machine import free_memory

_MAX_PIXELS = 2**28
"""Maximum size, 16,384 x 16,384: more than any camera has; a small file can claim more."""
_HELD = 12
"""Bytes per pixel to read a 16-bit colour image: as stored, in 8 bits, and in RGB order."""
_OUT_OF_MEMORY = -4  # OpenCV's error code


def read_image(path: str | Path, tell: Callable[[str], object] | None = None) -> NDArray[np.uint8]:
    """Read a PNG, JPEG, WebP, PGM, PPM, TIFF or BMP image.

    Grey images are repeated over three channels, palettes are resolved, alpha is dropped (TIFF with
    8 bits: multiplied), and orientation tags (EXIF, TIFF) are applied. White is the maximum value
    that the file states, for example 4095 in a 12-bit PGM; otherwise 255 or 65535.

    Args:
        path: The file.
        tell: Receives one line about an image that looks wrong: a 16-bit image that uses less than
            a sixteenth of its range. Default: a Python warning.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The file cannot be read, is not a regular file, or needs more memory than is free.
        ValueError: The file is damaged, not an image, neither 8 nor 16 bits deep, or too large.
    """
    path = Path(path)
    image, header = _decoded(path, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path}: image of {image.dtype} values; convert it to 8 or 16 bits")
    white = header.white or int(np.iinfo(image.dtype).max)
    with readable(path):  # for its message about memory
        if image.dtype == np.uint16 or white != 255:
            image = eight_bits(image, str(path), white, tell)
        code = cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB
        return np.asarray(cv2.cvtColor(image, code), np.uint8)


def eight_bits(
    image: NDArray[Any],
    name: str,
    white: int = 65535,
    tell: Callable[[str], object] | None = None,
) -> NDArray[np.uint8]:
    """Convert a uint8 or uint16 image, (H, W) or (H, W, C), whose white has the value `white`.

    Messages call it `name`, and go to `tell` as in `read_image`.
    """
    if image.dtype == np.uint16 and 16 * (brightest := int(image.max())) < white:
        (tell or warnings.warn)(
            f"{name}: 16-bit image of values up to {brightest}, nearly black: if it holds fewer "
            f"bits, scale its values so that white is {white}, or save 8 bits"
        )
    made = cv2.convertScaleAbs(image, alpha=255 / white)  # rounds and saturates
    return np.asarray(made, np.uint8).reshape(image.shape)


def decode_image(path: Path, flags: int) -> NDArray[Any]:
    """Decode an image file by OpenCV with `flags`; errors name the path.

    Raises:
        FileNotFoundError, OSError, ValueError: See `read_image`.
    """
    return _decoded(path, flags)[0]


def _decoded(path: Path, flags: int) -> tuple[NDArray[Any], _Header]:
    with readable(path):
        data = path.read_bytes()
        header = _header(data)
        _check(path, header)
        image = _pixels(data, flags)
    if image is None:
        raise ValueError(f"{path}: damaged, or not an image ({len(data)} bytes); fetch it again")
    if header.inverted and image.dtype == np.uint16:
        image = cv2.bitwise_not(image)
    return image, header


def _check(path: Path, header: _Header) -> None:
    """Refuse images that cannot be decoded, or are too large."""
    pixels = header.width * header.height
    if header.refused:
        raise ValueError(f"{path}: {header.refused}")
    if pixels > _MAX_PIXELS:
        raise ValueError(
            f"{path}: states {header.width}x{header.height} pixels, more than {_MAX_PIXELS:,}; "
            "cut it into parts, or fetch it again if it is no such image"
        )
    if _HELD * pixels > free_memory():
        raise MemoryError


def _pixels(data: bytes, flags: int) -> NDArray[Any] | None:
    """Decode an image; None if the data are not an image.

    Raises:
        MemoryError: The image does not fit into memory.
    """
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # for example, an empty buffer
        if error.code == _OUT_OF_MEMORY:
            raise MemoryError from None
        return None


# Headers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Header:
    """Content of the header of a file."""

    width: int = 0
    """Width; 0 for formats whose header is not parsed, where the limit of OpenCV applies."""
    height: int = 0
    white: int | None = None
    """Value of white as decoded by OpenCV, if it is not the largest of the type."""
    inverted: bool = False
    """Whether 0 is white, which OpenCV respects in 8-bit images only."""
    refused: str = ""
    """Why the file cannot be read, although OpenCV would decode it."""


def _header(data: bytes) -> _Header:
    if found := _BITMAP.match(data) or _PIXMAP.match(data):
        width, height, *maximum = map(int, found.groups())
        scaled = data[:2] in (b"P2", b"P3") and maximum[0] <= 255  # by OpenCV
        return _Header(width, height, maximum[0] if maximum and not scaled else None)
    if data[:4] in _TIFF:
        return _tiff_header(_tiff_tags(data))
    return _Header(*_stated_size(data))


# Portable any-map: numbers separated by white space or comments.
_NUMBER = rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})"
_BITMAP = re.compile(rb"P[14]" + 2 * _NUMBER)
_PIXMAP = re.compile(rb"P[2356]" + 3 * _NUMBER)


def _stated_size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG, JPEG or BMP; WebP cannot exceed the limit."""
    Image.preinit()
    for name in ("PNG", "JPEG", "BMP"):
        # Not by `Image.open`, which warns of sizes below this limit.
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(data[:16]):
            try:
                return factory(io.BytesIO(data), "").size
            except Exception:  # damaged headers raise many types; OpenCV decides
                break
    return 0, 0


_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WIDTH, _HEIGHT, _BITS, _COLOURS, _SAMPLES, _PLANES = 256, 257, 258, 262, 277, 284
_TIFF_NUMBERS = {3: "H", 4: "I", 16: "Q"}


def _tiff_header(tags: dict[int, int]) -> _Header:
    bits = tags.get(_BITS, 1)
    size = tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0)
    if bits > 8 and tags.get(_PLANES) == 2 and tags.get(_SAMPLES, 1) > 1:
        what = f"TIFF of {bits} bits with a plane for each colour"
        return _Header(*size, refused=f"{what}; save it with interleaved colours or 8 bits")
    # OpenCV shifts fewer than 16 bits up to 16.
    white = (2**bits - 1) << (16 - bits) if 8 < bits < 16 else None
    return _Header(*size, white, inverted=tags.get(_COLOURS) == 0)


def _tiff_tags(data: bytes) -> dict[int, int]:
    """First values of the integer tags of the first image, up to any damage."""
    order = "<" if data[:2] == b"II" else ">"
    big = b"+" in data[2:4]  # 64-bit offsets
    word, number, entry = ("Q", "Q", "HHQ") if big else ("I", "H", "HHI")
    inline, head = struct.calcsize(f"={word}"), struct.calcsize(f"={entry}")
    tags: dict[int, int] = {}
    try:
        (place,) = struct.unpack_from(order + word, data, 8 if big else 4)
        (count,) = struct.unpack_from(order + number, data, place)
        place += struct.calcsize(f"={number}")
        for _ in range(count):
            tag, kind, values = struct.unpack_from(order + entry, data, place)
            place += head
            if code := _TIFF_NUMBERS.get(kind):
                there = place
                if values * struct.calcsize(f"={code}") > inline:
                    (there,) = struct.unpack_from(order + word, data, place)
                (tags[tag],) = struct.unpack_from(order + code, data, there)
            place += inline
    except (struct.error, OverflowError):  # beyond the end
        pass
    return tags
