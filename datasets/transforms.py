"""Changes to a sample that keep its geometry exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ea_psmnet.sample import StereoSample

__all__ = ["check_fits", "cut", "random_crop", "random_window"]


def random_crop(
    sample: StereoSample, size: tuple[int, int], rng: np.random.Generator
) -> StereoSample:
    """Cut the same window out of both images, the disparity, its validity and the masks.

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
    check_fits(sample, size)
    return cut(sample, random_window(sample.disparity.shape, size, rng))


def cut(sample: StereoSample, window: tuple[slice, slice]) -> StereoSample:
    """The sample's part in a window of rows and columns, with arrays of its own."""
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
) -> tuple[slice, slice]:
    """A window of `size` (height, width) within an image of `shape`, every position alike."""
    top = int(rng.integers(shape[0] - size[0] + 1))
    start = int(rng.integers(shape[1] - size[1] + 1))
    return np.s_[top : top + size[0], start : start + size[1]]


def check_fits(sample: StereoSample, size: tuple[int, int]) -> None:
    """Raise ValueError if the sample has no window of `size` (height, width)."""
    (height, width), (rows, columns) = size, sample.disparity.shape
    if not (0 < height <= rows and 0 < width <= columns):
        raise ValueError(
            f"{sample.name}: no crop of {height}x{width} pixels (height x width) fits "
            f"the image of {rows}x{columns}; choose a smaller crop or leave the image out"
        )
