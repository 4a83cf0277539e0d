"""Images on disk: what their headers state, then their pixels as OpenCV decodes them."""

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

from ea_psmnet.machine import free_memory
from ea_psmnet.pfm import readable

__all__ = ["decode_image", "eight_bits", "read_image"]

_MAX_PIXELS = 2**28
"""16,384 x 16,384: no camera has more, and a few kilobytes can claim to."""
_HELD = 12
"""Bytes a pixel while a 16-bit colour image is read: as stored, in 8 bits, and in RGB order."""
_OUT_OF_MEMORY = -4  # OpenCV's error code


def read_image(path: str | Path, tell: Callable[[str], object] | None = None) -> NDArray[np.uint8]:
    """Read a PNG, JPEG, WebP, PGM, PPM, TIFF or BMP image.

    Grey is repeated over three channels, a palette resolved, alpha dropped, and an orientation tag
    (EXIF, TIFF) applied. White is the largest value that the format states: a PGM of 12 bits tells
    4095; where it states none, 255 or 65535.

    Args:
        path: The file.
        tell: Takes one line about an image that was read but looks wrong: one of 16 bits that uses
            less than a sixteenth of its range. A Python warning by default.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read, is no regular file, or needs more memory than is free.
        ValueError: it is damaged, no image, neither 8 nor 16 bits deep, or has too many pixels.
    """
    path = Path(path)
    image, header = _decoded(path, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path}: image of {image.dtype} values; convert it to 8 or 16 bits")
    white = header.white or int(np.iinfo(image.dtype).max)
    with readable(path):  # for its one line where memory ends
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
    """An image of uint8 or uint16 in 8 bits.

    Args:
        image: (H, W) or (H, W, C), not empty.
        name: Of the image.
        white: Its value for white.
        tell: As of `read_image`.
    """
    if image.dtype == np.uint16 and 16 * (brightest := int(image.max())) < white:
        (tell or _warn)(
            f"{name}: 16-bit image of values up to {brightest}, nearly black: if it holds fewer "
            f"bits, scale its values so that white is {white}, or save 8 bits"
        )
    made = cv2.convertScaleAbs(image, alpha=255 / white)  # rounds, and stops at 255
    return np.asarray(made, np.uint8).reshape(image.shape)


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def decode_image(path: Path, flags: int) -> NDArray[Any]:
    """Decode an image file as OpenCV does with `flags`; what goes wrong names the path.

    Raises:
        FileNotFoundError, OSError, ValueError: as `read_image`.
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
    """Refuse what cannot be decoded, or only at a price that no image is worth."""
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
    """Decoded; None of what is no image.

    Raises:
        MemoryError: it does not fit.
    """
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # an empty buffer, say
        if error.code == _OUT_OF_MEMORY:
            raise MemoryError from None
        return None


# Headers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Header:
    """What a file states before a pixel is decoded."""

    width: int = 0
    """0 where the format is not looked into; OpenCV's own limit holds then."""
    height: int = 0
    white: int | None = None
    """The value that OpenCV gives for white, where it is not the largest of its type."""
    inverted: bool = False
    """Whether 0 is white, which OpenCV heeds in images of 8 bits only."""
    refused: str = ""
    """Why it cannot be read, although OpenCV would give pixels."""


def _header(data: bytes) -> _Header:
    if found := _BITMAP.match(data) or _PIXMAP.match(data):
        width, height, *maximum = map(int, found.groups())
        scaled = data[:2] in (b"P2", b"P3") and maximum[0] <= 255  # by OpenCV
        return _Header(width, height, maximum[0] if maximum and not scaled else None)
    if data[:4] in _TIFF:
        return _tiff_header(_tiff_tags(data))
    return _Header(*_stated_size(data))


# Portable any-map: numbers with white space or comments between them.
_NUMBER = rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})"
_BITMAP = re.compile(rb"P[14]" + 2 * _NUMBER)
_PIXMAP = re.compile(rb"P[2356]" + 3 * _NUMBER)


def _stated_size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG, JPEG or BMP; WebP cannot hold more than the limit."""
    Image.preinit()
    for name in ("PNG", "JPEG", "BMP"):
        # Not by `Image.open`: that warns of sizes below the limit here.
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(data[:16]):
            try:
                return factory(io.BytesIO(data), "").size
            except Exception:  # a damaged header ends in many kinds; OpenCV has the last word
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
    # Fewer than 16 bits are moved up to 16 by OpenCV.
    white = (2**bits - 1) << (16 - bits) if 8 < bits < 16 else None
    return _Header(*size, white, inverted=tags.get(_COLOURS) == 0)


def _tiff_tags(data: bytes) -> dict[int, int]:
    """First value of each whole-number tag of the first image, up to where it is damaged."""
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
