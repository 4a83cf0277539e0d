"""Files of a folder tree, found by a path template and matched by name, never by order."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.datasets.frames import Frame, View

Key = tuple[str, ...]
"""Values of a template's fields in a path, such as `("A/0000", "0006")`."""
_Row = TypeVar("_Row")
_MISSING = (
    "missing, though other files of the frame are there; unpack the archive again or remove the "
    "frame"
)


class MissingFilesError(FileNotFoundError):
    """Files of frames are missing. The message names the first; `missing` lists all of them."""

    def __init__(self, missing: Sequence[tuple[Path, str]], frames: int, layout: str) -> None:
        """Describe missing files by path and description, out of all files of some frames."""
        self.missing, self.frames, self.layout = tuple(missing), frames, layout
        path, what = missing[0]
        more = f"; {len(missing) - 1} more missing" if len(missing) > 1 else ""
        super().__init__(f"{path}: {what}{more}; {layout}")


@dataclass(frozen=True)
class Files:
    """Files of one kind, one per frame.

    Example:
        >>> Files(Path("disparity/TRAIN"), "{scene}/left/{frame}", (".pfm",)).path(("A/0000", "6"))
        PosixPath('disparity/TRAIN/A/0000/left/6.pfm')
    """

    folder: Path
    """Folder that holds the files."""
    template: str
    """Path below `folder` without the suffix. `{frame}` matches a name or part of one, any other
    field matches across folders."""
    suffixes: tuple[str, ...] = (".png",)
    """Allowed suffixes, in order of preference if a file exists in two formats."""
    within: tuple[str, ...] = ()
    """Names of the folders below `folder` to search; empty for all."""

    def find(self) -> dict[Key, Path]:
        """Return all files by key; empty if the folder does not exist.

        Keys come from the path below `folder`, as the path above may itself contain `left`. Hidden
        files are ignored, such as `._0006.png`, which some systems create.
        """
        found: dict[Key, Path] = {}
        for key, path in self._matches():
            if key not in found or self._rank(path) < self._rank(found[key]):
                found[key] = path
        return found

    def exist(self) -> bool:
        """Return whether there is at least one file, without searching for all."""
        return any(True for _ in self._matches())

    def path(self, key: Key) -> Path:
        """Return the path at which a frame's file is expected."""
        return self.folder / f"{self._filled(key)}{self.suffixes[0]}"

    def _filled(self, key: Key) -> str:
        fields = [name for _, name, _, _ in Formatter().parse(self.template) if name]
        return self.template.format(**dict(zip(fields, key, strict=True)))

    def _pattern(self) -> re.Pattern[str]:
        pieces = []
        for literal, field, _, _ in Formatter().parse(self.template):
            pieces.append(re.escape(literal))
            if field:
                pieces.append("([^/]+)" if field == "frame" else "(.+)")
        return re.compile("".join(pieces))

    def _matches(self) -> Iterator[tuple[Key, Path]]:
        pattern = self._pattern()
        for top in [self.folder / name for name in self.within] or [self.folder]:
            # Links are followed: datasets are often assembled from them.
            for folder, below, names in os.walk(top, onerror=_unless_absent, followlinks=True):
                below[:] = [n for n in below if n != "lost+found" and not _leads_back(folder, n)]
                above = Path(folder).relative_to(self.folder).parts
                for name in names:
                    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a Path each is slow
                    if suffix.lower() not in self.suffixes or name.startswith("."):
                        continue
                    match = pattern.fullmatch("/".join((*above, stem)))
                    if match is not None:
                        yield match.groups(), Path(folder, name)

    def _rank(self, path: Path) -> int:
        return self.suffixes.index(path.suffix.lower())


