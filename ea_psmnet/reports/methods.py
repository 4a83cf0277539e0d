"""What can be evaluated: a network, a baseline, or predictions that any other system saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.frames import FrameDataset
from ea_psmnet.files import DISPARITY_SUFFIXES, read_disparity
from ea_psmnet.inference.baselines import BlockMatcher
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.sample import StereoSample

__all__ = ["Method", "baseline", "digest", "network", "sample_names", "saved_predictions"]

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
    together: Callable[[Sequence[StereoSample]], list[NDArray[np.float32]]] | None = None
    """`predict` for several samples at once, where a method can."""
    identity: str = ""
    """What its predictions depend on besides the pair, weights by a hash: another, another run."""

    def predict_all(self, samples: Sequence[StereoSample]) -> list[NDArray[np.float32]]:
        """A disparity a sample, in their order."""
        if self.together is None:
            return [self.predict(sample) for sample in samples]
        return self.together(samples)


def network(matcher: StereoMatcher, label: str, identity: str = "") -> Method:
    """A network, which predicts pairs together."""

    def together(samples: Sequence[StereoSample]) -> list[NDArray[np.float32]]:
        pairs = [(sample.left, sample.right) for sample in samples]
        with _naming(samples):
            return [result.disparity for result in matcher.match(pairs)]

    return Method(label, lambda sample: together([sample])[0], together=together, identity=identity)


def baseline(matcher: BlockMatcher) -> Method:
    """One of OpenCV's matchers, labelled with what is done about its holes and its border."""
    notes = ["filled" if matcher.fill else "holes left", *(["padded"] if matcher.pad else [])]
    label = f"{matcher.name.upper()} ({', '.join(notes)})"

    def predict(sample: StereoSample) -> NDArray[np.float32]:
        with _naming([sample]):
            return matcher(sample.left, sample.right)

    return Method(label, predict, identity=repr(matcher))


@contextmanager
def _naming(samples: Sequence[StereoSample]) -> Iterator[None]:
    """Say with which pair of a dataset something is wrong."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{', '.join(sample.name for sample in samples)}: {error}") from error


def saved_predictions(folder: Path, label: str, dataset: Sequence[StereoSample]) -> Method:
    """Disparity maps in files named after the samples: `NAME.pfm`, `.png` or `.npy`.

    Or as `predict` calls them, `NAME_disparity.pfm`. A slash in a name is a folder or an
    underscore. What is negative, not finite, or 0 in a PNG, is no prediction. Where a sample has
    several files, the first of these formats is read.

    Raises:
        FileNotFoundError: no such folder, or samples without a file; the message names the first
            ten.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of predictions")
    names = sample_names(dataset)
    paths = {name: _find(folder, name) for name in names}
    if missing := [name for name, path in paths.items() if path is None]:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise FileNotFoundError(
            f"{folder}: no prediction for {len(missing)} of {len(names)} images: "
            f"{', '.join(missing[:_NAMED])}{more}; expected NAME{'|'.join(DISPARITY_SUFFIXES)}"
        )
    stats = [(str(path), path.stat()) for path in paths.values() if path]
    files = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    return Method(
        label,
        lambda sample: _read(folder, sample),
        timed=False,
        identity=f"{len(files)} files {digest(json.dumps(files))}",
    )


def digest(text: str) -> str:
    """A short hash, to tell texts apart."""
    return sha256(text.encode()).hexdigest()[:16]


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
    endings = [f"{mark}{suffix}" for mark in ("", "_disparity") for suffix in DISPARITY_SUFFIXES]
    paths = (folder / f"{stem}{ending}" for stem in stems for ending in endings)
    return next((path for path in paths if path.is_file()), None)


def sample_names(dataset: Sequence[StereoSample]) -> list[str]:
    """Names of all pairs, without reading them where that is possible."""
    if isinstance(dataset, FrameDataset):
        return [frame.name for frame in dataset.frames]
    return [dataset[index].name for index in range(len(dataset))]
