"""Base of all dataset readers: the files of a frame, and a sequence of frames read on access."""

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


@dataclass(frozen=True)
class Mask:
    """A file that marks some pixels of a view, such as the non-occluded ones."""

    path: Path
    read: Callable[[Path], NDArray[np.bool_]]
    """Reads the file as (H, W) booleans."""


@dataclass(frozen=True)
class View:
    """The files of one camera in a frame."""

    image: Path
    disparity: Path | None = None
    """Ground truth with this view as the reference, if there is one."""
    decode: Callable[[Path], NDArray[np.float32]] | None = None
    """Passed to `ea_psmnet.files.read_disparity` if the suffix does not determine the format."""
    masks: Mapping[str, Mask] = field(default_factory=dict)
    """Masks by name; they become `StereoSample.masks`."""


@dataclass(frozen=True)
class Frame:
    """The files of one rectified pair; ground truth is missing only where a reader allows it."""

    left_view: View
    right_view: View
    name: str
    """Unique within the dataset; unprintable characters are escaped."""
    part: str = ""
    """The part of the dataset that it belongs to, if the dataset has parts."""
    flipped: bool = False
    """Whether everything is flipped horizontally on reading."""
    layout: str = ""
    """Description of the folder layout, for error messages."""

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
        """The ground truth of the left view, which must exist."""
        assert self.left_view.disparity is not None
        return self.left_view.disparity

    @property
    def files(self) -> list[Path]:
        """The files that `read` reads."""
        view = self.left_view
        truth = [] if view.disparity is None else [view.disparity]
        return [self.left, self.right, *truth, *(mask.path for mask in view.masks.values())]

    def mirror(self) -> Frame:
        """Return the mirrored frame: views swapped and flipped, ground truth of the right view.

        The result is a correct rectified pair.

        Raises:
            ValueError: The right view has no ground truth.
        """
        if self.right_view.disparity is None:
            raise ValueError(
                f"{self.name}/mirrored: no ground truth with this view as the reference; "
                "the dataset has it for the other view only"
            )
        return replace(
            self,
            left_view=self.right_view,
            right_view=self.left_view,
            name=f"{self.name}/mirrored",
            flipped=not self.flipped,
        )

    def read(self) -> StereoSample:
        """Read the files.

        Raises:
            OSError: A file is missing or cannot be read.
            ValueError: A file is damaged, or its size differs from the left image's.
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
                f"{_size(left.shape)}; the files of a frame must have the same size"
            )


class FrameDataset(Sequence[StereoSample]):
    """Frames in a fixed order, each read from disk on every access; slicing reads nothing.

    Dataset readers find the frames in their constructor, without reading them.

    Raises:
        FileNotFoundError: There are no frames, or a folder or a file of a frame is missing.
        ValueError: An argument is not one of those listed, or files contradict one another.
    """

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
        """Whether every frame has ground truth of the right view, which `mirrored` needs."""
        return all(frame.right_view.disparity is not None for frame in self.frames)

    @property
    def parts(self) -> dict[str, int]:
        """Number of frames in each part of the dataset, in the order of the frames."""
        return dict(Counter(frame.part for frame in self.frames))

    def mirrored(self, index: int) -> StereoSample:
        """Read the pair with views swapped and flipped, and the right view's ground truth.

        Raises:
            ValueError: The frame has no ground truth of the right view.
        """
        return self.frames[index].mirror().read()


def _flip(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array[:, ::-1])


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
