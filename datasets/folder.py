"""A folder per pair: the simplest layout, for your own data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from ea_psmnet.datasets.decoders import is_set
from ea_psmnet.datasets.frames import Frame, FrameDataset, Mask, View
from ea_psmnet.datasets.names import Split
from ea_psmnet.datasets.templates import MissingFilesError, every_part
from ea_psmnet.files import DISPARITY_SUFFIXES, IMAGE_SUFFIXES

_LAYOUT = "expected ROOT/NAME/{left.png, right.png, disp.npy|disp.pfm|disp.png}, or ROOT one such"


class PairFolder(FrameDataset):
    """Pairs with ground truth, one per folder, sorted by the folders' names.

    ```
    ROOT/NAME/left.png     or .jpg, ..., any of `ea_psmnet.files.IMAGE_SUFFIXES`
    ROOT/NAME/right.png    the same
    ROOT/NAME/disp.npy     or .pfm, .png, as `ea_psmnet.files.read_disparity` reads them
    ROOT/NAME/nonocc.png   optional: not 0 where the left pixel is non-occluded
    ROOT/NAME/disp_right.npy  optional: ground truth of the right view, positive
    ```

    `ROOT` may itself be such a pair, or hold folders `train` and `test` of pairs, as `data render`
    writes them. Other files, and folders without a left or right image, are ignored; a folder with
    either must have the first three, each in one format only. Suffixes may be in upper case.

    Data: your own, or pairs of any dataset in this layout; licence: that of the source.
    """

    def __init__(
        self, root: str | Path, *, split: Split = "train", require_truth: bool = True
    ) -> None:
        """Find the pairs; they are read on access.

        Args:
            root: The folder of the pairs, or of one pair.
            split: Folder to read if `root` holds `train` and `test`; otherwise ignored.
            require_truth: Whether a pair without ground truth is an error; otherwise it has no
                valid pixels.
        """
        root = Path(root)
        root = root / split if has_splits(root) else root
        folders = _pair_folders(root)
        if not folders:
            raise FileNotFoundError(f"{root}: no pairs; {_LAYOUT}")
        super().__init__(every_part(_frames(folder, require_truth) for folder in folders))


def is_pair_folder(root: str | Path) -> bool:
    """Return whether `root` is or holds a pair in the layout that `PairFolder` reads."""
    return bool(_pair_folders(Path(root))) or has_splits(Path(root))


def has_splits(root: Path) -> bool:
    """Whether `root` holds no pair itself, but a folder `train` or `test` of complete pairs."""
    if _pair_folders(root):
        return False
    pairs = (folder for split in get_args(Split) for folder in _pair_folders(root / split))
    return any(_candidates(folder, "disp", DISPARITY_SUFFIXES) for folder in pairs)


def _pair_folders(root: Path) -> list[Path]:
    if _holds_pair(root):
        return [root]
    folders = root.iterdir() if root.is_dir() else ()
    return sorted(filter(_holds_pair, folders), key=lambda folder: folder.name)


def _holds_pair(folder: Path) -> bool:
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):  # such as lost+found
        return False
    return any(_candidates(folder, stem, IMAGE_SUFFIXES) for stem in ("left", "right"))


def _frames(folder: Path, require_truth: bool) -> Iterator[Frame]:
    """Yield the one frame of a folder."""
    truth = _only if require_truth else _at_most_one
    visible = _at_most_one(folder, "nonocc", (".png",))
    yield Frame(
        View(
            _only(folder, "left", IMAGE_SUFFIXES),
            truth(folder, "disp", DISPARITY_SUFFIXES),
            masks={} if visible is None else {"nonocc": Mask(visible, is_set)},
        ),
        View(
            _only(folder, "right", IMAGE_SUFFIXES),
            _at_most_one(folder, "disp_right", DISPARITY_SUFFIXES),
        ),
        folder.name if folder.name not in ("", "..") else folder.resolve().name,
        layout=_LAYOUT,
    )


def _only(folder: Path, stem: str, suffixes: tuple[str, ...]) -> Path:
    found = _at_most_one(folder, stem, suffixes)
    if found is None:
        what = "no ground truth" if stem == "disp" else f"no {stem} image"
        names = ", ".join(f"{stem}{suffix}" for suffix in suffixes)
        raise MissingFilesError([(folder, f"{what} (one of {names})")], 1, _LAYOUT)
    return found


def _at_most_one(folder: Path, stem: str, suffixes: tuple[str, ...]) -> Path | None:
    found = _candidates(folder, stem, suffixes)
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ValueError(f"{folder}: both {names}; keep only one of them")
    return next(iter(found), None)


def _candidates(folder: Path, stem: str, suffixes: tuple[str, ...]) -> list[Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    named = (path for path in files if path.stem == stem and path.suffix.lower() in suffixes)
    return sorted(filter(Path.is_file, named), key=lambda path: suffixes.index(path.suffix.lower()))
