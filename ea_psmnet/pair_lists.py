"""Pairs listed in text files, as in the split files of GwcNet, OpenStereo and others; their names.

Text (`.txt`, `.lst`): `LEFT RIGHT DISPARITY` on each line, separated by blanks, commas or tabs.
Further columns, empty lines and lines that start with `#` are ignored. A path with blanks is in
quotation marks, or ends in the suffix of an image or disparity map. Tables (`.csv`, `.tsv`): the
same columns. In both, a first line may name other columns.
"""

from __future__ import annotations

import csv
import errno
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import starmap, zip_longest
from pathlib import Path, PurePath

from ea_psmnet.files import DISPARITY_SUFFIXES, IMAGE_SUFFIXES, printable, readable

COLUMNS = ("left", "right", "disparity", "nonocc", "disparity_right")
"""Names of columns: the images, the left view's ground truth, an image that is not 0 where the
pixel is non-occluded, and the right view's ground truth."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (".txt", ".lst", *_DELIMITERS)
_PATH_SUFFIXES = (*IMAGE_SUFFIXES, *DISPARITY_SUFFIXES)
_PATH = re.compile(
    rf"""[\s,]*(?:"([^"]*)"|'([^']*)'|([^\s,].*?(?:{"|".join(map(re.escape, _PATH_SUFFIXES))})))"""
    r"(?=[\s,]|$)",
    re.IGNORECASE,
)
_VIEWS = frozenset(("im", "img", "image", "view", "cam", "camera", "frame", "stereo", "rgb"))
"""Words that images of any pair have in common."""
_SHOWN = 200
"""Number of characters of a path to show in messages."""


@dataclass(frozen=True)
class ListedPair:
    """One row of a list."""

    place: str
    """The list and the line, for messages."""
    files: dict[str, Path]
    """Paths by column; they need not exist."""
    name: str
    """Name of the pair in the list, which may include folders: `training/000000_10`."""


def is_pair_list(root: str | Path) -> bool:
    """Return whether `root` is a file that may be a list."""
    return Path(root).is_file() and Path(root).suffix.lower() in _SUFFIXES


def read_pair_list(
    path: Path, needed: Sequence[str] = COLUMNS[:2], *, base: str | Path | None = None
) -> list[ListedPair]:
    """Read a list.

    Args:
        path: The list.
        needed: Columns that every row must have.
        base: Folder that the paths are relative to; by default the folder of the list, or the
            working directory if the first image exists only there.

    Raises:
        FileNotFoundError: There is no such list.
        ValueError: It is not text, has no pairs, or a row or the line of columns is wrong.
    """
    rows = [(f"{path}, line {number}", row) for number, row in _rows(path, len(needed))]
    folder = _base(path, rows[0][1].get("left", "") if rows else "") if base is None else Path(base)
    pairs = []
    seen: set[str] = set()
    for place, row in rows:
        if missing := [column for column in needed if not row.get(column)]:
            raise ValueError(f"{place}: no {' and no '.join(missing)}; {_form(path, needed)}")
        files = {column: folder / name for column, name in row.items() if name}
        left, right = (os.path.normpath(files[view].absolute()) for view in COLUMNS[:2])
        if left == right:
            raise ValueError(f"{place}: {shown(left)} is both left and right; give the right image")
        if left in seen:
            raise ValueError(f"{place}: {shown(left)} is listed twice; keep one of the lines")
        seen.add(left)
        pairs.append(ListedPair(place, files, _name(row["left"], row["right"], files)))
    if not pairs:
        raise ValueError(f"{path}: no pairs; {_form(path, needed)}")
    if len({pair.name.lower() for pair in pairs}) == len(pairs):
        return pairs
    names: set[str] = set()
    for index, (pair, (place, row)) in enumerate(zip(pairs, rows, strict=True)):
        name = "/".join(_parts(row["left"]))
        if name.lower() in names:
            raise ValueError(f"{place}: another pair is called {shown(name)}, too; use two lists")
        names.add(name.lower())
        pairs[index] = replace(pair, name=name)
    return pairs


def pair_name(left: Path, right: Path) -> str:
    """Name of a pair: the common part of its images' names, or the name of their folder.

    `left/0006.png` and `right/0006.png` are 0006, `hall_left.png` and `hall_right.png` hall, and
    `hall/im0.png` and `hall/im1.png` hall.
    """
    return _common(left.stem, right.stem) or left.resolve().parent.name or left.stem


