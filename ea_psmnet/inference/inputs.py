"""The pairs that a command line names: files, folders, patterns, lists, views in one image."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.files import IMAGE_SUFFIXES, read_image
from ea_psmnet.inference.pairs import Pair, as_pair
from ea_psmnet.inference.prediction_files import PairRecord, pair_record, view_record
from ea_psmnet.pair_lists import is_pair_list, pair_name, read_pair_list

Layout = Literal["separate", "side-by-side", "top-bottom"]
"""Place of the two views of a pair: in two images, or in the halves of one, left or top first."""

_LEFT_WORD = r"(?<!\bc)(?<!_c)left|(?<![a-z])l(?![a-z])"  # not cleft
_OTHERS = "".join(rf"(?<!\b{start})(?<!_{start})" for start in ("b", "f", "up", "copy"))
_RIGHT_WORD = rf"{_OTHERS}right|(?<![a-z])r(?![a-z])"  # not bright, but rgbright
_SIDES = re.compile(f"{_LEFT_WORD}|{_RIGHT_WORD}", re.IGNORECASE)
_LEFT = re.compile(_LEFT_WORD, re.IGNORECASE)
_NO_VIEW = re.compile(
    r"(?<![a-z])(disp(arity|[lr])?|depth|mask|occ(luded)?|conf(idence)?|flow|preview)(?![a-z])",
    re.IGNORECASE,
)
_FOLDERS = (
    *(("left", "right"), ("image_2", "image_3"), ("image_02", "image_03")),
    *(("image_0", "image_1"), ("image_00", "image_01"), ("colored_0", "colored_1")),
    *(("cam0", "cam1"), ("left_images", "right_images"), ("image_left", "image_right")),
)
"""Names of two folders in one that hold the left and the right images."""
_STEMS = (("im0", "im1"), ("im2", "im6"), ("view1", "view5"))
"""Names of the two images in the folder of a pair that do not say left and right."""


@dataclass(frozen=True)
class PairSource:
    """A pair that can be read, and the name of its results."""

    name: str
    """Name of the results, which may include folders: `scene/0001`."""
    left: Path
    right: Path
    """The same file as `left`, unless the layout is separate."""
    layout: Layout = "separate"

    def read(self) -> Pair:
        """Read both views, each (H, W, 3) uint8 RGB.

        Raises:
            FileNotFoundError: An image is missing.
            ValueError: An image is damaged or cannot be split, or the sizes differ.
        """
        if self.layout == "separate":
            return as_pair((self.left, self.right))
        try:
            return split_views(read_image(self.left), self.layout)
        except ValueError as error:
            told = str(error)
            raise ValueError(told if str(self.left) in told else f"{self.left}: {told}") from None

    def record(self) -> PairRecord:
        """Paths and hashes of the images."""
        if self.layout == "separate":
            return pair_record(self.left, self.right)
        both, halves = view_record(self.left), _HALVES[self.layout]
        return {
            side: {key: f"{value}#{half}" for key, value in both.items()}
            for side, half in zip(("left", "right"), halves, strict=True)
        }


_HALVES: dict[Layout, tuple[str, str]] = {
    "side-by-side": ("left half", "right half"),
    "top-bottom": ("top half", "bottom half"),
}


def split_views(image: NDArray[np.uint8], layout: Layout) -> Pair:
    """Split an image (H, W, 3) of both views into left and right.

    Raises:
        ValueError: The halves would differ in size.
    """
    axis = 0 if layout == "top-bottom" else 1
    side = image.shape[axis]
    if side % 2:
        what = "height" if axis == 0 else "width"
        raise ValueError(f"its {what} is {side} px, odd: the two views of a {layout} image have "
                         "one size")  # fmt: skip
    left, right = np.split(image, 2, axis=axis)
    return np.ascontiguousarray(left), np.ascontiguousarray(right)


@dataclass(frozen=True)
class Found:
    """Pairs, in their order, and images without a partner."""

    pairs: list[PairSource]
    alone: list[Path]


def find_pairs(inputs: Sequence[Path], layout: Layout = "separate") -> Found:
    """Find the pairs that inputs name.

    Args:
        inputs: Two images; two folders or two patterns, whose images belong together by name; one
            folder of pairs; one list; folders of pairs; or the left images and then as many right
            ones. With both views in one image: images, folders or patterns.
        layout: Where the two views of a pair are.

    Raises:
        FileNotFoundError: An input does not exist, or there are no pairs.
        ValueError: The inputs are of different kinds, or two pairs would have one name.
    """
    if not inputs:
        raise ValueError("no images: give LEFT and RIGHT, two folders, or a folder of pairs")
    groups = [_expanded(each) for each in inputs]
    if layout != "separate":
        paths = list(chain.from_iterable(groups))
        found = Found(list(_stacked(paths, layout)), [])
    elif len(inputs) == 1 and is_pair_list(inputs[0]):
        pairs = read_pair_list(inputs[0])
        found = Found([PairSource(p.name, p.files["left"], p.files["right"]) for p in pairs], [])
    else:
        found = _separate(groups)
    if not found.pairs:
        hint = "; give --layout if both views are in one image" if layout == "separate" else ""
        raise FileNotFoundError(f"{', '.join(map(str, inputs))}: no pairs found{hint}")
    _check_names(found.pairs)
    return found


def _expanded(path: Path) -> list[Path]:
    """Files and folders that match a pattern, sorted; a path that exists stands for itself."""
    if path.exists():
        return [path]
    if not glob.has_magic(str(path)):
        raise FileNotFoundError(f"{path}: no such file or folder")
    matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 - absolute, too
    if not matches:
        raise FileNotFoundError(f"{path}: nothing matches this pattern")
    return matches


def _check_names(pairs: Sequence[PairSource]) -> None:
    first: dict[str, PairSource] = {}
    for pair in pairs:
        other = first.setdefault(pair.name.lower(), pair)
        if other is not pair:
            raise ValueError(
                f"{other.left} and {pair.left} would both be called {pair.name}: predict them "
                "into different folders"
            )


# Two views in two images --------------------------------------------------------------------------


def _separate(groups: Sequence[Sequence[Path]]) -> Found:
    if len(groups) == 2 and all(len(group) == 1 and group[0].is_dir() for group in groups):
        folders = [group[0] for group in groups]
        if not any(_pairs_in(folder).pairs for folder in folders):
            return _matched(*map(_keyed, folders))
    paths = [path for group in groups for path in group]
    if all(path.is_dir() for path in paths):
        single = len(paths) == 1
        prefixes = ["" if single else path.resolve().name for path in paths]
        return _joined(map(_pairs_in, paths, prefixes))
    if len(paths) == 2:
        return Found([PairSource(pair_name(*paths), paths[0], paths[1])], [])
    return _matched(*_named(groups if len(groups) == 2 else _halved(paths)))


def _halved(paths: Sequence[Path]) -> tuple[Sequence[Path], Sequence[Path]]:
    """Left and right images of a list that has first all left, then all right images."""
    if len(paths) % 2:
        count = "one image" if len(paths) == 1 else f"{len(paths)} images"
        raise ValueError(
            f"{count}: give LEFT and RIGHT, or --layout if both views are in one image"
        )
    return paths[: len(paths) // 2], paths[len(paths) // 2 :]


def _named(halves: Iterable[Sequence[Path]]) -> list[dict[str, Path]]:
    """Left and right images by their names, with their folders if names alone are not unique."""
    views = [[path.absolute() for path in half] for half in halves]
    if all(len({path.stem for path in half}) == len(half) for half in views):
        folders = [[path.parent for path in half] for half in views]
    else:
        folders = [
            [Path(os.path.commonpath({p.parent for p in half}))] * len(half) for half in views
        ]
    return [
        _unique(zip(map(_key, half, places), given, strict=True))
        for half, places, given in zip(views, folders, halves, strict=True)
    ]


def _unique(named: Iterable[tuple[str, Path]], but_for: str = "their endings") -> dict[str, Path]:
    """Images by name, of which there must be one each."""
    found: dict[str, Path] = {}
    for name, path in named:
        other = found.setdefault(name, path)
        if other != path:
            raise ValueError(
                f"{other} and {path} differ only in {but_for}: give quoted patterns that match one "
                "of them"
            )
    return found


def _key(path: Path, folder: Path) -> str:
    """Name of an image in a folder, without its suffix."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _keyed(folder: Path) -> dict[str, Path]:
    """The images in a folder and in its folders by name."""
    return _unique((_key(path, folder), path) for path in _images(folder))


