"""Matching at two scales: a pair as it is, and again at twice its size.

The network matches cells of 4 pixels. In an enlarged pair they are 2 pixels of the original wide,
which makes edges sharper, but the network sees half as much around them, which untextured surfaces
need. So each pixel gets the disparity of the enlarged pair if both nearly agree, and otherwise that
of the surer pass. The first pass also shows how far the second has to search.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

FACTOR = 2
"""Factor on width and height in the second pass."""
_ALIKE = 2.0
"""Pixels: where the passes differ by less, the second one counts."""
_BEYOND = 8
"""Pixels that the second pass searches beyond the largest disparity of the first."""


class Evidence(NamedTuple):
    """A disparity, and the probabilities from which its confidence is computed."""

    disparity: NDArray[np.float32]
    """(H, W) in pixels."""
    masses: NDArray[np.float32]
    """(3, H, W): see `window_masses`, or `fused` for a pair that is matched at two scales."""


def second_count(disparity: NDArray[np.float32], first: int, most: int, multiple: int) -> int:
    """Number of disparities that the second pass searches, in pixels of the enlarged pair.

    Args:
        disparity: (H, W), result of the first pass in pixels.
        first: Smallest disparity that is searched, in pixels.
        most: Largest number of disparities.
        multiple: A network searches a multiple of this number.
    """
    wanted = FACTOR * (float(disparity.max()) + _BEYOND - first)
    return min(most, math.ceil(wanted / multiple) * multiple)


def fused(
    coarse: tuple[NDArray[np.float32], NDArray[np.float32]],
    fine: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> Evidence:
    """Choose between two passes for each pixel.

    Args:
        coarse: Disparity (H, W) and confidence (H, W) of the pair as it is.
        fine: The same of the enlarged pair, (2H, 2W), in its pixels. Its confidence is about errors
            of half the size, so that it has to be clearly surer.

    Returns:
        The chosen disparity with, as masses, the confidence of the other pass, that of the chosen
        one, and 1 / (1 + d) for passes that differ by d pixels.
    """
    size = coarse[0].shape[::-1]
    other, sure = (cv2.resize(values, size, interpolation=cv2.INTER_AREA) for values in fine)
    other = np.asarray(other / FACTOR, np.float32)
    apart = np.abs(coarse[0] - other)
    chosen = (apart < _ALIKE) | (sure > coarse[1])
    masses = [
        np.where(chosen, coarse[1], sure),
        np.where(chosen, sure, coarse[1]),
        1 / (1 + apart),
    ]
    return Evidence(np.where(chosen, other, coarse[0]), np.stack(masses).astype(np.float32))
