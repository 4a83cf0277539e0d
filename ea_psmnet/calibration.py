"""Calibration of a rectified stereo camera: from disparity in pixels to metres."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

__all__ = ["Calibration"]


@dataclass(frozen=True)
class Calibration:
    """Calibration of a rectified pair, in pixels of the left image and metres.

    Pixel centres have whole coordinates, as in OpenCV: the first pixel's centre is (0, 0).

    Raises:
        ValueError: A focal length or the baseline is not positive, or a value is not finite.
    """

    f: float
    """Focal length in pixels, along rows."""
    cx: float
    """Column of the left camera's principal point."""
    cy: float
    """Row of the principal point."""
    baseline: float
    """Distance of the cameras in metres."""
    doffs: float = 0.0
    """Column of the right camera's principal point minus `cx`: disparity of points at infinity,
    negated."""
    width: int | None = None
    """Width of the images that this calibration is for; None if unknown."""
    height: int | None = None
    """Height of these images."""
    fy: float | None = None
    """Focal length along columns where it differs, as in images resized by two factors."""

    def __post_init__(self) -> None:
        for name in ("f", "cx", "cy", "baseline", "doffs", "fy"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"calibration: {name} is {value}")
        for name in ("f", "fy", "baseline"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"calibration: {name} is {value:g}: expected more than 0")

    def scaled_to(self, height: int, width: int) -> Calibration:
        """Calibration of the same images resized to another size.

        A calibration of unknown size is taken to be of that size.
        """
        across = 1.0 if self.width is None else width / self.width
        down = 1.0 if self.height is None else height / self.height
        vertical = (self.f if self.fy is None else self.fy) * down
        return replace(
            self,
            f=self.f * across,
            cx=(self.cx + 0.5) * across - 0.5,
            cy=(self.cy + 0.5) * down - 0.5,
            doffs=self.doffs * across,
            width=width,
            height=height,
            fy=None if math.isclose(vertical, self.f * across) else vertical,
        )
