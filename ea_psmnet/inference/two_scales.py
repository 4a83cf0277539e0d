"""Matching at two scales: a pair as it is, and again at twice its size.

The network matches cells of 4 pixels. In an enlarged pair they are 2 pixels of the original wide,
which makes edges sharper, but the network sees half as much around them, which untextured surfaces
need. So each pixel gets the disparity of the enlarged pair if the pair as it is has nearly the same
at or around the pixel (which side of an edge a pixel is on, the enlarged pair tells better), and
otherwise that of the surer pass. The first pass also shows how far the second has to search.
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
"""Pixels by which the second pass, where it counts, is at most outside the range of the first."""
_AROUND = 4
"""Distance up to which pixels around one belong to that range, in rows and in columns."""
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
    # One of four pixels and not their mean, which at an edge is on neither side.
    quads = [_quads(values) for values in fine]
    surest = quads[1].argmax(axis=-1)[..., None]
    other, sure = (np.take_along_axis(values, surest, axis=-1)[..., 0] for values in quads)
    other = other / np.float32(FACTOR)
    window = np.ones((2 * _AROUND + 1,) * 2, np.uint8)
    lowest, highest = cv2.erode(coarse[0], window), cv2.dilate(coarse[0], window)
    within = (other > lowest - _ALIKE) & (other < highest + _ALIKE)
    chosen = within | (sure > coarse[1])
    masses = [
        np.where(chosen, coarse[1], sure),
        np.where(chosen, sure, coarse[1]),
        1 / (1 + np.abs(coarse[0] - other)),
    ]
    return Evidence(np.where(chosen, other, coarse[0]), np.stack(masses).astype(np.float32))


def _quads(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(FACTOR * H, FACTOR * W) to (H, W, FACTOR^2)."""
    height, width = (side // FACTOR for side in values.shape)
    cells = values.reshape(height, FACTOR, width, FACTOR).swapaxes(1, 2)
    return cells.reshape(height, width, FACTOR**2)