def is_file(path: Path) -> bool:
    """Return `path.is_file()`, and False if the name is too long for the file system."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise OSError(f"{path}: cannot be read ({error.strerror})") from error


def shown(path: str | Path) -> str:
    """Shorten a path for a message."""
    name = str(path)
    return printable(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")


def _base(path: Path, first: str) -> Path:
    """Return the folder of the first image: lists often come with code, far from the data."""
    is_here = is_file(Path.cwd() / first) and not is_file(path.parent / first)
    return Path.cwd() if is_here else path.parent


# Names --------------------------------------------------------------------------------------------


def _name(left: str, right: str, files: dict[str, Path]) -> str:
    """What the paths of both images have in common."""
    both = zip_longest(_parts(left), _parts(right), fillvalue="")
    common = "/".join(filter(None, starmap(_common, both)))
    return common or pair_name(files["left"], files["right"])


def _parts(written: str) -> list[str]:
    """Folders and stem of a path, without those that lead out of a folder."""
    path = PurePath(written)
    parts = (*path.parent.relative_to(path.anchor).parts, path.stem)
    return [part for part in parts if part not in ("", "..")]


def _common(left: str, right: str) -> str:
    """Return the words that two names share in equal places, or nothing if all pairs share them."""
    if left == right:
        return "" if left.lower() in _VIEWS else left
    parts = [re.findall(r"\d+|[^\W\d_]+|[\W_]+", name) for name in (left, right)]
    alike = len(parts[0]) == len(parts[1])
    shared = [a for a, b in zip(*parts, strict=True) if a == b] if alike else []
    name = re.sub(r"([\W_])[\W_]+", r"\1", "".join(shared)).strip("_-. ")
    return "" if name.lower() in _VIEWS else name


def _form(path: Path, needed: Sequence[str]) -> str:
    """Describe the lines of a list with these columns, for messages."""
    between = _DELIMITERS.get(path.suffix.lower(), " ").replace("\t", "<TAB>")
    return (
        f"expected '{between.join(needed).upper()}' on each line, or a first line that names the "
        f"columns: {', '.join(COLUMNS)}"
    )


# Rows ---------------------------------------------------------------------------------------------

_Row = dict[str, str]
"""Paths by column; empty if a table has none."""


def _rows(path: Path, needed: int) -> Iterator[tuple[int, _Row]]:
    """Yield the rows with the numbers of their lines."""
    try:
        with readable(path):
            text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a list of pairs, not UTF-8 text ({error})") from error
    lines = ["" if line.lstrip().startswith("#") else line for line in text.splitlines()]
    delimiter = _DELIMITERS.get(path.suffix.lower())
    columns: Sequence[str] = COLUMNS[:3]
    for index, (number, cells) in enumerate(
        _table(path, lines, delimiter) if delimiter else _lines(lines, needed)
    ):
        if index == 0 and _names_columns(cells, delimiter is not None):
            columns = [cell.lower() for cell in cells]
            if len(set(columns)) < len(columns):
                raise ValueError(f"{path}, line {number}: a column is named twice")
            if unknown := [cell for cell in cells if cell.lower() not in COLUMNS]:
                raise ValueError(
                    f"{path}, line {number}: unknown column {shown(unknown[0])!r}; the first line "
                    f"may name the columns {', '.join(COLUMNS)}"
                )
            continue
        yield number, dict(zip(columns, cells, strict=False))


def _names_columns(cells: Sequence[str], is_table: bool) -> bool:
    """Return whether the first row names the columns."""
    if is_table:
        return not any(cell.lower().endswith(_PATH_SUFFIXES) for cell in cells)
    return all(cell.lower() in COLUMNS for cell in cells)


def _table(path: Path, lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    table = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    try:
        for cells in table:
            if any(map(str.strip, cells)):
                yield table.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise ValueError(f"{path}, line {table.line_num}: not a row of a table ({error})") from None


def _lines(lines: Sequence[str], needed: int) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _cells(line, needed)


def _cells(line: str, needed: int) -> list[str]:
    """Return the paths of a line, split after known suffixes, or else at blanks and commas."""
    found: list[str] = []
    place = 0
    while match := _PATH.match(line, place):
        found.append(next(filter(None, match.groups()), ""))
        place = match.end()
    if len(found) < needed:
        return re.split(r"[\s,]+", line.strip())
    return found + re.split(r"[\s,]+", line[place:].strip("\t ,"))[:1]
