"""Calibration of a stereo camera: from disparity in pixels to metres, and rectification."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

_BASELINES = 0.005, 5.0
"""Plausible distances of two cameras, in metres."""
_FOCAL_LENGTHS = 0.2, 10.0
"""Plausible focal lengths in image widths: fields of view of 136 and 6 degrees."""
_OFF_CENTRE = 0.2
"""Plausible distance of the principal point from the centre, in image widths or heights."""
_SAME_SHAPE = 0.02
"""Relative difference of aspect ratios up to which images were resized, not cropped."""


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
        _check_positive(self, "f", "fy", "baseline", "width", "height")

    @classmethod
    def from_focal(
        cls,
        focal: float,
        baseline: float,
        *,
        height: int,
        width: int,
        cx: float | None = None,
        cy: float | None = None,
        doffs: float | None = None,
    ) -> Calibration:
        """Calibration from the numbers of its fields, for images of a height and a width.

        None stands for the centre of the image in `cx` and `cy`, and for 0 in `doffs`.
        """
        return cls(
            f=focal,
            cx=(width - 1) / 2 if cx is None else cx,
            cy=(height - 1) / 2 if cy is None else cy,
            baseline=baseline,
            doffs=doffs or 0.0,
        )

    @classmethod
    def from_projections(
        cls,
        left: NDArray[np.floating],
        right: NDArray[np.floating],
        *,
        width: int | None = None,
        height: int | None = None,
    ) -> Calibration:
        """Calibration from two projection matrices K [I | t], (3, 4) each, in pixels and metres.

        Raises:
            ValueError: The matrices are not those of a rectified pair, left camera first.
        """
        f, shift = left[0, 0], left[0, 3] - right[0, 3]
        if not f > 0:
            raise ValueError("calibration: the focal length is 0: the camera is not calibrated")
        if not np.isclose(f, right[0, 0], rtol=1e-3):
            raise ValueError(
                f"calibration: focal lengths {f:g} and {right[0, 0]:g} differ: not of a rectified "
                "pair"
            )
        if abs(left[1, 3] - right[1, 3]) > abs(shift):
            raise ValueError("calibration: the cameras are above each other, not side by side")
        if shift == 0:
            raise ValueError("calibration: the baseline is 0: calibrate the cameras as a pair")
        if shift < 0:
            raise ValueError(
                f"calibration: the baseline is {shift / f:g} m: is the right camera given first?"
            )
        return cls(
            f=float(f),
            cx=float(left[0, 2]),
            cy=float(left[1, 2]),
            baseline=float(shift / f),
            doffs=float(right[0, 2] - left[0, 2]),
            width=width,
            height=height,
            fy=None if np.isclose(left[1, 1], f, rtol=1e-6) else float(left[1, 1]),
        )

    def with_baseline(self, baseline: float) -> Calibration:
        """This calibration with another distance of the cameras, in metres."""
        return replace(self, baseline=baseline)

    def as_middlebury(self) -> str:
        """Text of a `calib.txt` in Middlebury's format, with the baseline in millimetres."""
        fy = self.f if self.fy is None else self.fy
        lines = [
            f"cam{i}=[{self.f:.9g} 0 {cx:.9g}; 0 {fy:.9g} {self.cy:.9g}; 0 0 1]"
            for i, cx in enumerate((self.cx, self.cx + self.doffs))
        ]
        lines += [f"doffs={self.doffs:.9g}", f"baseline={1000 * self.baseline:.9g}"]
        if self.width and self.height:
            lines += [f"width={self.width}", f"height={self.height}"]
        return "\n".join(lines) + "\n"

    def for_images(self, height: int, width: int) -> Calibration:
        """Calibration of images of a size, which is scaled if it states another size.

        Warns of an implausible baseline or focal length, of images of another shape, and, if no
        size is stated, of an implausible principal point.
        """
        scaled = self.scaled_to(height, width)
        of_size = _doubts_of_size((self.cx, self.cy), (self.width, self.height), (width, height))
        for doubt in (*of_size, *_doubts(scaled)):
            warnings.warn(f"calibration: {doubt}", stacklevel=3)
        return scaled

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


def _check_positive(calibration: Calibration | RawCalibration, *names: str) -> None:
    for name in names:
        value = getattr(calibration, name)
        if value is not None and value <= 0:
            raise ValueError(f"calibration: {name} is {value:g}: expected more than 0")


