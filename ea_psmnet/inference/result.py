"""`StereoResult`: what a matcher says about a pair."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.calibration import Calibration
from ea_psmnet.geometry import depth_map

__all__ = ["StereoResult"]


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

    @property
    def depth(self) -> NDArray[np.float32]:
        """(H, W) in metres along the optical axis; infinite for points at infinity.

        Raises:
            ValueError: The result has no calibration.
        """
        return depth_map(self.disparity, self._calibrated())

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

        def resized(values: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
            found = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
            return np.asarray(found, np.float32) * np.float32(factor)

        calibration = self.calibration
        return replace(
            self,
            disparity=resized(self.disparity, scale),
            image=image,
            confidence=None if self.confidence is None else resized(self.confidence, 1),
            right=None if self.right is None else resized(self.right, scale),
            calibration=None if calibration is None else calibration.scaled_to(height, width),
        )
