"""Pairs listed in a text file, as in the split files of GwcNet, OpenStereo and others."""

from __future__ import annotations

import csv
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from ea_psmnet.datasets.decoders import is_set
from ea_psmnet.datasets.frames import Frame, FrameDataset, Mask, View
from ea_psmnet.files import DISPARITY_SUFFIXES, IMAGE_SUFFIXES, printable, readable

_COLUMNS = ("left", "right", "disparity", "nonocc", "disparity_right")
_SUFFIXES = (".txt", ".lst", ".csv")
_PATH_SUFFIXES = (*IMAGE_SUFFIXES, *DISPARITY_SUFFIXES)
_SHOWN = 200
"""Number of characters of a name to show in messages."""
_FORM = "expected 'LEFT RIGHT DISPARITY' on each line, or a .csv whose first line names the columns"

_Row = tuple[int, dict[str, str]]
"""Line number, and paths by column."""


class PairList(FrameDataset):
    """Pairs listed in a file, in its order.

    Text: `left right disparity` on each line, separated by spaces, as in the lists of GwcNet and
    OpenStereo. Further columns, empty lines and lines that start with `#` are ignored. Paths may
    contain spaces: a path ends at the suffix of an image or disparity map. CSV: the first line
    names the columns: left, right, disparity, and optionally nonocc (an image that is not 0 where
    the pixel is non-occluded) and disparity_right.

    ```
    training/image_2/000000_10.png training/image_3/000000_10.png training/disp_occ_0/000000_10.png
    ```

    Disparities are `.pfm`, `.png` (KITTI) or `.npy` files for `ea_psmnet.files.read_disparity`.
    Lists of test images without ground truth are rejected, as are pairs of an image with itself.

    Data: your own, or lists published with the code of other projects; licence: that of the pairs.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        base: str | Path | None = None,
        require_truth: bool = True,
    ) -> None:
        """Read the list; the pairs are read on access.

        Args:
            root: The list file.
            base: Folder that the paths are relative to; by default the folder of the list, or the
                working directory if the first image exists only there.
            require_truth: Whether a pair without ground truth is an error; otherwise it has no
                valid pixels.
        """
        path = Path(root)
        needed = _COLUMNS[: 3 if require_truth else 2]
        rows = list(_rows(path, len(needed)))
        folder = _base(path, rows) if base is None else Path(base)
        frames = tuple(_frames(path, folder, rows, needed))
        if not frames:
            raise ValueError(f"{path}: no pairs; {_FORM}")
        super().__init__(frames)


def is_pair_list(root: str | Path) -> bool:
    """Return whether `root` is a file that may be a list."""
    return Path(root).is_file() and Path(root).suffix.lower() in _SUFFIXES


def _base(path: Path, rows: list[_Row]) -> Path:
    """Return the folder of the first image: lists often come with code, far from the data."""
    here, first = Path.cwd(), rows[0][1].get("left", "") if rows else ""
    is_here = _is_file(here / first) and not _is_file(path.parent / first)
    return here if is_here else path.parent


def _is_file(path: Path) -> bool:
    """Return `path.is_file()`, and False if the name is too long for the file system."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise OSError(f"{path}: cannot be read ({error.strerror})") from error


def _frames(path: Path, folder: Path, rows: list[_Row], needed: tuple[str, ...]) -> Iterator[Frame]:
    names: set[str] = set()
    for number, row in rows:
        place = f"{path}, line {number}"
        if missing := [column for column in needed if not row.get(column)]:
            raise ValueError(f"{place}: no {' and no '.join(missing)}; {_FORM}")
        files = {column: folder / name for column, name in row.items() if name}
        for column, file in files.items():
            if not _is_file(file):
                raise FileNotFoundError(
                    f"{place}: {folder / _shown(row[column])} does not exist; run in the folder "
                    "that the paths are relative to (in Python, pass base=)"
                )
        name = Path(row["left"]).with_suffix("").as_posix().lstrip("/")
        if name in names:
            raise ValueError(f"{place}: {row['left']} is listed twice; keep one of the lines")
        if row["left"] == row["right"]:
            raise ValueError(f"{place}: {row['left']} is both left and right; give the right image")
        names.add(name)
        masks = {"nonocc": Mask(files["nonocc"], is_set)} if "nonocc" in files else {}
        yield Frame(
            View(files["left"], files.get("disparity"), masks=masks),
            View(files["right"], files.get("disparity_right")),
            name,
        )


def _shown(name: str) -> str:
    return printable(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")


def _rows(path: Path, needed: int) -> Iterator[_Row]:
    try:
        with readable(path):
            text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a list of pairs, not UTF-8 text ({error})") from error
    if path.suffix.lower() == ".csv":
        yield from _csv_rows(path, text)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, dict(zip(_COLUMNS[:3], _paths(line, needed), strict=False))


_PATH = re.compile(rf"\s*(\S.*?(?:{'|'.join(map(re.escape, _PATH_SUFFIXES))}))(?=\s|$)", re.I)


def _paths(line: str, needed: int) -> list[str]:
    """Return the first paths of a line, split after known suffixes, or else at spaces."""
    found: list[str] = []
    place = 0
    while len(found) < 3 and (match := _PATH.match(line, place)):
        found.append(match[1])
        place = match.end()
    if len(found) < needed:
        return line.split()
    return found if len(found) != 2 else found + line[place:].split()[:1]


def _csv_rows(path: Path, text: str) -> Iterator[_Row]:
    table = csv.DictReader(text.splitlines(), skipinitialspace=True)
    try:
        unknown = [name for name in table.fieldnames or () if name.strip() not in _COLUMNS]
        if unknown:
            raise ValueError(
                f"{path}, line 1: unknown column {_shown(unknown[0])!r}; the first line names the "
                f"columns: {', '.join(_COLUMNS)}"
            )
        for row in table:
            cells = ((name, value) for name, value in row.items() if name is not None)
            yield table.line_num, {name.strip(): (value or "").strip() for name, value in cells}
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {table.line_num + 1}: not a row of a table ({error})"
        ) from None