def _doubts(calibration: Calibration) -> list[str]:
    """What is implausible about a calibration of known size."""
    width, f, baseline = calibration.width or 0, calibration.f, calibration.baseline
    doubts = []
    if not _BASELINES[0] <= baseline <= _BASELINES[1]:
        unit = "millimetres" if baseline > _BASELINES[1] else "another unit"
        doubts.append(
            f"the baseline is {baseline:g} m: if that number is in {unit}, give the baseline "
            "in metres"
        )
    if not _FOCAL_LENGTHS[0] <= f / width <= _FOCAL_LENGTHS[1]:
        angle = 2 * math.degrees(math.atan(width / 2 / f))
        doubts.append(
            f"the focal length of {f:g} px means a field of view of {angle:.1f} degrees in images "
            f"{width} px wide: is it in pixels of these images?"
        )
    return doubts


def _doubts_of_size(
    principal: tuple[float, float], stated: tuple[int | None, int | None], size: tuple[int, int]
) -> list[str]:
    """Signs that images of a size are not those that a calibration with the stated size is for.

    The principal point is (column, row), and sizes are (width, height).
    """
    actual = f"{size[0]} x {size[1]}"
    if stated[0] and stated[1]:
        change = (size[0] / stated[0]) / (size[1] / stated[1])
        if abs(change - 1) <= _SAME_SHAPE:
            return []
        return [
            f"it is for images of {stated[0]} x {stated[1]}, these are {actual}, of another shape: "
            "if they were cropped, give --focal, --cx and --cy"
        ]
    off = (abs((p + 0.5) / side - 0.5) for p, side in zip(principal, size, strict=True))
    if max(off) <= _OFF_CENTRE:
        return []
    return [
        f"it states no image size, and its principal point ({principal[0]:g}, {principal[1]:g}) is "
        f"far from the centre of images of {actual}: were they resized or cropped?"
    ]


# Unrectified pairs --------------------------------------------------------------------------------


_DISTORTIONS = 0, 4, 5, 8, 12, 14
"""Numbers of distortion coefficients that OpenCV has models for."""
_INEXACT = 0.01
"""How far the product of R with its transpose may be from the identity, as files are rounded."""
_IN_VIEW = 0.1
"""Smallest share of a rectified image that the camera's image must fill."""


@dataclass(frozen=True, eq=False)
class Lens:
    """One camera: its intrinsic matrix, and the distortion by its lens.

    Raises:
        ValueError: The matrix is not one of a camera, or the distortion has another number of
            coefficients than OpenCV's models.
    """

    matrix: NDArray[np.float64]
    """(3, 3) intrinsic matrix K, in pixels."""
    distortion: NDArray[np.float64]
    """Coefficients in OpenCV's order: k1, k2, p1, p2, k3, k4, k5, k6 and so on; k1 to k4 of a
    fisheye lens."""

    def __post_init__(self) -> None:
        k = self.matrix
        if k.shape != (3, 3) or not np.allclose(k[2], (0, 0, 1)) or not (np.diag(k) > 0).all():
            raise ValueError("calibration: K is not an intrinsic matrix: is it transposed?")
        if len(self.distortion) not in _DISTORTIONS:
            told = ", ".join(map(str, _DISTORTIONS))
            raise ValueError(
                f"calibration: {len(self.distortion)} distortion coefficients: expected {told}"
            )

    def resized(self, across: float, down: float) -> Lens:
        """The camera for images resized by two factors."""
        matrix = self.matrix * ((across,), (down,), (1,))
        matrix[:2, 2] += (across / 2 - 0.5, down / 2 - 0.5)
        return replace(self, matrix=matrix)


