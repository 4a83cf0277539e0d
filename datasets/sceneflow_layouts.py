"""The trees in which people keep Scene Flow, each told as the parts that lie there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from datasets.names import Split
from datasets.templates import Files

__all__ = ["LAYOUTS", "Part", "find_parts", "unknown_images"]

LAYOUTS = {
    "A": "understood as Scene Flow as released: {FlyingThings3D,Monkaa,Driving}/"
    "{frames_cleanpass,frames_finalpass,disparity}/..., FlyingThings3D with TRAIN and TEST below",
    "B": "understood as PSMNet's layout: {monkaa_,driving_,}frames_cleanpass beside "
    "{monkaa_,driving_}disparity and frames_disparity, frames_finalpass likewise",
    "C": "understood as the merged layout: {frames_cleanpass,frames_finalpass,disparity}/"
    "{TRAIN,TEST} with the scenes of all parts in TRAIN",
    "D": "understood as FlyingThings3D_subset: {train,val}/"
    "{image_clean,image_final,disparity,disparity_occlusions}/{left,right}/0000000.*",
}
"""How each layout is told in messages."""

_FAMILIES = ("FlyingThings3D", "Monkaa", "Driving")
_PREFIXES = {
    "FlyingThings3D": ("flyingthings3d", "flyingthings", "flying"),
    "Monkaa": ("monkaa",),
    "Driving": ("driving",),
}
"""What people begin the names of a family's folders with, in layout B, before `_` or `__`."""
_PASSES = ("clean", "final")
_SUBSET_FOLDERS = {"train": "train", "test": "val"}
# As unpacked: the archive of WebP images names its folder otherwise than that of PNG images.
_IMAGES = ("frames_{}pass", "frames_{}pass_webp", "RGB_{}pass")
_TRUTH = ("disparity", "frames_disparity")


@dataclass(frozen=True)
class Part:
    """One split of FlyingThings3D, or all of Monkaa or Driving."""

    name: str
    """What its frames' names begin with: `FlyingThings3D/TRAIN`, `Monkaa`."""
    layout: str
    """A key of `LAYOUTS`."""
    images: Mapping[str, Path]
    """Folder of each render pass's images, whether it exists or not."""
    truth: Path
    """Folder of the disparities."""
    scenes: tuple[str, ...] = ()
    """Folders in these that belong to the part; all if none is named."""
    occlusions: Path | None = None
    """Folder of occlusion masks, if the layout has one."""

    @property
    def family(self) -> str:
        """Parts of one family hold the same frames: reading one of them will do."""
        return self.name.split("/")[0].removesuffix("_subset")

    def exists(self) -> bool:
        """Whether one of its folders is there."""
        return any(folder.is_dir() for folder in (self.truth, *self.images.values()))

    def frames_of(self, folder: Path, view: str, suffixes: tuple[str, ...]) -> Files:
        """Files of one view in one of the part's folders."""
        template = f"{view}/{{frame}}" if self.layout == "D" else f"{{scene}}/{view}/{{frame}}"
        return Files(folder, template, suffixes, self.scenes)


def find_parts(root: Path, split: Split) -> list[Part]:
    """Parts of the split that `root` holds, or the `SceneFlow` folder in it.

    Where frames are there in two layouts, the one that comes first in `LAYOUTS` is read.
    """
    for home in _homes(root):
        parts: dict[str, Part] = {}
        for part in _every_part(home, split):
            parts.setdefault(part.family, part)
        if parts:
            return [parts[family] for family in _FAMILIES if family in parts]
    return []


def unknown_images(root: Path) -> list[Path]:
    """Folders beside the parts that are called as one of images, and are of no part known."""
    unknown = []
    for home in _homes(root):
        parts = [part for split in get_args(Split) for part in _every_part(home, split)]
        known = {path for part in parts for path in part.images.values() if part.exists()}
        known |= {path.parent for path in known}
        same = {_plain(path) for path in known}
        named = [path for path in _folders(home) if _IMAGES_NAME.search(path.name)]
        unknown += [path for path in named if parts and _plain(path) not in same]
    return unknown


_IMAGES_NAME = re.compile(r"(frames|RGB)_(clean|final)pass", re.IGNORECASE)


def _plain(path: Path) -> Path:
    """The path as it were of PNG images: the same frames may lie there in two formats."""
    return path.with_name(path.name.removesuffix("_webp").replace("RGB_", "frames_"))


def _homes(root: Path) -> list[Path]:
    nested = [folder for folder in _folders(root) if folder.name.lower() == "sceneflow"]
    return [*nested, root]


