"""The files of a prediction: their names, and the pair that they belong to."""

from __future__ import annotations

import re
import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.files import (
    atomic_path,
    content_hash,
    printable,
    write_disparity_png,
    write_image,
    write_json,
    write_pfm,
)
from ea_psmnet.inference.outputs import preview
from ea_psmnet.records import read_record

__all__ = ["check_unclaimed", "pair_name", "pair_record", "prediction_paths", "write_prediction"]

PairRecord = dict[str, dict[str, str]]
"""`path` and `sha256` of the `left` and the `right` image."""

_ENDINGS = ("_disparity.pfm", "_disparity.png", "_preview.png", "_pair.json")
_PNG_MOST = 65535 / 256
_VIEWS = frozenset(("im", "img", "image", "view", "cam", "camera", "frame", "stereo", "rgb"))
"""Common names of images, which do not identify a pair."""


def pair_name(left: Path, right: Path) -> str:
    """Name of a pair: the common part of its images' names, or the name of their folder.

    `left/0006.png` and `right/0006.png` are 0006, `hall_left.png` and `hall_right.png` hall, and
    `hall/im0.png` and `hall/im1.png` hall.
    """
    parts = [re.findall(r"\d+|[^\W\d_]+|[\W_]+", path.stem) for path in (left, right)]
    alike = len(parts[0]) == len(parts[1])
    shared = [a for a, b in zip(*parts, strict=True) if a == b] if alike else []
    name = re.sub(r"([\W_])[\W_]+", r"\1", "".join(shared)).strip("_-. ")
    if not name or name.lower() in _VIEWS:
        name = left.resolve().parent.name
    return name or left.stem


def pair_record(left: Path, right: Path) -> PairRecord:
    """Paths and hashes of a pair's images."""
    views = {"left": left, "right": right}
    return {
        side: {"path": printable(path.resolve()), "sha256": content_hash(path)}
        for side, path in views.items()
    }


def prediction_paths(folder: Path, name: str) -> list[Path]:
    """The files of `write_prediction`, in its order."""
    return [folder / f"{name}{ending}" for ending in _ENDINGS]


def check_unclaimed(folder: Path, name: str, pair: PairRecord) -> None:
    """Raise a FileExistsError if files of that name exist that may belong to another pair.

    Args:
        folder: Folder of the prediction.
        name: Name of the prediction.
        pair: Its `pair_record`; pairs are the same if their images have the same path or content.
    """
    paths = prediction_paths(folder, name)
    there = [path for path in paths if path.exists()]
    if there and not _is_of(pair, paths[-1]):
        raise FileExistsError(
            f"{there[0]}: is there and not of this pair: give another --name or --out, or --force "
            "to overwrite it"
        )


def write_prediction(
    folder: Path,
    name: str,
    left: NDArray[np.uint8],
    disparity: NDArray[np.floating],
    pair: PairRecord,
) -> list[Path]:
    """Write a prediction: disparity as PFM and as 16-bit PNG, a picture, and the pair's record.

    The files appear once all of them are complete. A warning reports disparities that are too large
    for the PNG.

    Args:
        folder: The folder to write to; it is created if necessary.
        name: Name of the pair, with which all files begin.
        left: (H, W, 3) uint8 RGB.
        disparity: (H, W) in pixels.
        pair: The `pair_record` of the images.

    Returns:
        The four paths, as in `prediction_paths`.

    Raises:
        OSError: A file cannot be written.
        ValueError: Image and disparity differ in size.
    """
    if left.shape[:2] != disparity.shape:
        raise ValueError(f"{name}: image {left.shape[:2]} and disparity {disparity.shape} differ")
    paths = prediction_paths(folder, name)
    with ExitStack() as stack:
        pfm, png, picture, record = (stack.enter_context(atomic_path(path)) for path in paths)
        write_pfm(pfm, disparity)
        write_disparity_png(png, disparity)
        write_image(picture, preview(left, disparity))
        write_json(record, pair)
    over = int(np.count_nonzero(disparity > _PNG_MOST))
    if over:
        warnings.warn(
            f"{paths[1]}: {over:,} pixels ({over / disparity.size:.1%}) lie over 255.99, the most "
            f"that 16 bits hold, and are unknown in it; {paths[0].name} has them",
            stacklevel=2,
        )
    return paths


def _is_of(pair: PairRecord, path: Path) -> bool:
    """Whether a record is of this pair; false if it is missing or damaged."""
    try:
        known = read_record(path, dict[str, dict[str, str]])
    except (OSError, ValueError):
        return False
    return all(
        any(known.get(side, {}).get(key) == value for key, value in view.items())
        for side, view in pair.items()
    )
