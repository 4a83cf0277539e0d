"""A rectified stereo pair with ground truth, the type that all parts of the project share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SLAB = 64
"""Rows that `at_columns` processes at once: each value needs an index of 8 bytes."""


@dataclass(frozen=True, eq=False)
class StereoSample:
    """A rectified pair and the ground-truth disparity of its left view.

    The left pixel (x, y) and the right pixel (x - disparity, y) show the same point.

    Raises:
        ValueError: An array has the wrong shape or type.
    """

    left: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    right: NDArray[np.uint8]
    """(H, W, 3) RGB, of the same size as `left`."""
    disparity: NDArray[np.float32]
    """(H, W) in pixels; 0 where `valid` is false."""
    valid: NDArray[np.bool_]
    """(H, W), true for valid pixels, whose disparity is known."""
    name: str
    """Name, unique within the dataset, such as `FlyingThings3D/TRAIN/A/0000/left/0006`."""
    masks: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Masks of left pixels by name, each (H, W), where available.

    `nonocc`: Visible in the right image, too, according to official masks. `in_frame`: The match
    lies within the borders of the right image, occluded or not.
    """

    def __post_init__(self) -> None:
        if self.disparity.ndim != 2:
            raise ValueError(f"{self.name}: disparity is {self.disparity.shape}, expected (H, W)")
        height, width = self.disparity.shape
        self._check("left", self.left, (height, width, 3), np.uint8)
        self._check("right", self.right, (height, width, 3), np.uint8)
        self._check("disparity", self.disparity, (height, width), np.float32)
        self._check("valid", self.valid, (height, width), np.bool_)
        for key, mask in self.masks.items():
            self._check(f"mask {key}", mask, (height, width), np.bool_)

    def counted(self, limit: float) -> NDArray[np.bool_]:
        """Mask of the pixels that count: valid, with a disparity below `limit`; (H, W)."""
        return self.valid & (self.disparity < limit)

    def _check(self, what: str, array: NDArray[Any], shape: tuple[int, ...], dtype: type) -> None:
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"{self.name}: {what} is {array.dtype} {array.shape}, "
                f"expected {np.dtype(dtype)} {shape}"
            )


def at_columns(image: NDArray[Any], columns: NDArray[np.floating]) -> NDArray[np.float32]:
    """Interpolate an image linearly along its rows; OpenCV's `remap` is limited to 32,766 columns.

    Args:
        image: (H, W) or (H, W, C).
        columns: (H, N) finite column positions; positions outside take the value of the border.

    Returns:
        (H, N) or (H, N, C).
    """
    last = image.shape[1] - 1
    values = np.empty((*columns.shape, *image.shape[2:]), np.float32)
    for start in range(0, len(image), _SLAB):
        rows = slice(start, start + _SLAB)
        place = np.clip(columns[rows], 0, last).astype(np.float32)
        index, part = place.astype(np.intp), image[rows]
        if image.ndim == 3:
            place, index = place[..., None], index[..., None]
        before = np.take_along_axis(part, index, axis=1).astype(np.float32)
        after = np.take_along_axis(part, np.minimum(index + 1, last), axis=1)
        values[rows] = before + (place - index).astype(np.float32) * (after - before)
    return values