def _matched(lefts: dict[str, Path], rights: dict[str, Path]) -> Found:
    """Match images by equal names, or else by names without left and right."""
    if not lefts.keys() & rights.keys():
        lefts, rights = _neutral(lefts), _neutral(rights)
    both = sorted(lefts.keys() & rights.keys())
    pairs = [
        PairSource(name or pair_name(lefts[name], rights[name]), lefts[name], rights[name])
        for name in both
    ]
    alone = [views[name] for views in (lefts, rights) for name in sorted(views) if name not in both]
    return Found(pairs, alone)


def _neutral(views: dict[str, Path]) -> dict[str, Path]:
    names = ((_without_side(name), path) for name, path in views.items())
    return _unique(names, "left and right")


def _without_side(name: str) -> str:
    """A name without words for left and right: `day/left_01` and `day/R01` are both `day/01`."""
    bare = _SIDES.sub("", name)
    return re.sub(r"([_\W])[_.\- ]+", r"\1", bare).strip("_-. /")


def _joined(parts: Iterable[Found]) -> Found:
    found = list(parts)
    pairs = [pair for part in found for pair in part.pairs]
    return Found(pairs, [path for part in found for path in part.alone])


def _pairs_in(folder: Path, prefix: str = "") -> Found:
    """The pairs in a folder and its folders, named by their place in it."""
    for names in _FOLDERS:
        views = [folder / name for name in names]
        if all(view.is_dir() for view in views):
            found = _matched(*map(_keyed, views))
            return Found([_prefixed(pair, prefix) for pair in found.pairs], found.alone)
    beside = _pairs_beside(folder)
    own = Found([_prefixed(pair, prefix) for pair in beside.pairs], beside.alone)
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not _is_aside(path))
    inner = (_pairs_in(path, f"{prefix}/{path.name}".lstrip("/")) for path in folders)
    return _joined([own, *inner])


