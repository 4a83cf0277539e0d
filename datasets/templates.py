"""Files of a tree, found by a template of their paths and matched by name: never by order."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import TypeVar

__all__ = ["Files", "Key", "MissingFilesError", "every_part", "home", "matched"]

Key = tuple[str, ...]
"""What a template's fields stand for in a path: `("A/0000", "0006")`."""
_Row = TypeVar("_Row")
_MISSING = (
    "missing, though other files of the frame are there; unpack the archive again or remove the "
    "frame"
)


class MissingFilesError(FileNotFoundError):
    """Frames lack some of their files. The message tells the first; `missing` has them all."""

    def __init__(self, missing: Sequence[tuple[Path, str]], frames: int, layout: str) -> None:
        """Tell of files that are not there.

        Args:
            missing: Where they should be, and what to say of each.
            frames: How many frames there are, these included.
            layout: How the tree was understood.
        """
        self.missing, self.frames, self.layout = tuple(missing), frames, layout
        path, what = missing[0]
        more = f"; {len(missing) - 1} more files are missing" if len(missing) > 1 else ""
        super().__init__(f"{path}: {what}{more}; {layout}")


@dataclass(frozen=True)
class Files:
    """Files of one kind, one a frame.

    Example:
        >>> Files(Path("disparity/TRAIN"), "{scene}/left/{frame}", (".pfm",)).path(("A/0000", "6"))
        PosixPath('disparity/TRAIN/A/0000/left/6.pfm')
    """

    folder: Path
    """Where they lie."""
    template: str
    """Path below `folder` without the suffix. `{frame}` stands for one name or a piece of it, any
    other field for one or more folders and the like."""
    suffixes: tuple[str, ...] = (".png",)
    """In order of preference, should a file be there in two formats."""
    within: tuple[str, ...] = ()
    """Names of the only folders to look into, below `folder`; all if none is given."""

    def find(self) -> dict[Key, Path]:
        """All files there are, by key. A folder that does not exist has none.

        Keys come from the path below `folder`: what lies above may itself contain `left`. Hidden
        files (`._0006.png`, which some systems leave) are no frames.
        """
        found: dict[Key, Path] = {}
        for key, path in self._matches():
            if key not in found or self._rank(path) < self._rank(found[key]):
                found[key] = path
        return found

    def exist(self) -> bool:
        """Whether there is one at least, without looking for all."""
        return any(True for _ in self._matches())

    def path(self, key: Key) -> Path:
        """Where the file of a frame lies or should."""
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
            # Links are followed: data sets are often put together from them.
            for folder, below, names in os.walk(top, onerror=_unless_absent, followlinks=True):
                below[:] = [name for name in below if not _leads_back(folder, name)]
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
    """Raise what keeps a folder from being read: its files are not missing."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise OSError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _leads_back(folder: str, name: str) -> bool:
    """Whether a folder is a link to one of those above: following it would never end."""
    path = Path(folder, name)
    return path.is_symlink() and any(path.samefile(above) for above in path.parents)


def matched(
    reference: Files, partner: Files, truth: Files, layout: str
) -> Iterator[tuple[Key, Path, Path, Path]]:
    """Frames of which at least one image is there, sorted by key: alike on every file system.

    Args:
        reference: Images that the truth belongs to.
        partner: The other view's images, with the same keys.
        truth: Files with the same keys; those without images are no frames.
        layout: How the tree was understood, for messages.

    Yields:
        A frame's key and its three files.

    Raises:
        FileNotFoundError: there are no images at all, or files of frames are missing.
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
    """Frames of all parts; where files are missing, those of all parts are told at once.

    Raises:
        MissingFilesError: after all parts were looked at.
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
    """The folder of a data set: the first of `root` and `root/NAME` that holds a marker.

    Args:
        root: What the user named.
        names: What the folder of the data set is usually called.
        *markers: Paths, one of which exists inside it.

    Returns:
        `root` itself if none does: messages should name what the user named.
    """
    for folder in (root, *(root / name for name in names)):
        if any((folder / marker).exists() for marker in markers):
            return folder
    return root
