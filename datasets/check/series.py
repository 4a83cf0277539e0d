"""Finds every split and render pass of a dataset in a folder, and counts the frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ea_psmnet.datasets.builder import build_dataset, dataset_entry
from ea_psmnet.datasets.check.files import Problem, reason
from ea_psmnet.datasets.frames import FrameDataset
from ea_psmnet.datasets.names import NoSplitError
from ea_psmnet.datasets.templates import MissingFilesError
from ea_psmnet.sample import StereoSample


@dataclass(frozen=True)
class Series:
    """One variant of a dataset, such as a split in a render pass."""

    label: str
    dataset: FrameDataset


@dataclass(frozen=True)
class Count:
    """Number of frames of a part of a series."""

    series: str
    part: str
    found: int
    published: int | None
    """Number in a complete download, if known."""

    @property
    def complete(self) -> bool:
        """Whether no frame is known to be missing."""
        return self.published is None or self.found >= self.published


def find_series(root: Path, name: str) -> tuple[list[Series], list[Problem]]:
    """Find all series of dataset `name` in `root`, and the problems of listing their files.

    If files of frames are missing, all of them are reported and the series is not checked further.
    A split or pass that does not exist is not a problem.

    Raises:
        ValueError: The name is unknown, or the dataset is not read from files.
    """
    found: list[Series] = []
    absent: list[Problem] = []
    problems: list[Problem] = []
    untold: list[Problem] = []
    lacking: dict[tuple[tuple[Path, str], ...], list[Problem]] = {}  # once, if splits share them
    entry = dataset_entry(name)
    for options in entry.variants(root):
        label = ", ".join(options.values())
        try:
            dataset = _built(name, root, options)
        except MissingFilesError as error:
            lacking.setdefault(error.missing, _each_missing(label, error))
            continue
        except (FileNotFoundError, NoSplitError) as error:
            absent.append(Problem("missing", label, reason(error, label)))
            continue
        except Exception as error:  # of any kind, as the purpose is to find damage
            problems.append(Problem("missing", label, reason(error, label)))
            continue
        if not isinstance(dataset, FrameDataset):
            raise ValueError(f"{name}: not read from files, so there is nothing to check")
        if all(dataset.frames != series.dataset.frames for series in found):
            found.append(Series(label, dataset))
            untold.extend(_without_truth(dataset))
    if not entry.all_variants:
        absent = [] if found or lacking or problems else absent[:1]
    return found, [*chain.from_iterable(lacking.values()), *absent, *problems, *untold]


def _built(name: str, root: Path, options: dict[str, Any]) -> Sequence[StereoSample]:
    """Build the dataset, allowing pairs without ground truth if necessary."""
    try:
        return build_dataset(name, root, **options)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            return build_dataset(name, root, require_truth=False, **options)
        raise error


def _without_truth(dataset: FrameDataset) -> Iterator[Problem]:
    """Yield a problem for each frame without ground truth, unless no frame has any."""
    lacking = [frame for frame in dataset.frames if frame.left_view.disparity is None]
    if len(lacking) < len(dataset.frames):
        for frame in lacking:
            yield Problem("missing", frame.name, "no ground truth, though other pairs have it")


def _each_missing(label: str, error: MissingFilesError) -> list[Problem]:
    """Return a problem with the number of missing files, then one for each of them."""
    share = len(error.missing) / (3 * error.frames)  # two images and the ground truth
    told = f"{len(error.missing)} of {3 * error.frames} files missing ({share:.2%})"
    each = [Problem("missing", str(path), what) for path, what in error.missing]
    return [Problem("incomplete", label, f"{told}; not checked further"), *each]


def count_parts(series: Series, known: Mapping[str, int]) -> list[Count]:
    """Count the frames of each part of a series, and look up the published number.

    A missing part counts as 0 if other parts of its archive exist.
    """
    found = series.dataset.parts
    archives = {_archive(part) for part in found}
    published = {part: n for part, n in known.items() if _archive(part) in archives}
    return [
        Count(series.label, part, found.get(part, 0), published.get(part))
        for part in dict.fromkeys((*found, *published))
    ]


def _archive(part: str) -> str:
    """Return the archive of a part: the letters of FlyingThings3D/TRAIN share one."""
    return "/".join(part.split("/")[:2])
