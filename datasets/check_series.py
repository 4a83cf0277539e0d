"""What a folder holds: every split and render pass that is there, counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from datasets.builder import build_dataset
from datasets.check_frames import Problem, reason
from datasets.frames import FrameDataset
from datasets.middlebury import Resolution
from datasets.names import RenderPass, Split
from datasets.sceneflow import PUBLISHED_COUNTS
from datasets.sceneflow_layouts import find_parts
from datasets.templates import MissingFilesError
from ea_psmnet.sample import StereoSample

__all__ = ["Count", "Series", "count_parts", "find_series"]

_PASSES: tuple[RenderPass, ...] = ("clean", "final")


@dataclass(frozen=True)
class Series:
    """One split in one render pass."""

    label: str
    dataset: FrameDataset


@dataclass(frozen=True)
class Count:
    """Frames of one part of a series."""

    series: str
    part: str
    found: int
    published: int | None
    """Of a complete download, where it is known."""

    @property
    def complete(self) -> bool:
        """Whether nothing is known to be missing."""
        return self.published is None or self.found == self.published


def find_series(root: Path, name: str) -> tuple[list[Series], list[Problem]]:
    """Everything of dataset `name` that lies in `root`, and what could not be listed.

    Where frames lack files, all of these are told, and the series is not looked at further. A
    split or pass that is not there at all is no problem.
    """
    found: list[Series] = []
    problems: list[Problem] = []
    untold: list[Problem] = []
    lacking: dict[tuple[tuple[Path, str], ...], list[Problem]] = {}  # once, if splits are alike
    for label, options in _variants(root, name):
        try:
            dataset = _built(name, root, options)
        except MissingFilesError as error:
            lacking.setdefault(error.missing, _each_missing(label, error))
            continue
        except Exception as error:  # of any kind: a listing that damage stops is a finding
            problems.append(Problem("missing", label, reason(error, label)))
            continue
        if not isinstance(dataset, FrameDataset):
            raise ValueError(f"{name}: made of no files, so there is nothing to check")
        if all(dataset.frames != series.dataset.frames for series in found):
            found.append(Series(label, dataset))
            untold.extend(_without_truth(dataset))
    if name != "sceneflow":  # others do not have all splits and passes: only one must be there
        problems = [] if found or lacking else problems[:1]
    return found, [*chain.from_iterable(lacking.values()), *problems, *untold]


def _built(name: str, root: Path, options: dict[str, Any]) -> Sequence[StereoSample]:
    """The dataset, if need be with pairs that lack their truth."""
    try:
        return build_dataset(name, root, **options)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            return build_dataset(name, root, require_truth=False, **options)
        raise error


def _without_truth(dataset: FrameDataset) -> Iterator[Problem]:
    """Frames without truth, where others have it: of a set without any, nothing is missing."""
    lacking = [frame for frame in dataset.frames if frame.left_view.disparity is None]
    if len(lacking) < len(dataset.frames):
        for frame in lacking:
            yield Problem("missing", frame.name, "no truth, though other pairs have it")


def _each_missing(label: str, error: MissingFilesError) -> list[Problem]:
    """How many files are missing, then each of them."""
    share = len(error.missing) / (3 * error.frames)  # two images and the truth
    told = f"{len(error.missing)} files of {error.frames} frames are missing, {share:.2%}"
    each = [Problem("missing", str(path), what) for path, what in error.missing]
    return [Problem("incomplete", label, f"{told}; it is not looked at further"), *each]


def _variants(root: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What to look for: a label, and the options of `build_dataset`."""
    if name == "middeval3":
        for size in get_args(Resolution):
            yield f"train, {size}", {"resolution": size}
        return
    pairs = [(split, render_pass) for split in get_args(Split) for render_pass in _PASSES]
    if name == "sceneflow":  # of what is not there at all, the first is to be told
        pairs = [pair for pair in pairs if _holds_images(root, *pair)] or pairs[:1]
    for split, render_pass in pairs:
        if name in ("sceneflow", "sintel"):
            yield f"{split}, {render_pass}", {"split": split, "render_pass": render_pass}
        elif render_pass == _PASSES[0]:
            yield split, {"split": split}


def _holds_images(root: Path, split: Split, render_pass: RenderPass) -> bool:
    return any(part.images[render_pass].is_dir() for part in find_parts(root, split))


def count_parts(series: Series, known: Mapping[str, int] = PUBLISHED_COUNTS) -> list[Count]:
    """Frames of each part, beside the published number.

    A part that is missing wholly counts as 0 where others of its archive are there.

    Args:
        series: What was found.
        known: Published numbers by part; empty for scenes that nobody published.
    """
    found = series.dataset.parts
    archives = {_archive(part) for part in found}
    published = {part: n for part, n in known.items() if _archive(part) in archives}
    return [
        Count(series.label, part, found.get(part, 0), published.get(part))
        for part in dict.fromkeys((*found, *published))
    ]


def _archive(part: str) -> str:
    """What is downloaded as one: the letters of FlyingThings3D/TRAIN come together."""
    return "/".join(part.split("/")[:2])
