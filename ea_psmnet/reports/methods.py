"""What can be evaluated: a network, a baseline, or predictions that any other system saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.frames import FrameDataset
from ea_psmnet.files import DISPARITY_SUFFIXES, read_disparity
from ea_psmnet.inference.baselines import BlockMatcher
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.sample import StereoSample

__all__ = ["Method", "baseline", "network", "saved_predictions"]

_NAMED = 10
"""How many missing files an error names."""


@dataclass(frozen=True)
class Method:
    """A name for tables and a way to a disparity map."""

    label: str
    predict: Callable[[StereoSample], NDArray[np.float32]]
    """Sample to (H, W) disparity in pixels, NaN where there is none; must not look at the truth."""
    timed: bool = True
    """Whether the time of `predict` is the method's own."""


def network(matcher: StereoMatcher, label: str) -> Method:
    """A network."""
    return Method(label, lambda sample: matcher(sample.left, sample.right).disparity)


def baseline(matcher: BlockMatcher) -> Method:
    """One of OpenCV's matchers, labelled with what is done about its holes and its border."""
    notes = ["filled" if matcher.fill else "holes left", *(["padded"] if matcher.pad else [])]
    label = f"{matcher.name.upper()} ({', '.join(notes)})"
    return Method(label, lambda sample: matcher(sample.left, sample.right))


def saved_predictions(folder: Path, label: str, dataset: Sequence[StereoSample]) -> Method:
    """Disparity maps in files named after the samples: `NAME.pfm`, `.png` or `.npy`.

    A slash in a name is a folder or an underscore. What is negative, not finite, or 0 in a PNG, is
    no prediction. Where a sample has several files, the first of these formats is read.

    Raises:
        FileNotFoundError: no such folder, or samples without a file; the message names the first
            ten.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of predictions")
    names = _sample_names(dataset)
    missing = [name for name in names if _find(folder, name) is None]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise FileNotFoundError(
            f"{folder}: no prediction for {len(missing)} of {len(names)} images: "
            f"{', '.join(missing[:_NAMED])}{more}; expected NAME{'|'.join(DISPARITY_SUFFIXES)}"
        )
    return Method(label, lambda sample: _read(folder, sample), timed=False)


def _read(folder: Path, sample: StereoSample) -> NDArray[np.float32]:
    path = _find(folder, sample.name)
    if path is None:
        raise FileNotFoundError(f"{folder}: no prediction for {sample.name}")
    disparity, known = read_disparity(path)
    if disparity.shape != sample.disparity.shape:
        height, width = sample.disparity.shape
        raise ValueError(
            f"{path}: {disparity.shape[1]} x {disparity.shape[0]} pixels, but {sample.name} has "
            f"{width} x {height}; a prediction has its image's size"
        )
    return np.where(known, disparity, np.float32(np.nan))


def _find(folder: Path, name: str) -> Path | None:
    stems = dict.fromkeys((name, name.replace("/", "_")))
    paths = (folder / f"{stem}{suffix}" for stem in stems for suffix in DISPARITY_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _sample_names(dataset: Sequence[StereoSample]) -> list[str]:
    if isinstance(dataset, FrameDataset):
        return [frame.name for frame in dataset.frames]
    return [dataset[index].name for index in range(len(dataset))]
