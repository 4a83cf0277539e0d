"""A rectified stereo pair with what is known of its disparity: the one currency of the project."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class StereoSample:
    """One rectified pair and the true disparity of its left view.

    The left pixel (x, y) and the right pixel (x - disparity, y) show the same point.

    Raises:
        ValueError: an array has another shape or type than stated here.
    """

    left: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    right: NDArray[np.uint8]
    """(H, W, 3) RGB, of the same size as `left`."""
    disparity: NDArray[np.float32]
    """(H, W) in pixels; 0 where `valid` is false."""
    valid: NDArray[np.bool_]
    """(H, W), true where the disparity is known."""
    name: str
    """Where it comes from, unique within its dataset, as `TRAIN/A/0000/left/0006`."""

    def __post_init__(self) -> None:
        height, width = self.disparity.shape[:2]
        expected: dict[str, tuple[tuple[int, ...], type]] = {
            "left": ((height, width, 3), np.uint8),
            "right": ((height, width, 3), np.uint8),
            "disparity": ((height, width), np.float32),
            "valid": ((height, width), np.bool_),
        }
        for field, (shape, dtype) in expected.items():
            array = getattr(self, field)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"{self.name}: {field} is {array.dtype} {array.shape}, "
                    f"expected {np.dtype(dtype)} {shape}"
                )
