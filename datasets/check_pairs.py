"""Whether the two views are a rectified pair, left is left, and the truth brings them together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.check_frames import Problem
from datasets.frames import Frame
from ea_psmnet.files import disparity_values, read_image
from ea_psmnet.sample import at_columns

__all__ = ["PairCheck", "check_pair", "feature_offsets", "warp_errors"]

_FEATURES = 2000
_FAINT = 0.01
"""Least contrast of a feature, a quarter of OpenCV's own: rendered scenes may be dim."""
_ENOUGH = 20
"""Fewer matches are no evidence."""
_RATIO = 0.75
"""Lowe's ratio test (IJCV 2004): the second best match must be so much worse."""
_WINDOW = (2048, 4096)
"""Rows and columns in the middle that features are sought in: four times a pixel's memory each."""
_LEVEL = 1.0
"""Rows of rectified pairs agree to a fraction of a pixel; the median offset is below this."""
_SPREAD = 2.0
"""Three quarters of the matches lie within so many rows of each other's."""

_BETTER = 0.85
"""By this factor the right truth is to fit better than none; known pairs stay below 0.7."""


@dataclass(frozen=True)
class PairCheck:
    """What one pair's images and truth say; None where they say nothing."""

    name: str
    matches: int
    """Features found in both views."""
    across: float | None
    """Median of left minus right column of the matches, pixels; positive in a correct pair."""
    backwards: float | None
    """Share of matches further right in the right view."""
    down: float | None
    """Median of left minus right row, pixels."""
    uneven: float | None
    """Three quarters of the rows differ by less, pixels."""
    errors: dict[str, float]
    """Difference of left and warped right image, in local standard deviations: at x - d (`minus`),
    where the match should be, at x + d (`plus`) and at x (`zero`). Empty without truth."""

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the pair."""
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
                f"rows differ: by {self.down:+.1f} pixels in the middle of {self.matches} "
                f"matches, by up to {self.uneven:.1f} in three quarters of them",
            )
        elif self.errors:  # means nothing while the views are in no order
            yield from self._misfits()

    def _misfits(self) -> Iterator[Problem]:
        minus, plus, zero = (self.errors[key] for key in ("minus", "plus", "zero"))
        told = f"error {minus:.2f} at x - d, {plus:.2f} at x + d, {zero:.2f} at x"
        if plus < _BETTER * min(minus, zero):
            yield Problem("sign", self.name, f"the disparity's sign looks wrong: {told}")
        elif minus > _BETTER * zero:
            yield Problem(
                "misfit", self.name, f"the truth does not bring the views together: {told}"
            )


def check_pair(frame: Frame) -> PairCheck:
    """Match the views' features and warp the right view by the truth, where there is one.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: one is damaged, or their sizes differ.
    """
    left, right = _grey(frame.left), _grey(frame.right)
    truth = np.full(left.shape, np.nan, np.float32)
    if frame.left_view.disparity is not None:
        truth = disparity_values(frame.left_view.disparity, frame.left_view.decode)
    if not left.shape == right.shape == truth.shape:
        raise ValueError(f"{frame.name}: its files differ in size")
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
    image = read_image(path, lambda _: None)  # what is odd in it was told when it was opened
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def feature_offsets(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Left minus right position of features that both grey images (H, W) have.

    SIFT (Lowe, IJCV 2004), matched both ways. Wrong matches remain; medians bear them.

    Returns:
        (N, 2): x and y in pixels.
    """
    finder = cv2.SIFT.create(_FEATURES, contrastThreshold=_FAINT)
    (points, words), (others, other_words) = (
        finder.detectAndCompute(view, None) for view in (left, right)
    )
    if words is None or other_words is None or min(len(points), len(others)) < 2:
        return np.zeros((0, 2), np.float32)
    forth, back = _best(words, other_words), _best(other_words, words)
    pairs = [(i, j) for i, j in forth.items() if back.get(j) == i]
    offsets = [np.subtract(points[i].pt, others[j].pt) for i, j in pairs]
    return np.array(offsets, np.float32).reshape(-1, 2)


def _best(words: NDArray[Any], others: NDArray[Any]) -> dict[int, int]:
    """For each word the number of its one close partner, if it has one."""
    candidates = cv2.BFMatcher().knnMatch(words, others, k=2)
    return {
        first.queryIdx: first.trainIdx
        for first, second in candidates
        if first.distance < _RATIO * second.distance
    }


def warp_errors(
    left: NDArray[np.uint8], right: NDArray[np.uint8], truth: NDArray[np.float32]
) -> dict[str, float]:
    """Mean difference of the left image and the right one sampled at x - d, x + d and x.

    Both are normalised locally, so that exposure and colour do not matter. Pixels count whose three
    places all lie in the right image and whose disparity is over a pixel, of either sign.

    Args:
        left: (H, W) grey.
        right: (H, W) grey.
        truth: (H, W) in pixels as stored, of either sign.

    Returns:
        `minus`, `plus` and `zero`; nothing where too few pixels count.
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
    """Without the local mean, in local standard deviations."""
    grey = view.astype(np.float32)
    mean = cv2.GaussianBlur(grey, (0, 0), 5)
    variance = np.maximum(cv2.GaussianBlur(grey * grey, (0, 0), 5) - mean * mean, 0)
    return np.asarray((grey - mean) / (np.sqrt(variance) + 4), np.float32)  # 4: not mere noise
