"""Checks that two views are rectified and not swapped, and that the ground truth aligns them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.datasets.check.files import Problem
from ea_psmnet.datasets.frames import Frame
from ea_psmnet.files import disparity_values, read_image
from ea_psmnet.matches import match_features
from ea_psmnet.sample import at_columns

_FEATURES = 2000
_ENOUGH = 20
"""Smallest number of matches to draw conclusions from."""
_WINDOW = (2048, 4096)
"""Largest rows and columns of the central window to find features in, to limit memory."""
_LEVEL = 1.0
"""Largest median row offset of a rectified pair, in pixels."""
_SPREAD = 2.0
"""Largest row offset of three quarters of the matches in a rectified pair, in pixels."""

_BETTER = 0.85
"""Largest ratio of warp errors with and without the disparity; sound pairs stay below 0.7."""


@dataclass(frozen=True)
class PairCheck:
    """Result of checking one pair; None where there is not enough evidence."""

    name: str
    matches: int
    """Number of features matched between the views."""
    across: float | None
    """Median of left minus right column of the matches in pixels; positive in a correct pair."""
    backwards: float | None
    """Share of matches that are further right in the right view."""
    down: float | None
    """Median of left minus right row of the matches in pixels."""
    uneven: float | None
    """Upper quartile of the absolute row differences in pixels."""
    errors: dict[str, float]
    """Difference of left and warped right image, in local standard deviations: at x - d (`minus`),
    where the match should be, at x + d (`plus`) and at x (`zero`). Empty without ground truth."""

    def problems(self) -> Iterator[Problem]:
        """Yield the problems of the pair."""
        if self.backwards is not None and self.backwards > 0.5 and (self.across or 0) < -_LEVEL:
            yield Problem(
                "swapped",
                self.name,
                f"left and right look swapped: {self.backwards:.0%} of {self.matches} matches "
                "lie further right in the right view",
            )
        elif abs(self.down or 0) > _LEVEL or (self.uneven or 0) > _SPREAD:
            yield Problem(
                "unrectified",
                self.name,
                f"rows differ: median {self.down:+.1f} pixels over {self.matches} matches, "
                f"up to {self.uneven:.1f} pixels in three quarters of them",
            )
        elif self.errors:  # meaningless if the views are swapped or not rectified
            yield from self._misfits()

    def _misfits(self) -> Iterator[Problem]:
        minus, plus, zero = (self.errors[key] for key in ("minus", "plus", "zero"))
        told = f"error {minus:.2f} at x - d, {plus:.2f} at x + d, {zero:.2f} at x"
        if plus < _BETTER * min(minus, zero):
            yield Problem("sign", self.name, f"the disparity's sign looks wrong: {told}")
        elif minus > _BETTER * zero:
            yield Problem("misfit", self.name, f"the ground truth does not align the views: {told}")


def check_pair(frame: Frame) -> PairCheck:
    """Match features between the views, and warp the right view by the ground truth, if any.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or the sizes differ.
    """
    left, right = _grey(frame.left), _grey(frame.right)
    truth = np.full(left.shape, np.nan, np.float32)
    if frame.left_view.disparity is not None:
        truth = disparity_values(frame.left_view.disparity, frame.left_view.decode)
    if not left.shape == right.shape == truth.shape:
        raise ValueError(f"{frame.name}: the files differ in size")
    if frame.flipped:
        left, right, truth = left[:, ::-1].copy(), right[:, ::-1].copy(), truth[:, ::-1].copy()
    offsets = feature_offsets(_middle(left), _middle(right))
    errors = warp_errors(left, right, truth)
    if len(offsets) < _ENOUGH:
        return PairCheck(frame.name, len(offsets), None, None, None, None, errors)
    across, down = np.median(offsets, axis=0).tolist()
    return PairCheck(
        frame.name,
        len(offsets),
        across,
        float((offsets[:, 0] < 0).mean()),
        down,
        float(np.percentile(np.abs(offsets[:, 1]), 75)),
        errors,
    )


def _middle(view: NDArray[np.uint8]) -> NDArray[np.uint8]:
    starts = [max(0, size - most) // 2 for size, most in zip(view.shape, _WINDOW, strict=True)]
    rows, columns = (slice(at, at + most) for at, most in zip(starts, _WINDOW, strict=True))
    return np.ascontiguousarray(view[rows, columns])


def _grey(path: Path) -> NDArray[np.uint8]:
    image = read_image(path, lambda _: None)  # warnings were reported when the file was checked
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def feature_offsets(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Offsets of matched features of two grey images (H, W): see `match_features`.

    Returns:
        (N, 2) left minus right position, x and y in pixels.
    """
    found = match_features(left, right, _FEATURES)
    return found.left - found.right


def warp_errors(
    left: NDArray[np.uint8], right: NDArray[np.uint8], truth: NDArray[np.float32]
) -> dict[str, float]:
    """Compare the left image with the right one sampled at x - d, x + d and x (mean difference).

    Both are normalised locally, so that exposure and colour do not matter. Only pixels count whose
    three positions are in the right image and whose disparity is over one pixel, of either sign.

    Args:
        left: (H, W) grey.
        right: (H, W) grey.
        truth: (H, W) disparity in pixels as stored, of either sign.

    Returns:
        Errors by `minus`, `plus` and `zero`; empty if too few pixels count.
    """
    x = np.arange(left.shape[1], dtype=np.float32)
    with np.errstate(invalid="ignore"):
        reach = np.abs(truth)
        counted = np.isfinite(truth) & (reach > 1) & (reach <= x) & (x + reach < left.shape[1])
    if counted.sum() < _ENOUGH:
        return {}
    one, other = _normalised(left), _normalised(right)
    shifts = {"minus": -truth, "plus": truth, "zero": np.zeros_like(truth)}
    errors = {}
    for key, shift in shifts.items():
        there = np.where(counted, x + shift, 0)
        difference = np.abs(one - at_columns(other, there))
        errors[key] = float(difference[counted].mean())
    return errors


def _normalised(view: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Subtract the local mean and divide by the local standard deviation."""
    grey = view.astype(np.float32)
    mean = cv2.GaussianBlur(grey, (0, 0), 5)
    variance = np.maximum(cv2.GaussianBlur(grey * grey, (0, 0), 5) - mean * mean, 0)
    return np.asarray((grey - mean) / (np.sqrt(variance) + 4), np.float32)  # 4: suppress noise