def _unless_absent(error: OSError) -> None:
    """Raise an OSError if a folder exists but cannot be read; its files are not missing."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise OSError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _leads_back(folder: str, name: str) -> bool:
    """Return whether a folder is a link to one of its parents; following it would never end."""
    path = Path(folder, name)
    return path.is_symlink() and any(path.samefile(above) for above in path.parents)


def matched(
    reference: Files, partner: Files, truth: Files, layout: str
) -> Iterator[tuple[Key, Path, Path, Path]]:
    """Match the files of frames by key; frames are sorted by key on every file system.

    A frame is a key for which at least one image exists.

    Args:
        reference: Images that the ground truth belongs to.
        partner: Images of the other view, with the same keys.
        truth: Ground truth with the same keys; files without images are ignored.
        layout: Description of the folder layout, for error messages.

    Yields:
        The key and the three files of a frame.

    Raises:
        FileNotFoundError: There are no images, or files of frames are missing.
    """
    kinds = (reference, partner, truth)
    for files in kinds:
        if not files.folder.is_dir():
            raise FileNotFoundError(f"{files.folder}: no such folder; {layout}")
    found = [files.find() for files in kinds]
    keys = sorted(found[0].keys() | found[1].keys())
    if not keys:
        name = f"{reference.template}{' or '.join(reference.suffixes)}"
        raise FileNotFoundError(f"{reference.folder}: no images called {name}; {layout}")
    missing = [
        (files.path(key), _MISSING)
        for key in keys
        for files, there in zip(kinds, found, strict=True)
        if key not in there
    ]
    if missing:
        raise MissingFilesError(missing, len(keys), layout)
    for key in keys:
        yield key, found[0][key], found[1][key], found[2][key]


def every_part(parts: Iterable[Iterable[_Row]]) -> Iterator[_Row]:
    """Chain the frames of all parts, and report the missing files of all parts at once.

    Raises:
        MissingFilesError: Files are missing; raised after all parts have been searched.
    """
    lacking: list[MissingFilesError] = []
    whole = 0
    for part in parts:
        try:
            for row in part:
                yield row
                whole += 1
        except MissingFilesError as error:
            lacking.append(error)
    if lacking:
        missing = [one for error in lacking for one in error.missing]
        frames = whole + sum(error.frames for error in lacking)
        raise MissingFilesError(missing, frames, lacking[0].layout)


def home(root: Path, names: tuple[str, ...], *markers: str) -> Path:
    """Find the folder of a dataset: the first of `root` and `root/NAME` that contains a marker.

    Args:
        root: The folder given by the user.
        names: Usual names of the dataset's folder.
        *markers: Relative paths, at least one of which exists in the dataset's folder.

    Returns:
        The folder; `root` if there is none, so that messages name the folder given by the user.
    """
    for folder in (root, *(root / name for name in names)):
        if any((folder / marker).exists() for marker in markers):
            return folder
    return root


Views = tuple[Files, Files]
"""Files of the left and the right view."""


def both_views(
    folder: Path,
    template: str,
    suffix: str = ".png",
    names: tuple[str, str] = ("left", "right"),
    within: Iterable[str] = (),
) -> Views:
    """Return the files of both views; `VIEW` in the template is replaced by each view's name.

    Only the folders `within` are searched, if there are any.
    """
    left, right = (
        Files(folder, template.replace("VIEW", view), (suffix,), tuple(within)) for view in names
    )
    return left, right


def frames_of_parts(
    base: Path,
    parts: Iterable[str],
    templates: tuple[str, str],
    decode: Callable[[Path], NDArray[np.float32]],
    layout: str,
) -> Iterator[Frame]:
    """Find the frames of all existing parts: folders in `base` of JPEG images and PNG ground truth.

    The path templates of images and ground truth contain `VIEW`; see `frames_of_views`.

    Raises:
        FileNotFoundError: No part exists, or files of frames are missing.
    """
    there = [part for part in parts if (base / part).is_dir()]
    if not there:
        raise FileNotFoundError(f"{base}: no {' or '.join(parts)} folder; {layout}")
    return every_part(
        frames_of_views(
            both_views(base / part, templates[0], ".jpg"),
            both_views(base / part, templates[1]),
            decode,
            layout,
            part,
        )
        for part in there
    )


def frames_of_views(
    images: Views,
    truths: Views,
    decode: Callable[[Path], NDArray[np.float32]],
    layout: str,
    prefix: str = "",
) -> Iterator[Frame]:
    """Match the files of frames, sorted by key; the right view's ground truth is optional.

    Args:
        images: Images of both views.
        truths: Ground truth of both views.
        decode: Reads the ground truth, as `View.decode`.
        layout: Description of the folder layout, for error messages.
        prefix: Prefix of the frames' names. The part of a frame is the first piece of its name.
    """
    right_truth = truths[1].find()
    for key, left, right, truth in matched(*images, truths[0], layout):
        name = "/".join((*filter(None, (prefix,)), *key))
        partner = View(right, right_truth.get(key), decode)
        yield Frame(View(left, truth, decode), partner, name, name.split("/")[0], layout=layout)
