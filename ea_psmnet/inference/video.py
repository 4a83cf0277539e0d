"""Videos: frames of both views as pairs, disparity as a video, its smoothing and its flicker."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ea_psmnet.figures import GridStyle, Row, fitted, panel_grid
from ea_psmnet.files import atomic_path, printable, readable
from ea_psmnet.inference.inputs import Layout, split_views
from ea_psmnet.inference.outputs import colour_range, colourise, disparity_bar
from ea_psmnet.inference.pairs import Pair, as_pair
from ea_psmnet.inference.prediction_files import PairRecord, view_record
from ea_psmnet.pair_lists import pair_name

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
_DEFAULT_FPS = 25.0
_MOST_TICKS = 65535
"""Largest numerator of a frame rate in MPEG-4 part 2, whose field has 16 bits."""
_SAMPLES = 20_000
"""Disparities of each frame from which the range of colours is found."""


def is_video(path: Path) -> bool:
    """Whether a path has the suffix of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


@dataclass(frozen=True)
class VideoFrame:
    """One pair of a video, and the name of its results."""

    name: str
    index: int


class StereoVideo:
    """Pairs of two videos, or of one that shows both views.

    Args:
        paths: The left and the right video, or one for a layout with both views.
        layout: Place of the views.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is not a video, or the number of files does not fit the layout.
    """

    def __init__(self, paths: Sequence[Path], layout: Layout = "separate") -> None:
        count = 2 if layout == "separate" else 1
        if len(paths) != count:
            have = "1 video" if len(paths) == 1 else f"{len(paths)} videos"
            raise ValueError(
                f"{have} and --layout {layout}: give LEFT and RIGHT, or one video and --layout "
                "side-by-side or top-bottom"
            )
        self.paths, self.layout = tuple(paths), layout
        self._streams = [_Stream(path) for path in paths]
        lengths = [stream.count for stream in self._streams]
        self.count = min(lengths)
        self.fps = self._streams[0].fps
        if len(set(lengths)) > 1:
            warnings.warn(
                f"{paths[0]} has {lengths[0]} frames and {paths[1]} {lengths[1]}: the first "
                f"{self.count} are taken for pairs",
                stacklevel=2,
            )

    @property
    def name(self) -> str:
        """Name of the results: the common part of the files' names."""
        return self.paths[0].stem if len(self.paths) == 1 else pair_name(*self.paths)

    def frames(self, name: str) -> list[VideoFrame]:
        """All frames, whose results are in a folder `name`."""
        return [VideoFrame(f"{name}/{index:06d}", index) for index in range(self.count)]

    def read(self, frame: VideoFrame) -> Pair:
        """Read a pair; reading in the order of frames is fast.

        Raises:
            ValueError: A frame is damaged, or the views differ in size.
        """
        images = [stream.read(frame.index) for stream in self._streams]
        if len(images) == 1:
            return split_views(images[0], self.layout)
        return as_pair(images)

    def record(self, frame: VideoFrame) -> PairRecord:
        """Path and hash of the views of a frame."""
        return {
            side: {key: f"{value}#{frame.index}" for key, value in view.items()}
            for side, view in self.views.items()
        }

    @cached_property
    def views(self) -> PairRecord:
        """Path and hash of the video of each view, which may be the same."""
        records = [view_record(path) for path in self.paths]
        return dict(zip(("left", "right"), records * (2 // len(records)), strict=True))


class _Stream:
    """The frames of one file."""

    def __init__(self, path: Path) -> None:
        with readable(path):
            path.open("rb").close()
        self._path = path
        self._open()
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or _DEFAULT_FPS
        self.count = self._counted()
        if self.count == 0:
            raise ValueError(f"{path}: has no frames that can be decoded")

    def _open(self) -> None:
        self._capture, self._next = cv2.VideoCapture(name_for_opencv(self._path)), 0
        if not self._capture.isOpened():
            raise ValueError(f"{self._path}: damaged, or not a video")

    def _counted(self) -> int:
        """Number of frames, counted, because the number in the header is often a guess."""
        count = 0
        while self._capture.grab():
            count += 1
        self._open()
        return count

    def read(self, index: int) -> NDArray[np.uint8]:
        if index < self._next:
            self._open()
        while self._next < index and self._capture.grab():
            self._next += 1
        there, image = self._capture.read()
        self._next += 1
        if not there:
            raise ValueError(f"{self._path}: frame {index} cannot be decoded")
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def name_for_opencv(path: Path) -> str:
    """Name of a video as OpenCV takes it: absolute, because FFmpeg reads `a:` as a protocol.

    Raises:
        ValueError: The path is not UTF-8, with which OpenCV crashes.
    """
    name = str(path.absolute())
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{printable(path)}: OpenCV takes no video whose path is not UTF-8: rename it"
        ) from None
    return name


# The video of a prediction ------------------------------------------------------------------------


def write_disparity_video(
    path: Path,
    video: StereoVideo,
    frames: Sequence[VideoFrame],
    left: Callable[[VideoFrame], NDArray[np.uint8]],
    disparity: Callable[[VideoFrame], NDArray[np.float32]],
    *,
    name: str,
    smoothing: float = 0.0,
    beside: bool = True,
    colours: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Write the coloured disparity of all frames, with one range of colours.

    Args:
        path: The file, .mp4 (MPEG-4 part 2).
        video: The input.
        frames: The frames to write.
        left: Returns the left image (H, W, 3) of a frame, rectified.
        disparity: Returns the disparity (H, W) of a frame; not finite where unknown.
        name: Title of the video.
        smoothing: Strength of `Smoothing`, from 0 to below 1.
        beside: Whether to show the left image as well.
        colours: Disparities of the first and the last colour; None for those of the video.

    Returns:
        Plain values for JSON: number of frames, colour range, and the `Flicker` of the prediction
        and of the smoothed disparity, in pixels.

    Raises:
        OSError: The file cannot be written as a whole.
        ValueError: There are no frames.
    """
    if not frames:
        raise ValueError(f"{path}: not written, no frame was predicted")
    low, high = colours or colour_range(_sample(disparity, frames))
    predicted, smoothed = Flicker(), Flicker()
    smooth, sheet = Smoothing(smoothing), None
    with atomic_path(path) as temporary:
        with _Writer(temporary, path, video.fps) as writer:
            for frame in frames:
                image, found = left(frame), disparity(frame)
                drawn = smooth(image, found)
                predicted.add(image, found)
                smoothed.add(image, drawn)
                sheet = sheet or _Sheet(image, name, low, high, beside=beside)
                writer.add(sheet.draw(image, drawn))
        _check_complete(temporary, path, len(frames))
    return {
        "frames": len(frames),
        "frames_per_second": video.fps,
        "colours_from_to": [low, high],
        "smoothing": smoothing,
        "flicker": {"predicted": predicted.to_dict(), "written": smoothed.to_dict()},
    }


def _check_complete(file: Path, path: Path, count: int) -> None:
    """Raise an OSError unless a video has all frames: OpenCV does not report a full disk."""
    try:
        complete = _Stream(file).count == count
    except ValueError:
        complete = False
    if not complete:
        raise OSError(f"{path}: not written, the video is incomplete: is the disk full?")


def _sample(
    disparity: Callable[[VideoFrame], NDArray[np.float32]], frames: Sequence[VideoFrame]
) -> NDArray[np.float32]:
    """Some disparities of all frames, evenly spread over their pixels."""
    found = (disparity(frame).ravel() for frame in frames)
    return np.concatenate([values[:: max(1, values.size // _SAMPLES)] for values in found])


class _Sheet:
    """The captions and colour bar around the frames, drawn once."""

    _STYLE = GridStyle(0, 16, 0, line=28, size=11, title=64, title_size=14)
    _SIDE = 640

    def __init__(
        self, left: NDArray[np.uint8], name: str, low: float, high: float, *, beside: bool
    ) -> None:
        blank = fitted(np.full_like(left, 255), self._SIDE, self._SIDE)
        height, width = blank.shape[:2]
        style = self._STYLE._replace(width=width)
        captions = ("Left image", "Disparity") if beside else ("Disparity",)
        bar = disparity_bar(low, high, np.array([[low - 1, high + 1]]))
        details = f"{left.shape[1]} x {left.shape[0]} px; one range of colours for all frames"
        self._around = panel_grid(
            [Row((blank,) * len(captions), captions=captions)],
            style,
            title=name,
            details=details,
            bars=[None, bar] if beside else [bar],
        )
        top = style.title + style.line
        self._places = [
            (slice(top, top + height), slice(x, x + width))
            for x in (style.gap + column * (width + style.gap) for column in range(len(captions)))
        ]
        self._range = low, high

    def draw(self, left: NDArray[np.uint8], disparity: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Draw a frame, (h, w, 3) RGB with even sides, which encoders need."""
        picture = self._around.copy()
        coloured = fitted(colourise(disparity, *self._range), self._SIDE, self._SIDE)
        images = [coloured]
        if len(self._places) > 1:
            images = [fitted(left, self._SIDE, self._SIDE, cv2.INTER_AREA), coloured]
        for place, image in zip(self._places, images, strict=True):
            picture[place] = image
        return picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]


class _Writer:
    """An .mp4 file, opened with the first picture."""

    def __init__(self, temporary: Path, path: Path, fps: float) -> None:
        self._temporary, self._path, self._fps = temporary, path, fps
        self._file: cv2.VideoWriter | None = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.release()

    def add(self, picture: NDArray[np.uint8]) -> None:
        """Add a picture (h, w, 3) RGB."""
        if self._file is None:
            code = cv2.VideoWriter.fourcc(*"mp4v")
            name, size = name_for_opencv(self._temporary), picture.shape[1::-1]
            self._file = cv2.VideoWriter(name, code, _encodable(self._fps), size)
            if not self._file.isOpened():
                raise OSError(f"{self._path}: not written, OpenCV cannot encode .mp4 here")
        self._file.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def _encodable(fps: float) -> float:
    """The nearest rate that MPEG-4 has room for: OpenCV writes n / 10^k, and n is below 65,536."""
    digits = next((digits for digits in (3, 2, 1) if fps * 10**digits < _MOST_TICKS), 0)
    return min(round(fps, digits), _MOST_TICKS)


# Disparity over time ------------------------------------------------------------------------------

_WINDOW = 5
"""Side in pixels of the window in which images are compared."""
_STATIC = 2.0
"""Grey levels of change up to which a pixel counts as static."""
_SOFTNESS = 4.0
"""Grey levels of change at which smoothing falls to 1/e."""


def image_change(before: NDArray[np.uint8], now: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Change between two frames, (H, W) grey levels, of the mean over windows of 5 x 5 pixels.

    In such means a camera's noise is a fifth of that of a pixel. The result is averaged over
    colours.
    """
    difference = now.astype(np.float32) - before
    windows = np.asarray(cv2.blur(difference, (_WINDOW, _WINDOW)), np.float32)
    return np.abs(windows).mean(axis=2, dtype=np.float32)


class Smoothing:
    """Exponential average of disparity over time at the pixels whose image does not change.

    With the change c of the image at a pixel (`image_change`, grey levels), disparity d_t and
    strength s, the smoothed disparity is

        S_t = S_(t-1) + (1 - k) (d_t - S_(t-1)),    k = s exp(-(c / 4)^2).

    Where the image changes, k is 0 and the prediction is unchanged, so that moving objects leave no
    trail. A change of disparity without one of the image is followed with a delay of about
    1 / (1 - s) frames.

    Args:
        strength: From 0, no smoothing, to below 1.

    Raises:
        ValueError: The strength is out of range.
    """

    def __init__(self, strength: float) -> None:
        if not 0 <= strength < 1:
            raise ValueError(f"smoothing is {strength:g}: expected from 0 to below 1")
        self._strength = strength
        self._last: tuple[NDArray[np.uint8], NDArray[np.float32]] | None = None

    def __call__(
        self, image: NDArray[np.uint8], disparity: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Smooth the next frame.

        Args:
            image: (H, W, 3), the left image.
            disparity: (H, W) in pixels.
        """
        smoothed = disparity
        if self._last is not None and self._strength > 0:
            before, average = self._last
            kept = self._strength * np.exp(-((image_change(before, image) / _SOFTNESS) ** 2))
            smoothed = average + (1 - kept) * (disparity - average)
            smoothed = np.where(np.isfinite(smoothed), smoothed, disparity).astype(np.float32)
        self._last = image, smoothed
        return smoothed


@dataclass
class Flicker:
    """Change of disparity between consecutive frames at pixels whose image does not change.

    A pixel is static if its image changes by at most 2 grey levels. Two frames are measured by the
    median and the 95th percentile of the absolute change of disparity over static pixels, a
    sequence by the median over its pairs of frames.
    """

    medians: list[float] = field(default_factory=list)
    """Of each pair of frames with static pixels, in pixels of disparity."""
    highs: list[float] = field(default_factory=list)
    """95th percentiles of the same."""
    static: list[float] = field(default_factory=list)
    """Fraction of static pixels of each pair of frames."""
    _last: tuple[NDArray[np.uint8], NDArray[np.float32]] | None = None

    def add(self, image: NDArray[np.uint8], disparity: NDArray[np.float32]) -> None:
        """Add the next frame: image (H, W, 3), disparity (H, W) in pixels."""
        if self._last is not None:
            before, earlier = self._last
            change = np.abs(disparity - earlier)
            mask = (image_change(before, image) <= _STATIC) & np.isfinite(change)
            self.static.append(float(mask.mean()))
            if mask.any():
                median, high = np.percentile(change[mask], (50, 95))
                self.medians.append(float(median))
                self.highs.append(float(high))
        self._last = image, disparity

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the measures of the sequence, None without static pixels."""
        return {
            "median": float(np.median(self.medians)) if self.medians else None,
            "percentile_95": float(np.median(self.highs)) if self.highs else None,
            "static": float(np.mean(self.static)) if self.static else None,
        }
