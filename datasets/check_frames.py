"""Whether a frame's files can be read, agree in size and hold plausible disparities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.frames import Frame, View
from ea_psmnet.files import disparity_values, read_image

__all__ = ["FrameCheck", "Problem", "Values", "check_frame", "values_of"]

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


@dataclass(frozen=True)
class FrameCheck:
    """What was found in one frame."""

    name: str
    problems: tuple[Problem, ...]
    values: tuple[Values, ...]
    """Of the truth files that could be read."""


def check_frame(frame: Frame, max_disparity: float) -> FrameCheck:
    """Open all files of a frame, the right view's truth and the masks included.

    Args:
        frame: The files.
        max_disparity: What is larger is counted as over the maximum, in pixels.
    """
    problems: list[Problem] = []
    values: list[Values] = []
    sizes: dict[Path, tuple[int, ...]] = {}
    for path, read, is_truth in _files(frame):
        try:
            array = read(path)
        except (OSError, ValueError) as error:
            problems.append(Problem("unreadable", str(path), _without(path, error)))
            continue
        sizes[path] = array.shape[:2]
        if is_truth:
            values.append(values_of(path, array, max_disparity))
            problems += _implausible(values[-1])
    problems += _different_sizes(frame.left, sizes)
    return FrameCheck(frame.name, tuple(problems), tuple(values))


def _files(frame: Frame) -> Iterator[tuple[Path, Callable[[Path], NDArray[Any]], bool]]:
    """Each file, what reads it, and whether it is truth; the left image first."""
    for view in (frame.left_view, frame.right_view):
        yield view.image, read_image, False
    for view in (frame.left_view, frame.right_view):
        if view.disparity is not None:
            yield view.disparity, _truth_reader(view), True
        for mask in view.masks.values():
            yield mask.path, mask.read, False


def _truth_reader(view: View) -> Callable[[Path], NDArray[np.float32]]:
    return lambda path: disparity_values(path, view.decode)


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


def _different_sizes(left: Path, sizes: dict[Path, tuple[int, ...]]) -> Iterator[Problem]:
    expected = sizes.get(left)
    for path, size in sizes.items():
        if expected is not None and size != expected:
            what = f"{size[1]}x{size[0]} pixels, but {left} has {expected[1]}x{expected[0]}"
            yield Problem("size", str(path), what)
