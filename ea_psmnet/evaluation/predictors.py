"""Predictors to evaluate: networks, OpenCV's matchers, and predictions that any system saved."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.datasets.frames import FrameDataset
from ea_psmnet.files import DISPARITY_SUFFIXES, disparity_values, printable
from ea_psmnet.inference.baselines import BlockMatcher
from ea_psmnet.inference.exported import ExportedMatcher
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.inference.result import StereoResult
from ea_psmnet.sample import StereoSample

_NAMED = 10
"""Number of missing files that an error names."""


@dataclass(frozen=True)
class Predictor:
    """A way to predict disparity, with a name for tables."""

    label: str
    predict: Callable[[StereoSample], NDArray[np.float32]]
    """Predicts disparity (H, W) in pixels, NaN where there is none; must not use ground truth."""
    timed: bool = True
    """Whether the time of `predict` is that of the prediction; not so for files."""
    together: Callable[[Sequence[StereoSample]], list[StereoResult]] | None = None
    """`predict` for several samples at once, with confidence, if the predictor can."""
    identity: str = ""
    """Everything that predictions depend on besides the pair, such as a hash of the weights."""
    file: Callable[[str], Path] | None = None
    """The file of a sample's prediction by the sample's name, if predictions are read."""

    def predict_all(self, samples: Sequence[StereoSample]) -> list[StereoResult]:
        """Return a prediction for every sample, in their order."""
        if self.together is None:
            return [StereoResult(self.predict(sample), sample.left) for sample in samples]
        return self.together(samples)


def network(
    matcher: StereoMatcher | ExportedMatcher,
    label: str,
    identity: str = "",
    *,
    confidence: bool = False,
) -> Predictor:
    """A network; it predicts the pairs of a batch together."""

    def together(samples: Sequence[StereoSample]) -> list[StereoResult]:
        pairs = [(sample.left, sample.right) for sample in samples]
        with _naming(samples):
            return matcher.match(pairs, confidence=confidence)

    return Predictor(
        label, lambda sample: together([sample])[0].disparity, together=together, identity=identity
    )


def baseline(matcher: BlockMatcher) -> Predictor:
    """One of OpenCV's matchers; its label says how holes and border are treated."""
    notes = ["filled" if matcher.fill else "holes left", *(["padded"] if matcher.pad else [])]
    label = f"{matcher.name.upper()} ({', '.join(notes)})"

    def predict(sample: StereoSample) -> NDArray[np.float32]:
        with _naming([sample]):
            return matcher(sample.left, sample.right)

    return Predictor(label, predict, identity=repr(matcher))


@contextmanager
def _naming(samples: Sequence[StereoSample]) -> Iterator[None]:
    """Name the pairs of a dataset in an error."""
    try:
        yield
    except ValueError as error:
        names = ", ".join(printable(sample.name) for sample in samples)
        raise type(error)(f"{names}: {error}") from error


def saved_predictions(folder: Path, label: str, dataset: Sequence[StereoSample]) -> Predictor:
    """Disparity maps in files named after the samples: `NAME.npy`, `.pfm` or `.png`.

    A slash in a name is a folder or an underscore. Names written by `predict` and those of the
    benchmarks' results are also accepted: `NAME_disparity.pfm`, KITTI's `disp_0/000000_10.png` for
    `training/000000_10`, and Middlebury's `Teddy/disp0METHOD.pfm` for `Teddy`. A value that is not
    finite, or 0 in a PNG, is no prediction; a negative value is a wrong one. If a sample has
    several files, the first of these formats is read.

    Raises:
        FileNotFoundError: There is no such folder, or samples have no file; the message names the
            first ten.
        ValueError: It is not clear which file belongs to a sample.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of predictions")
    names = sample_names(dataset)
    listing = cache(_listing)
    paths = {name: path for name in names if (path := _find(folder, name, listing))}
    if missing := [name for name in names if name not in paths]:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise FileNotFoundError(
            f"{folder}: no prediction for {len(missing)} of {len(names)} images: "
            f"{', '.join(missing[:_NAMED])}{more}; expected NAME{'|'.join(DISPARITY_SUFFIXES)}"
        )
    _check_owners(paths)
    hint = cache(_warn_of_sign)  # once for each predictor
    return Predictor(
        label,
        lambda sample: _read(paths[sample.name], sample, lambda: hint(folder)),
        timed=False,
        identity=str(folder),
        file=paths.__getitem__,
    )


def _read(path: Path, sample: StereoSample, hint: Callable[[], None]) -> NDArray[np.float32]:
    disparity = disparity_values(path)
    if disparity.shape != sample.disparity.shape:
        height, width = sample.disparity.shape
        raise ValueError(
            f"{path}: {disparity.shape[1]} x {disparity.shape[0]} pixels, but {sample.name} has "
            f"{width} x {height}; a prediction has its image's size"
        )
    known = np.isfinite(disparity)
    if known.any() and disparity.max(where=known, initial=-np.inf) < 0:
        hint()
    return np.where(known, disparity, np.float32(np.nan))


def _warn_of_sign(folder: Path) -> None:
    warnings.warn(
        f"{folder}: all values of a prediction are negative; if only the sign convention differs, "
        "negate them",
        stacklevel=4,
    )


# Files of predictions -----------------------------------------------------------------------------

_KITTI = re.compile(r"(?:.*/)?(\d{6}_10)")
_MIDDLEBURY = re.compile(r"disp0(?!gt$).*", re.IGNORECASE)

Listing = Callable[[Path], dict[str, dict[str, Path]]]
"""Lists the disparity files of a folder: paths by printable stem, then by suffix."""


def _listing(folder: Path) -> dict[str, dict[str, Path]]:
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in DISPARITY_SUFFIXES and path.is_file():
            found.setdefault(printable(path.stem), {}).setdefault(path.suffix.lower(), path)
    return found


def _find(folder: Path, name: str, listing: Listing) -> Path | None:
    """Find the file of a sample; of several possible names, the first that exists."""
    above, _, last = name.rpartition("/")
    places = [(folder / above, last), (folder, name.replace("/", "_"))]
    if kitti := _KITTI.fullmatch(name):
        places += [(folder / "disp_0", kitti[1]), (folder, kitti[1])]
    places += [(place, f"{stem}_disparity") for place, stem in places]  # as `predict` names them
    for place, stem in places:
        if files := listing(place).get(stem):
            return _preferred(files)
    scene = listing(folder / name)
    named = [stem for stem in scene if _MIDDLEBURY.fullmatch(stem)]
    if len(named) > 1:
        raise ValueError(f"{folder / name}: {' and '.join(named)}; keep one method's prediction")
    return _preferred(scene[named[0]]) if named else None


def _preferred(files: Mapping[str, Path]) -> Path:
    return next(files[suffix] for suffix in DISPARITY_SUFFIXES if suffix in files)


def _check_owners(paths: Mapping[str, Path]) -> None:
    """Refuse a file that would be the prediction of two samples, as slashes may be underscores."""
    owners: dict[Path, str] = {}
    for name, path in paths.items():
        if (other := owners.setdefault(path, name)) != name:
            raise ValueError(
                f"{path}: matches both {other} and {name}: use folders instead of underscores"
            )


def sample_names(dataset: Sequence[StereoSample]) -> list[str]:
    """Return the names of all pairs, without reading the pairs if possible."""
    if isinstance(dataset, FrameDataset):
        return [frame.name for frame in dataset.frames]
    return [dataset[index].name for index in range(len(dataset))]
