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
    "reason",
    "values_of",
]

_FEW = 0.01
"""Scene Flow's release has negative pixels too, but never so large a share of a frame."""
_GAP = 1.0
"""Pixels between 0 and the next disparity, from which on many zeros cannot be what is far away."""


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
    zero: int
    """Known, and exactly 0."""
    smallest: float
    """Of the known ones over 0, pixels; infinite where there is none."""
    largest: float
    """Of the known ones, pixels."""

    def shares(self) -> dict[str, float]:
        """Each kind of odd pixel by its share of all, where there are any."""
        counts = {k: getattr(self, k) for k in ("negative", "nan", "infinite", "zero", "over")}
        return {kind: count / self.pixels for kind, count in counts.items() if count}


class Role(NamedTuple):
    """A file, and what it is read as: frames may share it, and one may be truth and a mask."""

    path: Path
    kind: str
    """`image`, `truth` or a mask's name."""
    decoded: bool = False
    """Whether it is truth in a form of the dataset's own, as depth."""


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
            role = Role(view.disparity, "truth", decoded=view.decode is not None)
            yield role, partial(disparity_values, decode=view.decode)
        for name, mask in view.masks.items():
            yield Role(mask.path, name), mask.read


def check_file(file: tuple[Role, Reader], max_disparity: float) -> FileCheck:
    """Open a file; whatever goes wrong in that is a problem, and no error.

    Args:
        file: One of `readers_of`.
        max_disparity: What is larger is counted as over the maximum, in pixels.
    """
    role, read = file
    told: list[str] = []
    if role.kind == "image":
        read = partial(read_image, tell=told.append)
    try:
        array = read(role.path)
        values = values_of(role.path, array, max_disparity) if role.kind == "truth" else None
    except Exception as error:  # of any kind: finding damage is what this is for
        return FileCheck(None, (Problem("unreadable", str(role.path), reason(error, role.path)),))
    problems = [Problem("dark", str(role.path), _without(role.path, text)) for text in told]
    if values is not None:
        problems += _implausible(values, role, max_disparity)
    return FileCheck(array.shape[:2], tuple(problems), values)


def reason(error: Exception, path: Path | str) -> str:
    """One line on what went wrong; without the path, which stands beside it."""
    return " ".join(_without(path, str(error)).split()) or type(error).__name__


def _without(path: Path | str, text: str) -> str:
    return text.removeprefix(f"{path}: ")


def values_of(path: Path, stored: NDArray[np.float32], max_disparity: float) -> Values:
    """Count the kinds of pixels of a disparity map, (H, W) as stored."""
    finite = np.isfinite(stored)
    negative = finite & (stored < 0)
    known = finite & ~negative
    positive = known & (stored > 0)
    return Values(
        path=str(path),
        pixels=stored.size,
        known=int(known.sum()),
        negative=int(negative.sum()),
        nan=int(np.isnan(stored).sum()),
        infinite=int(np.isinf(stored).sum()),
        over=int((known & (stored > max_disparity)).sum()),
        zero=int((known & ~positive).sum()),
        smallest=float(stored.min(where=positive, initial=np.inf)),
        largest=float(stored.max(where=known, initial=0)),
    )


def _implausible(values: Values, role: Role, max_disparity: float) -> Iterator[Problem]:
    few = _FEW * values.pixels
    if values.negative > few:
        share = values.negative / values.pixels
        yield Problem("negative", values.path, f"{share:.1%} of its pixels are negative")
    elif values.known == 0:
        yield Problem("no truth", values.path, "no pixel has a known disparity")
    elif values.over == values.known:
        told = f"every known disparity is over {max_disparity:g} pixels ({_range(values)})"
        yield Problem("beyond", values.path, f"{told}: check its unit, or raise --max-disparity")
    elif values.zero == values.known:
        yield Problem("zeros", values.path, "every known disparity is 0")
    elif values.zero > few and values.smallest > _GAP and not role.decoded:
        share = values.zero / values.pixels
        yield Problem(
            "zeros",
            values.path,
            f"{share:.1%} of its pixels are exactly 0, and no other is under "
            f"{values.smallest:.1f}: 0 is a known disparity here; save unknown pixels as NaN",
        )


def _range(values: Values) -> str:
    return f"{values.smallest:.1f} to {values.largest:.1f}"


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