def _every_part(home: Path, split: Split) -> Iterator[Part]:
    yield from _released(home, split)
    yield from _side_by_side(home, split)
    yield from _subset(home, split)


def _released(home: Path, split: Split) -> Iterator[Part]:
    """Layout A: a folder a part."""
    for folder in _folders(home):
        for family, below in _split_folders(split).items():
            if folder.name.lower() == family.lower() and not _is_subset(folder):
                yield _part(family, "A", folder, below)


def _side_by_side(home: Path, split: Split) -> Iterator[Part]:
    """Layouts B and C: the parts' folders side by side, or all parts in the same folders."""
    for family, below in _split_folders(split).items():
        for prefix in (f"{name}{gap}" for name in _PREFIXES[family] for gap in ("_", "__")):
            if any(folder.is_dir() for folder in _image_folders(home, prefix).values()):
                yield _part(family, "B", home, below, prefix)
    folders = [folder for folder in _image_folders(home).values() if folder.is_dir()]
    if any((folder / name).is_dir() for folder in folders for name in ("TRAIN", "TEST")):
        yield from _pooled(home, folders, split)
    elif split == "train":  # the folder of one part of the release
        for family in ("Monkaa", "Driving"):
            if scenes := _scenes(folders, family):
                yield _part(family, "A", home, scenes=scenes)


def _pooled(home: Path, folders: list[Path], split: Split) -> Iterator[Part]:
    """TRAIN and TEST with FlyingThings3D inside (B), and in TRAIN maybe the other parts (C)."""
    train = [folder / "TRAIN" for folder in folders]
    merged = bool(_scenes(train, "Monkaa") or _scenes(train, "Driving"))
    layout, below = "C" if merged else "B", split.upper()
    for family in _split_folders(split):
        scenes = _scenes([folder / below for folder in folders], family)
        if scenes or (family == "FlyingThings3D" and not merged):
            yield _part(family, layout, home, below, scenes=scenes)


def _subset(home: Path, split: Split) -> Iterator[Part]:
    """Layout D: what the authors of FlowNet 2.0 selected from FlyingThings3D."""
    for folder in filter(_is_subset, (*_folders(home), home)):
        base = folder / _SUBSET_FOLDERS[split]
        yield Part(
            f"FlyingThings3D_subset/{base.name}",
            "D",
            {render_pass: base / f"image_{render_pass}" for render_pass in _PASSES},
            base / "disparity",
            occlusions=base / "disparity_occlusions",
        )


def _split_folders(split: Split) -> dict[str, str]:
    """Families of a split, and the folder of theirs that holds it."""
    if split == "test":
        return {"FlyingThings3D": "TEST"}
    return {"FlyingThings3D": "TRAIN", "Monkaa": "", "Driving": ""}


def _part(
    family: str,
    layout: str,
    home: Path,
    below: str = "",
    prefix: str = "",
    scenes: tuple[str, ...] = (),
) -> Part:
    split = below if family == "FlyingThings3D" else ""
    images = {key: folder / below for key, folder in _image_folders(home, prefix).items()}
    truth = _first(home, prefix, _TRUTH) / below
    return Part("/".join(filter(None, (family, split))), layout, images, truth, scenes)


def _image_folders(home: Path, prefix: str = "") -> dict[str, Path]:
    return {
        render_pass: _first(home, prefix, [name.format(render_pass) for name in _IMAGES])
        for render_pass in _PASSES
    }


def _first(home: Path, prefix: str, names: Sequence[str]) -> Path:
    """The first folder that exists, or the first of all for a message to name."""
    paths = [home / f"{prefix}{name}" for name in names]
    return next((path for path in paths if path.is_dir()), paths[0])


def _scenes(folders: Sequence[Path], family: str) -> tuple[str, ...]:
    """Names in the folders that are of a family, sorted."""
    names = {path.name for folder in folders for path in _folders(folder)}
    return tuple(sorted(name for name in names if _family(name) == family))


def _family(scene: str) -> str:
    """Which part a scene's folder is of: Monkaa's names follow no rule."""
    if scene in ("A", "B", "C"):
        return "FlyingThings3D"
    return "Driving" if re.fullmatch(r"\d+mm_focallength", scene) else "Monkaa"


def _is_subset(folder: Path) -> bool:
    return any(
        (folder / below / f"image_{render_pass}").is_dir()
        for below in _SUBSET_FOLDERS.values()
        for render_pass in _PASSES
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
