"""Pairs of images from files, arrays or Pillow, checked and converted to 8-bit RGB."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ea_psmnet.calibration import Calibration, RawCalibration
from ea_psmnet.images import eight_bits, read_image
from ea_psmnet.inference.result import StereoResult

ImageLike = NDArray[np.uint8] | NDArray[np.uint16] | Image.Image | str | PathLike[str]
"""A picture in colour or grey with 8 or 16 bits: an array (H, W, 3) in RGB, (H, W, 4) with alpha or
(H, W) in grey; a Pillow image; or the path of a file."""

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Left and right image, each (H, W, 3) RGB."""

_KINDS = (
    "an array (H, W), (H, W, 3) or (H, W, 4) of uint8 or uint16, a Pillow image of 8 or 16 bits, "
    "or a path"
)
_LARGEST_SCALE = 8


def as_pair(pair: Any) -> Pair:
    """Convert left and right image to (H, W, 3) uint8 RGB.

    Args:
        pair: Two `ImageLike`.

    Raises:
        TypeError: There are not two images, or one has the wrong type.
        ValueError: An image is empty or has an invalid shape or type, or the sizes differ.
        FileNotFoundError: There is no such file.
    """
    try:
        views = dict(zip(("left", "right"), pair, strict=True))
    except (TypeError, ValueError):
        message = f"a pair is a tuple of left and right image; this is {_described(pair)}"
        raise TypeError(message) from None
    left, right = (_as_rgb(label, image) for label, image in views.items())
    if left.shape != right.shape:
        raise ValueError(
            f"the images differ in size: left {left.shape[1]} x {left.shape[0]}, "
            f"right {right.shape[1]} x {right.shape[0]}: a rectified pair has one size"
        )
    return left, right


def calibrated_pair(
    pair: Pair, calibration: Calibration | RawCalibration | None
) -> tuple[Pair, Calibration | None]:
    """Rectify a pair if its calibration is that of unrectified images.

    Returns:
        The rectified pair, and its calibration at its size.

    Raises:
        ValueError: The calibration turns an image out of view, or does not rectify the pair.
    """
    if isinstance(calibration, RawCalibration):
        return calibration.rectify(*pair)
    return pair, None if calibration is None else calibration.for_images(*pair[0].shape[:2])


def check_scale(scale: float) -> None:
    """Raise a ValueError if a pair cannot be predicted at this scale."""
    if not 0 < scale <= _LARGEST_SCALE:
        raise ValueError(f"scale is {scale:g}: expected above 0 and at most {_LARGEST_SCALE}")


def predicted_at_scale(
    predict: Callable[[NDArray[np.uint8], NDArray[np.uint8]], StereoResult],
    pair: Pair,
    scale: float,
) -> StereoResult:
    """Predict a pair at another size, and resample the result to the pair's own size.

    Args:
        predict: Function from two images to their result.
        pair: The images.
        scale: Factor on width and height; below 1 it allows larger disparities, with less detail.

    Raises:
        ValueError: The scale is not above 0, or too large, or `predict` refuses the images.
    """
    resized = resized_pair(pair, scale)
    found = predict(*resized)
    return found if resized is pair else found.resampled(pair[0])


def resized_pair(pair: Pair, scale: float) -> Pair:
    """Resize a pair; the same pair if its size does not change.

    Raises:
        ValueError: The scale is not above 0, or too large.
    """
    check_scale(scale)
    height, width = pair[0].shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size == (width, height):
        return pair
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    left, right = (
        np.asarray(cv2.resize(view, size, interpolation=method), np.uint8) for view in pair
    )
    return left, right


def _as_rgb(label: str, image: Any) -> NDArray[np.uint8]:
    if isinstance(image, str | PathLike):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        image = _pixels(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"the {label} image is {_described(image)}: expected {_KINDS}")
    grey = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1)
    if not grey and not (image.ndim == 3 and image.shape[2] in (3, 4)):
        raise ValueError(f"the {label} image is {_described(image)}: expected {_KINDS}")
    if image.size == 0:
        raise ValueError(f"the {label} image is empty: {_described(image)}")
    if image.dtype.newbyteorder("=") == np.uint16:
        image = eight_bits(image.astype(np.uint16, copy=False), f"the {label} image")
    elif image.dtype != np.uint8:
        raise ValueError(f"the {label} image is {_described(image)}: expected {_KINDS}")
    colours = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2) if grey else image[..., :3]
    return np.require(colours, np.uint8, ("C", "W"))  # as torch needs it; copied if necessary


def _pixels(image: Image.Image) -> NDArray[Any]:
    """Pixels of an image, rotated as its EXIF states, without a palette; 16 bits are kept."""
    upright = ImageOps.exif_transpose(image)
    if not upright.mode.startswith(("I", "F")):
        return np.asarray(upright.convert("RGB"))
    pixels = np.asarray(upright)
    if upright.mode == "I" and pixels.size and 0 <= pixels.min() <= pixels.max() <= 0xFFFF:
        return pixels.astype(np.uint16)  # what Pillow has of 16-bit PGM, for example
    return pixels


def _described(thing: Any) -> str:
    if isinstance(thing, np.ndarray):
        return f"an array {thing.shape} of {thing.dtype}"
    return "None" if thing is None else f"of type {type(thing).__name__}"