def _prefixed(pair: PairSource, prefix: str) -> PairSource:
    """Give a pair its place in its name; a pair without a name has that of its folder."""
    name = f"{prefix}/{pair.name}".strip("/") or pair.left.resolve().parent.name
    return PairSource(name, pair.left, pair.right)


def _pairs_beside(folder: Path) -> Found:
    """Pairs whose images lie beside each other; the name is empty if the images have none."""
    images = [p for p in _images(folder, deep=False) if not _NO_VIEW.search(p.stem)]
    sided = _unique((path.stem, path) for path in images if _SIDES.search(path.stem))
    lefts = {stem: path for stem, path in sided.items() if _LEFT.search(stem)}
    rights = {stem: path for stem, path in sided.items() if stem not in lefts}
    left_names, right_names = _neutral(lefts), _neutral(rights)
    both = sorted(left_names.keys() & right_names.keys())
    pairs = [PairSource(name, left_names[name], right_names[name]) for name in both]
    views = {**left_names, **right_names}
    alone = [views[name] for name in sorted(left_names.keys() ^ right_names.keys())]
    there = {path.stem for path in images}
    stems = next((names for names in _STEMS if there >= set(names)), None)
    if not sided and stems is not None:
        views = _unique((path.stem, path) for path in images if path.stem in stems)
        pairs.append(PairSource("", views[stems[0]], views[stems[1]]))
    return Found(pairs, alone)


def _images(folder: Path, *, deep: bool = True) -> list[Path]:
    paths = folder.rglob("*") if deep else folder.iterdir()
    images = (path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in images if not path.name.startswith("."))


def _is_aside(folder: Path) -> bool:
    """Return whether a folder is hidden, or a link to a folder that it lies in."""
    return folder.name.startswith(".") or folder.parent.resolve().is_relative_to(folder.resolve())


# Two views in one image ---------------------------------------------------------------------------


def _stacked(paths: Sequence[Path], layout: Layout) -> Iterator[PairSource]:
    for path in paths:
        if not path.is_dir():
            yield PairSource(path.stem, path, path, layout)
            continue
        prefix = f"{path.resolve().name}/" if len(paths) > 1 else ""
        for file in _images(path):
            yield PairSource(f"{prefix}{_key(file, path)}", file, file, layout)
