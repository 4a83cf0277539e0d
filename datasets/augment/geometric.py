"""Random crops, and geometric augmentation: scale, and a tilted right camera.

Ground truth is transformed exactly. Positions are pixel centres: scaling by s maps x to
s (x + 1/2) - 1/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.files import Window
from ea_psmnet.sample import StereoSample


def random_crop(
    sample: StereoSample, size: tuple[int, int], rng: np.random.Generator
) -> StereoSample:
    """Crop the same random window from both images, the disparity, the valid pixels and the masks.

    The same window for both views leaves disparities unchanged. Points whose match is left of the
    right window stay valid: a network must cope with them at the left edge of every image.

    The result has `size` (height, width), in pixels, and arrays of its own, so that the full images
    can be freed.

    Raises:
        ValueError: The image is smaller than the window.
    """
    check_fits(sample, size)
    return cut(sample, random_window(sample.disparity.shape, size, rng))


def cut(sample: StereoSample, window: Window) -> StereoSample:
    """Crop a sample to a window of rows and columns, copying the arrays."""
    return replace(
        sample,
        left=sample.left[window].copy(),
        right=sample.right[window].copy(),
        disparity=sample.disparity[window].copy(),
        valid=sample.valid[window].copy(),
        masks={key: mask[window].copy() for key, mask in sample.masks.items()},
    )


def random_window(
    shape: tuple[int, ...], size: tuple[int, int], rng: np.random.Generator
) -> Window:
    """Draw a window of `size` (height, width) in an image of `shape`, uniformly."""
    top = int(rng.integers(shape[0] - size[0] + 1))
    start = int(rng.integers(shape[1] - size[1] + 1))
    return np.s_[top : top + size[0], start : start + size[1]]


def check_fits(sample: StereoSample, size: tuple[int, int], enlarged: float = 1.0) -> None:
    """Raise a ValueError if the sample, enlarged, is smaller than `size` (height, width)."""
    (height, width), (rows, columns) = size, sample.disparity.shape
    least = (math.ceil(side / enlarged) for side in size)
    if not all(0 < side <= there for side, there in zip(least, (rows, columns), strict=True)):
        even = f", even enlarged {enlarged:g} times" if enlarged > 1 else ""
        raise ValueError(
            f"{sample.name}: no crop of {height}x{width} pixels (height x width) fits "
            f"the image of {rows}x{columns}{even}; choose a smaller crop or exclude the image"
        )


_WARPABLE = 2**15 - 2
"""Largest number of rows or columns that OpenCV can warp."""
_SMOOTH = 1.0
"""Disparities that differ by less, in pixels, belong to one surface and may be interpolated."""


@dataclass(frozen=True)
class Geometric:
    """Strength and probability of geometric augmentation."""

    scale_probability: float = 0.8
    """Share of samples that are scaled."""
    scale: tuple[float, float] = (0.65, 2.0)
    """Smallest and largest factor, drawn log-uniformly. An image too small for the crop is enlarged
    as far as needed, up to the largest factor."""
    stretch: float = 1.15
    """Largest ratio by which width and height are scaled further, one up and the other down."""
    tilt_probability: float = 0.15
    """Share of samples whose right camera is shifted and rotated."""
    shift: float = 1.5
    """Largest vertical shift in pixels."""
    angle: float = 0.3
    """Largest rotation about the image centre in degrees."""


@dataclass(frozen=True)
class Tilt:
    """Rotation of the right image about a point, followed by a vertical shift."""

    angle: float
    """Degrees, clockwise as seen (from x to y, with y pointing down)."""
    shift: float
    """Pixels, positive is down."""
    centre: tuple[float, float]
    """(x, y) in pixels."""

    def forward(self) -> NDArray[np.float64]:
        """Return the (2, 3) matrix that maps points (x, y, 1) of the right image."""
        turn = math.radians(self.angle)
        cos, sin = math.cos(turn), math.sin(turn)
        (x, y) = self.centre
        return np.array(
            [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y + self.shift]]
        )


def geometric_crop(
    sample: StereoSample, size: tuple[int, int], ranges: Geometric, rng: np.random.Generator
) -> StereoSample:
    """Crop a random window, sometimes tilt the right image, and scale the window to `size`.

    The result has `size` (height, width), in pixels, and arrays of its own.

    Raises:
        ValueError: The image is too small even at the largest scale.
    """
    check_fits(sample, size, max(1.0, ranges.scale[1]))
    source = _source_size(sample.disparity.shape, size, ranges, rng)
    window = random_window(sample.disparity.shape, source, rng)
    tilt = _draw_tilt(sample.disparity.shape, ranges, rng)
    return resized(tilted(sample, tilt, window) if tilt else cut(sample, window), size)


def _source_size(
    shape: tuple[int, ...], size: tuple[int, int], ranges: Geometric, rng: np.random.Generator
) -> tuple[int, int]:
    """Draw (height, width) of the window that is then scaled to `size`."""
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


def tilted(sample: StereoSample, tilt: Tilt, window: Window) -> StereoSample:
    """Crop a window of a sample and tilt its right image, with pixels from outside the window.

    The match of (x, y) moves from (x - d, y) to where `tilt.forward()` maps it. The new disparity
    is the horizontal offset; a vertical offset remains, as in a badly rectified pair. Disparities
    that become negative are invalid.
    """
    rows, columns = window
    forward = tilt.forward()
    part = cut(sample, window)
    # warpAffine needs the inverse: from the window's pixels to the untilted image.
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
    """Return the part of an image that a window of `shape` samples, and the map into that part."""
    height, width = shape
    corners = look @ [(0, width, 0, width), (0, 0, height, height), (1, 1, 1, 1)]  # (2, 4)
    size = image.shape[1::-1]
    first = np.clip(np.floor(corners.min(1)) - 1, 0, np.subtract(size, 1)).astype(int)
    last = np.clip(np.ceil(corners.max(1)) + 1, first, np.subtract(size, 1)).astype(int)
    moved = look.copy()
    moved[:, 2] -= first
    return image[first[1] : last[1] + 1, first[0] : last[0] + 1], moved


def resized(sample: StereoSample, size: tuple[int, int]) -> StereoSample:
    """Scale a sample to `size` (height, width), and its disparity by the ratio of the widths.

    Disparity is interpolated within smooth surfaces and taken from the nearest pixel elsewhere, so
    that foreground, background and invalid pixels never mix. Masks use the nearest pixel.
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
    # Invalid pixels get a far lower value, so that no neighbourhood with one of them is smooth.
    known = np.where(valid, disparity, np.float32(-1e6))
    patch = np.ones((3, 3), np.uint8)  # support of bilinear weights around the nearest pixel
    smooth = cv2.dilate(known, patch) - cv2.erode(known, patch) < _SMOOTH
    nearest = _resize(disparity, size, cv2.INTER_NEAREST_EXACT)
    linear = _resize(disparity, size, cv2.INTER_LINEAR)
    truth = np.where(_resized_mask(smooth, size), linear, nearest)
    return truth, _resized_mask(valid, size)


def _resized_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    return _resize(mask.view(np.uint8), size, cv2.INTER_NEAREST_EXACT).view(np.bool_)


def _resize(array: NDArray, size: tuple[int, int], method: int) -> NDArray:
    return np.asarray(cv2.resize(array, size[::-1], interpolation=method))
