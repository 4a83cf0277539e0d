"""Checks that the files of frames can be read, agree in size and hold plausible disparities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.datasets.frames import Frame
from ea_psmnet.files import disparity_values, read_image

_FEW = 0.01
"""Largest share of odd pixels in a sound frame; Scene Flow also has a few negative pixels."""
_GAP = 1.0
"""Gap in pixels between 0 and the next disparity above which zeros cannot be distant points."""


@dataclass(frozen=True)
class Problem:
    """Something that the user should fix or know."""

    kind: str
    """Kind of problem: `unreadable`, `size`, `negative`, `swapped`..."""
    where: str
    """Path of the file, or name of the frame or part."""
    what: str
    """Description in one line."""


@dataclass(frozen=True)
class Values:
    """Counts of the kinds of pixels in a disparity file."""

    path: str
    pixels: int
    known: int
    """Valid pixels: finite and not negative."""
    negative: int
    nan: int
    infinite: int
    over: int
    """Valid, but over the maximum disparity."""
    zero: int
    """Valid, and exactly 0."""
    smallest: float
    """Smallest valid disparity over 0 in pixels; infinite if there is none."""
    largest: float
    """Largest valid disparity in pixels."""

    def shares(self) -> dict[str, float]:
        """Return the share of each kind of odd pixel that occurs."""
        counts = {k: getattr(self, k) for k in ("negative", "nan", "infinite", "zero", "over")}
        return {kind: count / self.pixels for kind, count in counts.items() if count}


class Role(NamedTuple):
    """A file and its use: frames may share a file, and it may be both ground truth and a mask."""

    path: Path
    kind: str
    """`image`, `truth` or the name of a mask."""
    decoded: bool = False
    """Whether it is ground truth in a format specific to the dataset, such as depth."""


Reader = Callable[[Path], NDArray[Any]]


@dataclass(frozen=True)
class FileCheck:
    """Result of checking one file."""

    size: tuple[int, ...] | None
    """Height and width; None if the file cannot be read."""
    problems: tuple[Problem, ...] = ()
    values: Values | None = None
    """Counts of pixels, for ground truth."""


def readers_of(frame: Frame) -> Iterator[tuple[Role, Reader]]:
    """Yield all files of a frame, the left image first, then ground truth and masks."""
    for view in (frame.left_view, frame.right_view):
        yield Role(view.image, "image"), read_image
    for view in (frame.left_view, frame.right_view):
        if view.disparity is not None:
            role = Role(view.disparity, "truth", decoded=view.decode is not None)
            yield role, partial(disparity_values, decode=view.decode)
        for name, mask in view.masks.items():
            yield Role(mask.path, name), mask.read


def check_file(file: tuple[Role, Reader], max_disparity: float) -> FileCheck:
    """Open a file, an item of `readers_of`; any error becomes a `Problem` of the result."""
    role, read = file
    told: list[str] = []
    if role.kind == "image":
        read = partial(read_image, tell=told.append)
    try:
        array = read(role.path)
        values = values_of(role.path, array, max_disparity) if role.kind == "truth" else None
    except Exception as error:  # of any kind, as the purpose is to find damage
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
    """Count the kinds of pixels of a disparity map (H, W), with values as stored."""
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
        yield Problem("no truth", values.path, "no valid pixels")
    elif values.over == values.known:
        told = f"every valid disparity is over {max_disparity:g} pixels ({_range(values)})"
        yield Problem("beyond", values.path, f"{told}: check the unit, or raise --max-disparity")
    elif values.zero == values.known:
        yield Problem("zeros", values.path, "every valid disparity is 0")
    elif values.largest < 1:
        told = f"every valid disparity is below 1 pixel (at most {values.largest:.3f})"
        yield Problem("tiny", values.path, f"{told}: check the unit")
    elif values.zero > few and values.smallest > _GAP and not role.decoded:
        share = values.zero / values.pixels
        yield Problem(
            "zeros",
            values.path,
            f"{share:.1%} of its pixels are exactly 0, and all others at least "
            f"{values.smallest:.1f}: 0 is a valid disparity here; save unknown pixels as NaN",
        )


def _range(values: Values) -> str:
    return f"{values.smallest:.1f} to {values.largest:.1f}"


def frame_problems(frame: Frame, checks: Mapping[Role, FileCheck]) -> Iterator[Problem]:
    """Yield the problems of a frame's files, and of sizes that differ from the left image's."""
    found = {role: checks[role] for role, _ in readers_of(frame)}
    for check in found.values():
        yield from check.problems
    expected = checks[Role(frame.left, "image")].size
    for role, check in found.items():
        size = check.size
        if expected is not None and size is not None and size != expected:
            what = f"{size[1]}x{size[0]} pixels, but {frame.left} has {expected[1]}x{expected[0]}"
            yield Problem("size", str(role.path), what)
