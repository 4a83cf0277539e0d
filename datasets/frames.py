"""What all readers of files share: a frame's files, and a sequence of frames read on use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.files import printable, read_disparity, read_image
from ea_psmnet.sample import StereoSample

__all__ = ["Frame", "FrameDataset", "Mask", "View"]


@dataclass(frozen=True)
class Mask:
    """A file that tells which pixels of a view are of one kind."""

    path: Path
    read: Callable[[Path], NDArray[np.bool_]]
    """Gives (H, W), true where a pixel is of that kind."""


@dataclass(frozen=True)
class View:
    """One camera's files of a frame."""

    image: Path
    disparity: Path | None = None
    """Truth with this view as the reference, where there is one."""
    decode: Callable[[Path], NDArray[np.float32]] | None = None
    """Gives the pixels to `ea_psmnet.files.read_disparity` where the suffix does not tell how."""
    masks: Mapping[str, Mask] = field(default_factory=dict)
    """What becomes `StereoSample.masks`."""


@dataclass(frozen=True)
class Frame:
    """The files of one rectified pair; readers leave the truth out only where they are told to."""

    left_view: View
    right_view: View
    name: str
    """Unique within the dataset; what no terminal takes in it becomes an escape."""
    part: str = ""
    """What to count it under, where a dataset has parts."""
    calibration: Path | None = None
    """Camera file, where the set has one for each pair: Middlebury's `calib.txt`."""
    flipped: bool = False
    """Whether all is flipped from left to right when it is read."""
    layout: str = ""
    """How the tree was understood, for messages."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", printable(self.name))

    @property
    def left(self) -> Path:
        """The left image."""
        return self.left_view.image

    @property
    def right(self) -> Path:
        """The right image."""
        return self.right_view.image

    @property
    def disparity(self) -> Path:
        """The truth of the left view, which there must be."""
        assert self.left_view.disparity is not None
        return self.left_view.disparity

    def mirror(self) -> Frame:
        """The frame as a mirror shows it: a correct pair again, with the other eye's truth.

        What was on the right is on the left in a mirror, so the views change places. The camera
        file is left out: it tells nothing of mirrored cameras.

        Raises:
            ValueError: there is no truth of the right view.
        """
        if self.right_view.disparity is None:
            raise ValueError(
                f"{self.name}/mirrored: no truth with this view as the reference; "
                "the set tells the other view's only"
            )
        return replace(
            self,
            left_view=self.right_view,
            right_view=self.left_view,
            name=f"{self.name}/mirrored",
            calibration=None,
            flipped=not self.flipped,
        )

    def read(self) -> StereoSample:
        """Read the files.

        Raises:
            OSError: one of them is not there, or cannot be read.
            ValueError: one is damaged, or another than the left image's size.
        """
        try:
            return self._read()
        except (OSError, ValueError) as error:
            if not self.layout:
                raise
            kinds = (FileNotFoundError, OSError, ValueError)
            kind = next(kind for kind in kinds if isinstance(error, kind))
            raise kind(f"{error}; {self.layout}") from error

    def _read(self) -> StereoSample:
        left, right = read_image(self.left), read_image(self.right)
        self._check_size(self.right, right, left)
        disparity, valid = np.zeros(left.shape[:2], np.float32), np.zeros(left.shape[:2], np.bool_)
        if (truth := self.left_view.disparity) is not None:
            disparity, valid = read_disparity(truth, self.left_view.decode)
            self._check_size(truth, disparity, left)
        turn = _flip if self.flipped else np.asarray
        masks = {}
        for key, mask in self.left_view.masks.items():
            pixels = mask.read(mask.path)
            self._check_size(mask.path, pixels, left)
            masks[key] = turn(pixels)
        return StereoSample(turn(left), turn(right), turn(disparity), turn(valid), self.name, masks)

    def _check_size(self, path: Path, array: NDArray[Any], left: NDArray[Any]) -> None:
        if array.shape[:2] != left.shape[:2]:
            raise ValueError(
                f"{path}: {_size(array.shape)} pixels, but {self.left} has "
                f"{_size(left.shape)}; the files of a frame must agree"
            )


class FrameDataset(Sequence[StereoSample]):
    """Frames in a fixed order; each is read anew when it is asked for. A slice reads nothing."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        self.frames = tuple(frames)

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, index: int) -> StereoSample: ...

    @overload
    def __getitem__(self, index: slice) -> FrameDataset: ...

    def __getitem__(self, index: int | slice) -> StereoSample | FrameDataset:
        if isinstance(index, slice):
            return FrameDataset(self.frames[index])
        return self.frames[index].read()

    @cached_property
    def has_right_truth(self) -> bool:
        """Whether `mirrored` works for every frame."""
        return all(frame.right_view.disparity is not None for frame in self.frames)

    @property
    def parts(self) -> dict[str, int]:
        """Frames in each part of the set, in the order of the frames."""
        return dict(Counter(frame.part for frame in self.frames))

    def mirrored(self, index: int) -> StereoSample:
        """The pair with the views swapped and flipped, and the right view's truth.

        Raises:
            ValueError: the set has no truth of that frame's right view.
        """
        return self.frames[index].mirror().read()


def _flip(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array[:, ::-1])


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
