"""Random changes of a pair's geometry: scale, and a right camera that is not quite level.

The truth follows exactly. Positions are pixel centres: scaling by s takes x to s (x + 1/2) - 1/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.transforms import check_fits, cut, random_window
from ea_psmnet.sample import StereoSample

__all__ = ["Geometric", "Tilt", "geometric_crop", "resized", "tilted"]

_Window = tuple[slice, slice]
_WARPABLE = 2**15 - 2
"""Rows or columns that OpenCV's warps take."""
_SMOOTH = 1.0
"""Truth whose neighbours differ by less, in pixels, is one surface and may be interpolated."""


@dataclass(frozen=True)
class Geometric:
    """How strongly and how often the geometry changes."""

    scale_probability: float = 0.8
    """Share of samples that are scaled."""
    scale: tuple[float, float] = (0.8, 1.5)
    """Smallest and largest factor, drawn evenly on a logarithmic scale. An image too small for the
    crop is enlarged as far as needed, up to the largest factor."""
    stretch: float = 1.15
    """Width and height are scaled apart by up to this ratio each, one up, the other down."""
    tilt_probability: float = 0.15
    """Share of samples whose right camera is moved and turned."""
    shift: float = 1.5
    """Up to so many pixels up or down."""
    angle: float = 0.3
    """Up to so many degrees about the image's centre."""


@dataclass(frozen=True)
class Tilt:
    """The right image turned about a point, then moved down."""

    angle: float
    """Degrees, clockwise as seen (from x to y, y pointing down)."""
    shift: float
    """Pixels."""
    centre: tuple[float, float]
    """(x, y) in pixels."""

    def forward(self) -> NDArray[np.float64]:
        """(2, 3): takes a point (x, y, 1) of the right image to its place after the tilt."""
        turn = math.radians(self.angle)
        cos, sin = math.cos(turn), math.sin(turn)
        (x, y) = self.centre
        return np.array(
            [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y + self.shift]]
        )


def geometric_crop(
    sample: StereoSample, size: tuple[int, int], ranges: Geometric, rng: np.random.Generator
) -> StereoSample:
    """Cut a random window, of a tilted right image at times, and scale it to `size`.

    Args:
        sample: The pair.
        size: (height, width) in pixels.
        ranges: What may change, and how much.
        rng: Draws it.

    Returns:
        A sample of that size with arrays of its own.

    Raises:
        ValueError: the image is too small even at the largest scale.
    """
    largest = max(1.0, ranges.scale[1])
    check_fits(sample, (math.ceil(size[0] / largest), math.ceil(size[1] / largest)))
    source = _source_size(sample.disparity.shape, size, ranges, rng)
    window = random_window(sample.disparity.shape, source, rng)
    tilt = _draw_tilt(sample.disparity.shape, ranges, rng)
    return resized(tilted(sample, tilt, window) if tilt else cut(sample, window), size)


def _source_size(
    shape: tuple[int, ...], size: tuple[int, int], ranges: Geometric, rng: np.random.Generator
) -> tuple[int, int]:
    """(height, width) of the window that scaling will bring to `size`."""
    height, width = size
    if rng.random() < ranges.scale_probability:
        scale = math.exp(rng.uniform(*np.log(ranges.scale)))
        stretch = math.exp(rng.uniform(-1, 1) * math.log(ranges.stretch))
        height, width = round(height / scale * stretch), round(width / scale / stretch)
    return min(max(height, 1), shape[0]), min(max(width, 1), shape[1])


def _draw_tilt(shape: tuple[int, ...], ranges: Geometric, rng: np.random.Generator) -> Tilt | None:
    if rng.random() >= ranges.tilt_probability:
        return None
    angle, shift = rng.uniform(-1, 1, 2) * (ranges.angle, ranges.shift)
    return Tilt(float(angle), float(shift), ((shape[1] - 1) / 2, (shape[0] - 1) / 2))


