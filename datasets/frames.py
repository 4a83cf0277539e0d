"""What all readers of files share: a frame's three files, and a sequence of frames read on use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from ea_psmnet.files import read_disparity, read_image
from ea_psmnet.sample import StereoSample

__all__ = ["Frame", "FrameDataset"]


@dataclass(frozen=True)
class Frame:
    """The files of one rectified pair with truth."""

    left: Path
    right: Path
    disparity: Path
    """Of the left view."""
    name: str
    """Unique within the dataset."""

    def read(self) -> StereoSample:
        """Read the three files.

        Raises:
            FileNotFoundError: one of them is not there.
            ValueError: one is damaged, or another than the left image's size.
        """
        left, right = read_image(self.left), read_image(self.right)
        disparity, valid = read_disparity(self.disparity)
        for path, array in ((self.right, right), (self.disparity, disparity)):
            if array.shape[:2] != left.shape[:2]:
                raise ValueError(
                    f"{path}: {_size(array.shape)} pixels, but {self.left} has "
                    f"{_size(left.shape)}; the files of a frame must agree"
                )
        return StereoSample(left, right, disparity, valid, self.name)


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


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
