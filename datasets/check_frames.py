"""Whether frames' files can be read, agree in size and hold plausible disparities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.frames import Frame
from ea_psmnet.files import disparity_values, read_image

__all__ = [
    "FileCheck",
    "Problem",
    "Role",
    "Values",
    "check_file",
    "frame_problems",
    "readers_of",
    "values_of",
]

_FEW = 0.01
"""Scene Flow's release has negative pixels too, but never so large a share of a frame."""


@dataclass(frozen=True)
class Problem:
    """Something a person should mend, or know."""

    kind: str
    """What sort of problem: `unreadable`, `size`, `negative`, `swapped`..."""
    where: str
    """The path, or the frame or part."""
    what: str
    """One line for a person."""


@dataclass(frozen=True)
class Values:
    """What pixels a disparity file has."""

    path: str
    pixels: int
    known: int
    """Finite and not negative."""
    negative: int
    nan: int
    infinite: int
    over: int
    """Known, but over the maximum that is searched."""
    largest: float
    """Of the known ones, pixels."""

    def shares(self) -> dict[str, float]:
        """Each kind of odd pixel by its share of all, where there are any."""
        counts = {k: getattr(self, k) for k in ("negative", "nan", "infinite", "over")}
        return {kind: count / self.pixels for kind, count in counts.items() if count}


class Role(NamedTuple):
    """A file, and what it is read as: frames may share it, and one may be truth and a mask."""

    path: Path
    kind: str
    """`image`, `truth` or a mask's name."""


Reader = Callable[[Path], NDArray[Any]]


@dataclass(frozen=True)
class FileCheck:
    """What was found in one file."""

    size: tuple[int, ...] | None
    """Height and width; None where it could not be read."""
    problems: tuple[Problem, ...] = ()
    values: Values | None = None
    """Of truth."""


def readers_of(frame: Frame) -> Iterator[tuple[Role, Reader]]:
    """The frame's files, the right view's truth and the masks included; the left image first."""
    for view in (frame.left_view, frame.right_view):
        yield Role(view.image, "image"), read_image
    for view in (frame.left_view, frame.right_view):
        if view.disparity is not None:
            yield Role(view.disparity, "truth"), partial(disparity_values, decode=view.decode)
        for name, mask in view.masks.items():
            yield Role(mask.path, name), mask.read


def check_file(file: tuple[Role, Reader], max_disparity: float) -> FileCheck:
    """Open a file.

    Args:
        file: One of `readers_of`.
        max_disparity: What is larger is counted as over the maximum, in pixels.
    """
    role, read = file
    try:
        array = read(role.path)
    except (OSError, ValueError) as error:
        told = _without(role.path, error)
        return FileCheck(None, (Problem("unreadable", str(role.path), told),))
    size = array.shape[:2]
    if role.kind != "truth":
        return FileCheck(size)
    values = values_of(role.path, array, max_disparity)
    return FileCheck(size, tuple(_implausible(values)), values)


def _without(path: Path, error: Exception) -> str:
    """A message without the path it begins with: that stands beside it."""
    return str(error).removeprefix(f"{path}: ")


def values_of(path: Path, stored: NDArray[np.float32], max_disparity: float) -> Values:
    """Count the kinds of pixels of a disparity map, (H, W) as stored."""
    finite = np.isfinite(stored)
    negative = finite & (stored < 0)
    known = finite & ~negative
    return Values(
        path=str(path),
        pixels=stored.size,
        known=int(known.sum()),
        negative=int(negative.sum()),
        nan=int(np.isnan(stored).sum()),
        infinite=int(np.isinf(stored).sum()),
        over=int((known & (stored > max_disparity)).sum()),
        largest=float(stored.max(where=known, initial=0)),
    )


def _implausible(values: Values) -> Iterator[Problem]:
    if values.negative > _FEW * values.pixels:
        share = values.negative / values.pixels
        yield Problem("negative", values.path, f"{share:.1%} of its pixels are negative")
    elif values.known == 0:
        yield Problem("no truth", values.path, "no pixel has a known disparity")


def frame_problems(frame: Frame, checks: Mapping[Role, FileCheck]) -> Iterator[Problem]:
    """What is wrong with a frame: with its files, and sizes other than its left image's."""
    found = {role: checks[role] for role, _ in readers_of(frame)}
    for check in found.values():
        yield from check.problems
    expected = checks[Role(frame.left, "image")].size
    for role, check in found.items():
        size = check.size
        if expected is not None and size is not None and size != expected:
            what = f"{size[1]}x{size[0]} pixels, but {frame.left} has {expected[1]}x{expected[0]}"
            yield Problem("size", str(role.path), what)