def tilted(sample: StereoSample, tilt: Tilt, window: _Window) -> StereoSample:
    """The window of a sample whose right image is tilted; pixels come from beyond the window.

    The match of (x, y) moves from (x - d, y) to `tilt.forward()` of it. The new disparity is its
    horizontal offset; the vertical one remains, as in a pair that is badly rectified. Truth that
    becomes negative, beyond infinity, is unknown.
    """
    rows, columns = window
    forward = tilt.forward()
    part = cut(sample, window)
    # From the window's pixels to the untilted image: warpAffine asks where to look.
    look = np.linalg.inv(np.vstack([forward, (0, 0, 1)]))[:2]
    look[:, 2] += look[:, :2] @ (columns.start, rows.start)
    source = sample.right
    if max(source.shape) > _WARPABLE:
        source, look = _narrowed(source, look, part.disparity.shape)
    right = cv2.warpAffine(
        source,
        look,
        part.disparity.shape[::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    x = np.arange(columns.start, columns.stop, dtype=np.float32)
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
    across, down, offset = forward[0].astype(np.float32)
    disparity = x - (across * (x - part.disparity) + down * y + offset)
    valid = part.valid & (disparity >= 0)
    return replace(
        part,
        right=np.asarray(right, np.uint8),
        disparity=np.where(valid, disparity, np.float32(0)),
        valid=valid,
    )


def _narrowed(
    image: NDArray[np.uint8], look: NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The part of an image that a window of `shape` looks at, and where to look in it."""
    height, width = shape
    corners = look @ [(0, width, 0, width), (0, 0, height, height), (1, 1, 1, 1)]  # (2, 4)
    size = image.shape[1::-1]
    first = np.clip(np.floor(corners.min(1)) - 1, 0, np.subtract(size, 1)).astype(int)
    last = np.clip(np.ceil(corners.max(1)) + 1, first, np.subtract(size, 1)).astype(int)
    moved = look.copy()
    moved[:, 2] -= first
    return image[first[1] : last[1] + 1, first[0] : last[0] + 1], moved


def resized(sample: StereoSample, size: tuple[int, int]) -> StereoSample:
    """Scale a sample to `size` (height, width), and its disparity with the width.

    Truth is interpolated within a smooth surface and taken from the nearest pixel elsewhere, so
    that foreground, background and unknown pixels never mix. Masks take the nearest pixel.
    """
    rows, columns = sample.disparity.shape
    if size == (rows, columns):
        return sample
    shrinks = size[0] <= rows and size[1] <= columns
    # OpenCV's area mode averages only where both sides shrink.
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    disparity, valid = _resized_truth(sample.disparity, sample.valid, size)
    return replace(
        sample,
        left=_resize(sample.left, size, method),
        right=_resize(sample.right, size, method),
        disparity=disparity * np.float32(size[1] / columns),
        valid=valid,
        masks={key: _resized_mask(mask, size) for key, mask in sample.masks.items()},
    )


def _resized_truth(
    disparity: NDArray[np.float32], valid: NDArray[np.bool_], size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    # Unknown pixels lie far below, so that a neighbourhood with one of them is never smooth.
    known = np.where(valid, disparity, np.float32(-1e6))
    patch = np.ones((3, 3), np.uint8)  # what bilinear weights reach around the nearest pixel
    smooth = cv2.dilate(known, patch) - cv2.erode(known, patch) < _SMOOTH
    nearest = _resize(disparity, size, cv2.INTER_NEAREST_EXACT)
    linear = _resize(disparity, size, cv2.INTER_LINEAR)
    truth = np.where(_resized_mask(smooth, size), linear, nearest)
    return truth, _resized_mask(valid, size)


def _resized_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    return _resize(mask.view(np.uint8), size, cv2.INTER_NEAREST_EXACT).view(np.bool_)


def _resize(array: NDArray, size: tuple[int, int], method: int) -> NDArray:
    return np.asarray(cv2.resize(array, size[::-1], interpolation=method))
