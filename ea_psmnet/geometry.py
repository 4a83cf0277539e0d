"""Geometry of rectified pairs: from disparity to depth and points, and which points to trust."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.atomic import atomic_path
from ea_psmnet.calibration import Calibration

_AGREE = 1.0
"""Pixels by which disparities of one point may differ."""
_STEEPEST = 2.0
"""Range of disparities of 3 x 3 pixels above which they cross a depth edge: a surface that changes
by more than a pixel a pixel is seen by one of the cameras only, or almost edge-on."""
_STEEPEST_SHARE, _LEAST_STEP = 0.25, 0.5
"""The same for far points: a share of the disparity, and the least range in pixels."""


def depth_map(disparity: NDArray[np.floating], calibration: Calibration) -> NDArray[np.float32]:
    """Depth f * baseline / (disparity + doffs), along the optical axis.

    Args:
        disparity: (H, W) in pixels; unknown where not finite.
        calibration: Calibration of images of this size.

    Returns:
        (H, W) in metres; infinite where the disparity is that of points at infinity or less, NaN
        where it is unknown.
    """
    shift = disparity.astype(np.float64) + calibration.doffs
    known = np.isfinite(shift)
    depth = np.full(shift.shape, np.inf)
    np.divide(calibration.f * calibration.baseline, shift, out=depth, where=known & (shift > 0))
    with np.errstate(over="ignore"):  # farther than float32 can tell is infinitely far
        return np.where(known, depth, np.nan).astype(np.float32)


def point_map(depth: NDArray[np.floating], calibration: Calibration) -> NDArray[np.float32]:
    """Points of all pixels in the frame of the left camera: x right, y down, z forward.

    Args:
        depth: (H, W) in metres.
        calibration: Calibration of images of this size.

    Returns:
        (H, W, 3) in metres; not finite where the depth is not.
    """
    height, width = depth.shape
    fy = calibration.f if calibration.fy is None else calibration.fy
    across = (np.arange(width) - calibration.cx) / calibration.f
    down = (np.arange(height) - calibration.cy) / fy
    points = np.empty((height, width, 3), np.float32)
    with np.errstate(invalid="ignore"):  # the axis of a point at infinity
        points[..., 0] = depth * across
        points[..., 1] = depth * down[:, None]
    points[..., 2] = depth
    return points


# Which points to trust ----------------------------------------------------------------------------


def flying_pixels(disparity: NDArray[np.floating], doffs: float = 0.0) -> NDArray[np.bool_]:
    """Pixels at depth edges, where networks blend the disparities of both surfaces.

    Their points fly between the surfaces, where there is nothing. A pixel is one of them if the
    disparities of it and its eight neighbours range over more than 2 px; for far points, with
    disparities below 8 px, over more than a quarter of the disparity (and 0.5 px).

    Args:
        disparity: (H, W) in pixels; not finite where unknown, which counts as no edge.
        doffs: See `Calibration`.

    Returns:
        (H, W), true at such pixels.
    """
    known = np.isfinite(disparity)
    around = np.ones((3, 3), np.uint8)
    values = disparity.astype(np.float32)
    highest = cv2.dilate(np.where(known, values, np.float32(-np.inf)), around)
    lowest = cv2.erode(np.where(known, values, np.float32(np.inf)), around)
    most = np.clip(_STEEPEST_SHARE * (lowest + np.float32(doffs)), _LEAST_STEP, _STEEPEST)
    with np.errstate(invalid="ignore", over="ignore"):  # windows without a known pixel
        return known & (highest - lowest > most)


def hidden_in_right(disparity: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Left pixels that the right image does not show, according to the left disparity alone.

    All pixels are moved to their places in the right image. A pixel is hidden if one that is
    nearer by more than a pixel of disparity takes its place (a z-buffer), or if its place is beyond
    the image's border. A pixel covers the two columns next to its place, so that surfaces that are
    wider in the right image have no gaps through which others would show.

    Args:
        disparity: (H, W) in pixels; pixels that are not finite are not hidden, and hide nothing.

    Returns:
        (H, W), true at hidden pixels.
    """
    height, width = disparity.shape
    known = np.isfinite(disparity)
    values = np.where(known, disparity, 0).astype(np.float32)
    place = np.arange(width, dtype=np.float32) - values
    inside = known & (place > -0.5) & (place < width - 0.5)
    first = np.clip(np.floor(place), 0, width - 1).astype(np.int64)
    rows = np.arange(height)[:, None] * width
    nearest = np.full(height * width, -np.inf, np.float32)
    for columns in (first, np.minimum(first + 1, width - 1)):
        np.maximum.at(nearest, (rows + columns)[inside], values[inside])
    nearby = np.clip(np.rint(place), 0, width - 1).astype(np.int64)
    covered = nearest[rows + nearby] > values + _AGREE
    return known & (covered | ~inside)


def inconsistent(disparity: NDArray[np.floating], right: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Left pixels whose disparity the right image's disparity contradicts (left-right check).

    Args:
        disparity: (H, W), that of the left image in pixels.
        right: (H, W), that of the right image.

    Returns:
        (H, W), true where the two differ by more than 1 px, the match lies beyond the right image's
        border, or one of them is not finite.
    """
    width = disparity.shape[1]
    place = np.arange(width) - np.where(np.isfinite(disparity), disparity, np.inf)
    inside = (place > -0.5) & (place < width - 0.5)
    nearby = np.rint(np.where(inside, place, 0)).astype(np.int64).clip(0, width - 1)
    back = np.take_along_axis(right, nearby, axis=1)
    with np.errstate(invalid="ignore"):
        agree = np.abs(disparity - back) <= _AGREE
    return ~(inside & agree)


# Clouds -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Coloured points, in the order of their pixels row by row."""

    points: NDArray[np.float32]
    """(N, 3) in metres, in the frame of the left camera: x right, y down, z forward."""
    colours: NDArray[np.uint8]
    """(N, 3) RGB."""
    mask: NDArray[np.bool_]
    """(H, W), true at the N pixels of the left image that have a point."""

    def __len__(self) -> int:
        return len(self.points)

    def write(self, path: str | Path) -> None:
        """Write the cloud as binary PLY or GLB, by suffix, atomically.

        PLY keeps the camera's frame. GLB has glTF's: y up, and the camera looks along -z; its
        colours are linear, as glTF demands.

        Raises:
            ValueError: The suffix is neither `.ply` nor `.glb`, or the cloud is empty.
            OSError: The file cannot be written.
        """
        import trimesh  # late: slow to import

        path = Path(path)
        if path.suffix.lower() not in (".ply", ".glb"):
            raise ValueError(f"{path}: unknown suffix of a point cloud; use .ply or .glb")
        if not len(self):
            raise ValueError("no point is left in the cloud: are its limits too narrow?")
        if path.suffix.lower() == ".ply":
            data = trimesh.PointCloud(self.points, self.colours).export(file_type="ply")
        else:
            upright = self.points * np.array((1, -1, -1), np.float32)
            cloud = trimesh.PointCloud(upright, _LINEAR[self.colours])
            data = trimesh.Scene(cloud).export(file_type="glb")
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)


_SRGB = np.arange(256) / 255
_LINEAR = np.where(_SRGB <= 0.04045, _SRGB / 12.92, ((_SRGB + 0.055) / 1.055) ** 2.4)
_LINEAR = np.rint(255 * _LINEAR).astype(np.uint8)
"""Linear value of each sRGB value (IEC 61966-2-1), both from 0 to 255."""
