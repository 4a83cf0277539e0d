"""Matched features of two images, on which checks of pairs are based."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_FAINT = 0.01
"""Smallest contrast of a feature, a quarter of OpenCV's default: rendered scenes may be dim."""
_RATIO = 0.75
"""Lowe's ratio test (IJCV 2004): largest ratio of the best to the second-best distance."""


@dataclass(frozen=True, eq=False)
class FeatureMatches:
    """Features that two images have in common."""

    left: NDArray[np.float32]
    """(N, 2) positions x, y in the left image, in pixels."""
    right: NDArray[np.float32]
    """(N, 2) positions in the right image."""
    features: tuple[int, int]
    """Number of features found in the left and in the right image, matched or not."""


def match_features(left: NDArray[np.uint8], right: NDArray[np.uint8], count: int) -> FeatureMatches:
    """Match SIFT features (Lowe, IJCV 2004) of two grey images (H, W), in both directions.

    The `count` strongest features of each image are used. Nothing is assumed about where a match
    lies. Some wrong matches remain, so use robust statistics such as medians.
    """
    finder = cv2.SIFT.create(count, contrastThreshold=_FAINT)
    (points, words), (others, other_words) = (
        finder.detectAndCompute(view, None) for view in (left, right)
    )
    features = len(points), len(others)
    if min(features) < 2:
        nowhere = np.zeros((0, 2), np.float32)
        return FeatureMatches(nowhere, nowhere, features)
    distances = _distances(words, other_words)
    forth, back = _best(distances), _best(distances.T)
    index = np.arange(len(points))
    mutual = (forth >= 0) & (back[forth] == index)
    both = [(*points[i].pt, *others[forth[i]].pt) for i in index[mutual]]
    # A place with two dominant orientations has two features, which mostly match the same.
    places = np.unique(np.array(both, np.float32).reshape(-1, 4), axis=0)
    return FeatureMatches(places[:, :2], places[:, 2:], features)


def _distances(words: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float32]:
    """Euclidean distances (N, M) of descriptors (N, K) and (M, K)."""
    squares = [np.square(each).sum(1, dtype=np.float32) for each in (words, others)]
    squared = squares[0][:, None] + squares[1] - 2 * (words @ others.T)
    return np.sqrt(np.maximum(squared, 0))


def _best(distances: NDArray[np.float32]) -> NDArray[np.intp]:
    """Index of the one close match in each row (N,); -1 where there is none, or several."""
    nearest = np.argmin(distances, axis=1)
    two = np.partition(distances, 1, axis=1)[:, :2]
    return np.where(two[:, 0] < _RATIO * two[:, 1], nearest, -1)
