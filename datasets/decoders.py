"""Formats of ground truth and masks that `ea_psmnet.files` does not cover.

Disparities are returned in pixels, NaN where unknown, for `ea_psmnet.files.read_disparity`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.files import decode_image, read_npy, read_pfm

# Disparities --------------------------------------------------------------------------------------


def scaled_png(path: Path, steps: float) -> NDArray[np.float32]:
    """Read disparity from a 16-bit PNG that stores `steps` times the disparity; 0 is unknown."""
    stored = _values(path)
    return np.where(stored == 0, np.nan, stored / steps).astype(np.float32)


def depth_png(path: Path, scale: float) -> NDArray[np.float32]:
    """Read depth from a 16-bit PNG and convert it to disparity: `scale` / depth.

    The scale is the focal length in pixels times the baseline in the file's unit of depth. 0 and
    the largest value, which stands for everything beyond the format's range, are unknown.
    """
    stored = _values(path)
    known = (stored > 0) & (stored < np.iinfo(np.uint16).max)
    return np.where(known, scale / np.maximum(stored, 1), np.nan).astype(np.float32)


def depth_npy(path: Path, scale: float) -> NDArray[np.float32]:
    """Read depth from a NumPy file and convert it to disparity: `scale` / depth.

    Pixels whose depth is not positive are unknown; infinite depth gives disparity 0.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(scale / read_npy(path), np.float32)


def depth_float_png(path: Path, scale: float) -> NDArray[np.float32]:
    """Read float32 depth from the bytes of a four-channel PNG and convert it as `depth_npy` does.

    Byte order is blue, green, red, alpha (OpenCV's), as in TartanAir V2's own tools.
    """
    stored = _decoded(path)
    if stored.dtype != np.uint8 or stored.shape[2:] != (4,):
        raise ValueError(
            f"{path}: {stored.dtype} {stored.shape}, expected four channels of 8 bits that "
            "hold a float; the file was converted, download it again"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(scale / stored.view("<f4")[..., 0], np.float32)


def sintel_png(path: Path) -> NDArray[np.float32]:
    """Read Sintel's disparity encoded in colours: 4 R + G / 2^6 + B / 2^14."""
    stored = _decoded(path)
    if stored.ndim != 3 or stored.dtype != np.uint8:
        raise ValueError(f"{path}: expected disparity in the colours of an 8-bit PNG (Sintel)")
    blue, green, red = np.moveaxis(stored[..., :3].astype(np.float32), -1, 0)
    return np.asarray(red * 4 + green / 2**6 + blue / 2**14, np.float32)


def negated_pfm(path: Path) -> NDArray[np.float32]:
    """Read disparity from a PFM that stores it negated.

    Raises:
        ValueError: Some pixels are positive and none is negative.
    """
    stored = read_pfm(path)
    if not (stored < 0).any() and (stored > 0).any():
        raise ValueError(
            f"{path}: positive disparity, but this layout stores it negated; "
            "the files belong to another dataset"
        )
    return -stored


# Masks --------------------------------------------------------------------------------------------


def is_set(path: Path) -> NDArray[np.bool_]:
    """Return where an image is not 0."""
    return _plane(path) != 0


def is_unset(path: Path) -> NDArray[np.bool_]:
    """Return where an image is 0."""
    return _plane(path) == 0


def is_full(path: Path) -> NDArray[np.bool_]:
    """Return where an image has the largest value of its type, such as 255 for 8 bits."""
    plane = _plane(path)
    return plane == np.iinfo(plane.dtype).max


def neither_set(path: Path, other: Path) -> NDArray[np.bool_]:
    """Return where two images of the same size are both 0.

    Raises:
        ValueError: Their sizes differ.
    """
    one, two = is_unset(path), is_unset(other)
    if one.shape != two.shape:
        (height, width), (rows, columns) = one.shape, two.shape
        raise ValueError(
            f"{path}: {width}x{height} pixels, but {other} has {columns}x{rows}; "
            "a frame's masks must have the same size"
        )
    return one & two


def _plane(path: Path) -> NDArray[Any]:
    stored = _decoded(path)
    if stored.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path}: mask of {stored.dtype} values, expected 8 or 16 bits")
    return stored if stored.ndim == 2 else stored[..., 0]


def _values(path: Path) -> NDArray[Any]:
    stored = _decoded(path)
    if stored.ndim != 2 or stored.dtype != np.uint16:
        raise ValueError(
            f"{path}: {stored.dtype} {stored.shape}, expected one channel of 16 bits; "
            "the file was converted, download it again"
        )
    return stored


def _decoded(path: Path) -> NDArray[Any]:
    return decode_image(path, cv2.IMREAD_UNCHANGED)
