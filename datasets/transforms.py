"""Changes to a sample that keep its geometry exact."""

from __future__ import annotations

import numpy as np

from ea_psmnet.sample import StereoSample

__all__ = ["random_crop"]


def random_crop(
    sample: StereoSample, size: tuple[int, int], rng: np.random.Generator
) -> StereoSample:
    """Cut the same window out of both images, the disparity and its validity.

    One window for both views keeps every disparity as it is. A point whose match lies left of the
    right window keeps its truth too: a network must cope with those at every image's left edge.

    Args:
        sample: The pair.
        size: (height, width) of the window in pixels.
        rng: Draws the window, every position alike.

    Returns:
        A sample of that size with arrays of its own, so that the large ones can be freed.

    Raises:
        ValueError: the image is smaller than the window.
    """
    (height, width), (rows, columns) = size, sample.disparity.shape
    if not (0 < height <= rows and 0 < width <= columns):
        raise ValueError(
            f"{sample.name}: no crop of {height}x{width} pixels (height x width) fits "
            f"the image of {rows}x{columns}; choose a smaller crop or leave the image out"
        )
    top = int(rng.integers(rows - height + 1))
    start = int(rng.integers(columns - width + 1))
    window = np.s_[top : top + height, start : start + width]
    return StereoSample(
        sample.left[window].copy(),
        sample.right[window].copy(),
        sample.disparity[window].copy(),
        sample.valid[window].copy(),
        sample.name,
    )
