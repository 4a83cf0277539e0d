"""`StereoResult`: the disparity of a pair, its confidence, depth and points."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.calibration import Calibration
from ea_psmnet.geometry import (
    PointCloud,
    depth_map,
    flying_pixels,
    hidden_in_right,
    inconsistent,
    point_map,
)
from ea_psmnet.tables import check_range

THRESHOLD = 1.0
"""Pixels: confidence is the probability of a smaller error."""

_SUREST = 1 - 1e-6

_LEAST_SHIFT = 1.0
"""Pixels below which depth means little: an error of half a pixel doubles it."""


@dataclass(frozen=True, eq=False)
class StereoResult:
    """Result of a matcher for a pair."""

    disparity: NDArray[np.float32]
    """(H, W) in pixels: the left pixel (x, y) matches the right pixel (x - disparity, y)."""
    image: NDArray[np.uint8]
    """(H, W, 3), the left image in RGB."""
    confidence: NDArray[np.float32] | None = None
    """(H, W), probability that the error is below 1 pixel; None if not asked for."""
    right: NDArray[np.float32] | None = None
    """(H, W), disparity of the right image: its pixel (x, y) matches the left pixel
    (x + disparity, y); None if not asked for."""
    calibration: Calibration | None = None
    """Calibration of the images; None if unknown."""

    def disparity_range(self) -> tuple[float, float] | None:
        """Smallest and largest disparity, in pixels; None if no pixel has any."""
        known = self.disparity[np.isfinite(self.disparity)]
        return (float(known.min()), float(known.max())) if known.size else None

    @property
    def depth(self) -> NDArray[np.float32]:
        """(H, W) in metres along the optical axis; infinite at infinity, NaN where unknown.

        Raises:
            ValueError: The result has no calibration.
        """
        return depth_map(self.disparity, self._calibrated())

    @property
    def disparity_deviation(self) -> NDArray[np.float32]:
        """(H, W), standard deviation of the disparity in pixels: see the function
        `ea_psmnet.inference.confidence.disparity_deviation`.

        Raises:
            ValueError: The result has no confidence.
        """
        return disparity_deviation(self._confident())

    @property
    def depth_deviation(self) -> NDArray[np.float32]:
        """(H, W), standard deviation of the depth in metres, to first order in the disparity's.

        Depth Z = f * B / (disparity + doffs) changes by Z^2 / (f * B) with each pixel of disparity.

        Raises:
            ValueError: The result has no confidence or no calibration.
        """
        calibration = self._calibrated()
        slope = np.square(self.depth) / (calibration.f * calibration.baseline)
        return np.asarray(slope * self.disparity_deviation, np.float32)

    @property
    def occluded(self) -> NDArray[np.bool_]:
        """(H, W), true where the left-right check fails: hidden in the right image, or wrong.

        Raises:
            ValueError: The result has no disparity of the right view.
        """
        if self.right is None:
            raise ValueError("occlusion needs the right view: give matcher(..., right_view=True)")
        return inconsistent(self.disparity, self.right)

    def masked(self, least: float) -> StereoResult:
        """This result with NaN for the disparity of pixels whose confidence is below `least`.

        A warning says if no pixel is left.

        Raises:
            ValueError: The result has no confidence, or `least` is no probability.
        """
        check_range("min_confidence", least, 0, 1)
        confidence = self._confident()
        sure = confidence >= least
        if not sure.any():
            warnings.warn(
                f"no pixel has a confidence of {least:g}, the highest is {confidence.max():.3f}: "
                "all disparities are left out",
                stacklevel=2,
            )
        return replace(self, disparity=np.where(sure, self.disparity, np.float32(np.nan)))

    def _confident(self) -> NDArray[np.float32]:
        if self.confidence is None:
            raise ValueError("this needs confidence: give matcher(..., confidence=True)")
        return self.confidence

    def points(
        self,
        *,
        clean: bool = True,
        min_depth: float = 0.0,
        max_depth: float = np.inf,
        min_confidence: float = 0.5,
    ) -> PointCloud:
        """Points of the left image's pixels, with its colours.

        Cleaning removes points that are likely to be wrong: flying points at depth edges
        (`flying_pixels`); points that the right image does not show, by the left-right check if
        the result has the right view, else by the left disparity alone (`hidden_in_right`); points
        so far away that their disparity, with doffs, is below 1 px; and points of low confidence if
        the result has a confidence.

        Args:
            clean: Whether to remove such points.
            min_depth: Smallest depth in metres.
            max_depth: Largest depth in metres.
            min_confidence: Smallest confidence of a point that cleaning keeps.

        Returns:
            The points of all pixels whose depth is known, finite and within the limits.

        Raises:
            ValueError: The result has no calibration, or the limits contradict each other.
        """
        if not 0 <= min_depth < max_depth:
            raise ValueError(
                f"depth from {min_depth:g} to {max_depth:g} m: expected 0 <= min < max"
            )
        calibration, depth = self._calibrated(), self.depth
        mask = np.isfinite(depth) & (depth >= min_depth) & (depth <= max_depth)
        if clean:
            mask &= self._trusted(calibration.doffs, min_confidence)
        return PointCloud(point_map(depth, calibration)[mask], self.image[mask], mask)

    def _trusted(self, doffs: float, min_confidence: float) -> NDArray[np.bool_]:
        """Mask (H, W) of the pixels that cleaning keeps."""
        unseen = hidden_in_right(self.disparity) if self.right is None else self.occluded
        trusted = ~(unseen | flying_pixels(self.disparity, doffs))
        trusted &= self.disparity + doffs >= _LEAST_SHIFT
        return trusted if self.confidence is None else trusted & (self.confidence >= min_confidence)

    def _calibrated(self) -> Calibration:
        if self.calibration is None:
            raise ValueError("depth needs a calibration: give matcher(..., calibration=...)")
        return self.calibration

    def resampled(self, image: NDArray[np.uint8]) -> StereoResult:
        """This result for the same pair at another size.

        Args:
            image: (H', W', 3), the left image at that size.
        """
        height, width = image.shape[:2]
        scale = width / self.disparity.shape[1]

        def resized(values: NDArray[np.float32], factor: float = 1) -> NDArray[np.float32]:
            found = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
            return np.asarray(found, np.float32) * np.float32(factor)

        sure, right, calibration = self.confidence, self.right, self.calibration
        return replace(
            self,
            disparity=resized(self.disparity, scale),
            image=image,
            confidence=None if sure is None else rescaled(resized(sure), scale),
            right=None if right is None else resized(right, scale),
            calibration=None if calibration is None else calibration.scaled_to(height, width),
        )


# Consequences of a confidence ---------------------------------------------------------------------
#
# Errors are taken to be Laplacian. Their scale b follows from the confidence, because the
# probability that an error is below t is 1 - exp(-t / b).


def rescaled(confidence: NDArray[np.floating], factor: float) -> NDArray[np.float32]:
    """Confidence after disparity has been multiplied by a factor: errors grow with it.

    Args:
        confidence: Any shape, from 0 to 1.
        factor: Size of a pixel of the prediction in pixels of the result.
    """
    doubt = 1 - np.clip(np.asarray(confidence, np.float64), 0, 1)
    return (1 - doubt ** (1 / factor)).astype(np.float32)


def disparity_deviation(confidence: NDArray[np.floating]) -> NDArray[np.float32]:
    """Standard deviation of the disparity in pixels, sqrt(2) b; infinite where confidence is 0.

    Three pixels in four have a smaller error, if the error is Laplacian and the confidence right.
    """
    sure = np.clip(np.asarray(confidence, np.float64), 0, _SUREST)
    with np.errstate(divide="ignore"):
        return (-math.sqrt(2) * THRESHOLD / np.log1p(-sure)).astype(np.float32)