@dataclass(frozen=True, eq=False)
class RawCalibration:
    """Calibration of a pair as the cameras take it, before rectification.

    Raises:
        ValueError: The second camera is not to the right of the first, R is not a rotation, or
            fisheye lenses do not have four coefficients.
    """

    left: Lens
    right: Lens
    rotation: NDArray[np.float64]
    """(3, 3) matrix R: a point x of the left camera's frame is R x + T in the right camera's."""
    translation: NDArray[np.float64]
    """(3,) vector T in metres."""
    width: int | None = None
    """Width of the images that this calibration is for; None if unknown."""
    height: int | None = None
    fisheye: bool = False
    """Whether distortion is that of equidistant fisheye lenses (Kannala and Brandt, PAMI 2006)."""

    def __post_init__(self) -> None:
        _check_positive(self, "width", "height")
        counts = (len(lens.distortion) for lens in (self.left, self.right))
        if self.fisheye and (other := next((n for n in counts if n != 4), None)) is not None:
            raise ValueError(f"calibration: fisheye lenses have 4 coefficients, not {other}")
        towards = -self.rotation.T @ self.translation  # the right camera in the left one's frame
        turned = self.rotation.T @ self.rotation
        if np.abs(turned - np.eye(3)).max() > _INEXACT or np.linalg.det(self.rotation) < 0:
            raise ValueError(
                "calibration: R is not a rotation matrix: its rows must be orthonormal"
            )
        if not self.translation.any():
            raise ValueError("calibration: T is zero: the cameras would be in the same place")
        told = "(" + ", ".join(f"{value:g}" for value in self.translation) + ")"
        if abs(towards[0]) < abs(towards[1]):
            raise ValueError(f"calibration: T = {told}: the cameras are above each other")
        if towards[0] <= 0:
            raise ValueError(
                f"calibration: T = {told} puts the second camera to the left of the first; "
                "expected x2 = R x1 + T from the left to the right camera: are they swapped?"
            )

    def with_baseline(self, baseline: float) -> RawCalibration:
        """This calibration with another distance of the cameras, in metres."""
        if not 0 < baseline < math.inf:
            raise ValueError(f"calibration: baseline is {baseline:g}: expected more than 0")
        length = np.linalg.norm(self.translation)
        return replace(self, translation=self.translation * baseline / length)

    def rectify(
        self, left: NDArray[np.uint8], right: NDArray[np.uint8]
    ) -> tuple[tuple[NDArray[np.uint8], NDArray[np.uint8]], Calibration]:
        """Undistort both images and turn them until matches lie in one row.

        The result has the size of the images, zoomed so that it is filled (OpenCV's
        `stereoRectify` with alpha 0); fisheye images may keep black margins (balance 0).

        Returns:
            The rectified pair, (H, W, 3) each, and its calibration.

        Raises:
            ValueError: Rectification turns an image out of view, or leaves no rectified pair.
        """
        height, width = left.shape[:2]
        principal = self.left.matrix[0, 2], self.left.matrix[1, 2]
        for doubt in _doubts_of_size(principal, (self.width, self.height), (width, height)):
            warnings.warn(f"calibration: {doubt}", stacklevel=3)
        across = 1.0 if self.width is None else width / self.width
        down = 1.0 if self.height is None else height / self.height
        lenses = [lens.resized(across, down) for lens in (self.left, self.right)]
        turns, projections = self._rectification(lenses, (width, height))
        calibration = Calibration.from_projections(*projections, width=width, height=height)
        module = cv2.fisheye if self.fisheye else cv2
        views: list[NDArray[np.uint8]] = []
        for view, lens, turn, plane in zip((left, right), lenses, turns, projections, strict=True):
            columns, rows = module.initUndistortRectifyMap(
                *(lens.matrix, lens.distortion, turn, plane[:, :3], (width, height), cv2.CV_32FC1)
            )
            seen = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
            if seen.mean() < _IN_VIEW:
                raise ValueError(
                    f"calibration: rectification turns the {'right' if views else 'left'} image "
                    f"out of view ({seen.mean():.0%} of it is left): is R the rotation from the "
                    "left to the right camera?"
                )
            views.append(np.asarray(cv2.remap(view, columns, rows, cv2.INTER_CUBIC), np.uint8))
        return (views[0], views[1]), calibration.for_images(height, width)

    def _rectification(
        self, lenses: list[Lens], size: tuple[int, int]
    ) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
        """Rotations (3, 3) and new projections (3, 4) of both cameras."""
        left, right = lenses
        cameras = (left.matrix, left.distortion, right.matrix, right.distortion)
        shift = self.translation.reshape(3, 1)
        if self.fisheye:
            found = cv2.fisheye.stereoRectify(
                *cameras, size, self.rotation, shift, flags=cv2.CALIB_ZERO_DISPARITY, balance=0
            )
        else:
            found = cv2.stereoRectify(*cameras, size, self.rotation, shift, alpha=0)[:5]
        matrices = [np.asarray(matrix, np.float64) for matrix in found]
        return matrices[:2], matrices[2:4]
