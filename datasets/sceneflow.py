"""Scene Flow (FlyingThings3D, Monkaa, Driving; Mayer et al., CVPR 2016) in its common layouts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ea_psmnet.datasets.decoders import is_unset, negated_pfm
from ea_psmnet.datasets.frames import Frame, FrameDataset, Mask, View
from ea_psmnet.datasets.names import RENDERINGS, Rendering, RenderPass, Split, render_passes
from ea_psmnet.datasets.templates import Files, Key, every_part, matched
from ea_psmnet.files import readable
from ea_psmnet.tables import check_choice

Side = Literal["left", "right"]

PUBLISHED_COUNTS = {
    "FlyingThings3D/TRAIN/A": 7460,
    "FlyingThings3D/TRAIN/B": 7460,
    "FlyingThings3D/TRAIN/C": 7470,
    "Monkaa": 8664,
    "Driving": 4400,
    "FlyingThings3D/TEST": 4370,
}
"""Number of frames of a complete download in each part; 35,454 of them are for training."""

# Not all image suffixes: the release uses these two only, and a preview in another format beside a
# frame must not be taken for the frame.
_IMAGE_SUFFIXES = (".png", ".webp")

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
"""Description of each layout, for error messages."""

_FAMILIES = ("FlyingThings3D", "Monkaa", "Driving")
_PREFIXES = {
    "FlyingThings3D": ("flyingthings3d", "flyingthings", "flying"),
    "Monkaa": ("monkaa",),
    "Driving": ("driving",),
}
"""Prefixes of a family's folders in layout B, before `_` or `__`."""
_SUBSET_FOLDERS = {"train": "train", "test": "val"}
# The archives of WebP and PNG images use different folder names.
_IMAGES = ("frames_{}pass", "frames_{}pass_webp", "RGB_{}pass")
_TRUTH = ("disparity", "frames_disparity")


@dataclass(frozen=True)
class Part:
    """One split of FlyingThings3D, or all of Monkaa or Driving."""

    name: str
    """Prefix of its frames' names, such as `FlyingThings3D/TRAIN` or `Monkaa`."""
    layout: str
    """A key of `LAYOUTS`."""
    images: Mapping[str, Path]
    """Folder of the images of each render pass, whether it exists or not."""
    truth: Path
    """Folder of the disparity maps."""
    scenes: tuple[str, ...] = ()
    """Names of the subfolders that belong to the part; empty for all."""
    occlusions: Path | None = None
    """Folder of the occlusion masks, if the layout has one."""

    @property
    def family(self) -> str:
        """Family of the part. Parts of a family hold the same frames, so only one is read."""
        return self.name.split("/")[0].removesuffix("_subset")

    def exists(self) -> bool:
        """Return whether one of its folders exists."""
        return any(folder.is_dir() for folder in (self.truth, *self.images.values()))

    def frames_of(self, folder: Path, view: str, suffixes: tuple[str, ...]) -> Files:
        """Return the files of a view in one of the part's folders."""
        template = f"{view}/{{frame}}" if self.layout == "D" else f"{{scene}}/{view}/{{frame}}"
        return Files(folder, template, suffixes, self.scenes)


def find_parts(root: Path, split: Split) -> list[Part]:
    """Find the parts of a split in `root`, or in the `SceneFlow` folder inside it.

    If frames exist in two layouts, the first one in `LAYOUTS` is read.
    """
    for home in _homes(root):
        parts: dict[str, Part] = {}
        for part in _every_part(home, split):
            parts.setdefault(part.family, part)
        if parts:
            return [parts[family] for family in _FAMILIES if family in parts]
    return []


def unknown_images(root: Path) -> list[Path]:
    """Find folders beside the parts that are named like image folders but belong to no part."""
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
    """Return the path of the PNG images, as the same frames may exist in two formats."""
    return path.with_name(path.name.removesuffix("_webp").replace("RGB_", "frames_"))


def _homes(root: Path) -> list[Path]:
    nested = [folder for folder in _folders(root) if folder.name.lower() == "sceneflow"]
    return [*nested, root]


def _every_part(home: Path, split: Split) -> Iterator[Part]:
    yield from _released(home, split)
    yield from _side_by_side(home, split)
    yield from _subset(home, split)


def _released(home: Path, split: Split) -> Iterator[Part]:
    """Find layout A: a folder per part."""
    for folder in _folders(home):
        for family, below in _split_folders(split).items():
            if folder.name.lower() == family.lower() and not _is_subset(folder):
                yield _part(family, "A", folder, below)


def _side_by_side(home: Path, split: Split) -> Iterator[Part]:
    """Find layouts B and C: the parts' folders side by side, or all parts in the same folders."""
    for family, below in _split_folders(split).items():
        for prefix in (f"{name}{gap}" for name in _PREFIXES[family] for gap in ("_", "__")):
            if any(folder.is_dir() for folder in _image_folders(home, prefix).values()):
                yield _part(family, "B", home, below, prefix)
    folders = [folder for folder in _image_folders(home).values() if folder.is_dir()]
    if any((folder / name).is_dir() for folder in folders for name in ("TRAIN", "TEST")):
        yield from _pooled(home, folders, split)
    if split == "train":  # one part of the release, or all of them unpacked into one folder
        for family in ("Monkaa", "Driving"):
            if scenes := _scenes(folders, family):
                yield _part(family, "A", home, scenes=scenes)


def _pooled(home: Path, folders: list[Path], split: Split) -> Iterator[Part]:
    """Find TRAIN and TEST with FlyingThings3D (B), and possibly the other parts in TRAIN (C)."""
    train = [folder / "TRAIN" for folder in folders]
    merged = bool(_scenes(train, "Monkaa") or _scenes(train, "Driving"))
    layout, below = "C" if merged else "B", split.upper()
    for family in _split_folders(split):
        scenes = _scenes([folder / below for folder in folders], family)
        if scenes or (family == "FlyingThings3D" and not merged):
            yield _part(family, layout, home, below, scenes=scenes)


def _subset(home: Path, split: Split) -> Iterator[Part]:
    """Find layout D: the subset of FlyingThings3D selected by the authors of FlowNet 2.0."""
    for folder in filter(_is_subset, (*_folders(home), home)):
        base = folder / _SUBSET_FOLDERS[split]
        yield Part(
            f"FlyingThings3D_subset/{base.name}",
            "D",
            {render_pass: base / f"image_{render_pass}" for render_pass in RENDERINGS},
            base / "disparity",
            occlusions=base / "disparity_occlusions",
        )


def _split_folders(split: Split) -> dict[str, str]:
    """Return the families of a split, and the subfolder that holds it."""
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
        for render_pass in RENDERINGS
    }


def _first(home: Path, prefix: str, names: Sequence[str]) -> Path:
    """Return the first folder that exists, or the first name for an error message."""
    paths = [home / f"{prefix}{name}" for name in names]
    return next((path for path in paths if path.is_dir()), paths[0])


def _scenes(folders: Sequence[Path], family: str) -> tuple[str, ...]:
    """Return the names of a family's scenes in the folders, sorted."""
    names = {path.name for folder in folders for path in _folders(folder)} - {"TRAIN", "TEST"}
    return tuple(sorted(name for name in names if _family(name) == family))


def _family(scene: str) -> str:
    """Return the family of a scene's folder; Monkaa's names follow no rule."""
    if scene in ("A", "B", "C"):
        return "FlyingThings3D"
    return "Driving" if re.fullmatch(r"\d+mm_focallength", scene) else "Monkaa"


def _is_subset(folder: Path) -> bool:
    return os.access(folder, os.X_OK) and any(
        (folder / below / f"image_{render_pass}").is_dir()
        for below in _SUBSET_FOLDERS.values()
        for render_pass in RENDERINGS
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


class SceneFlow(FrameDataset):
    """Scene Flow in any of four layouts, with or without a `SceneFlow` folder around it.

    As released (images may also be in `frames_cleanpass_webp`); `ROOT` may be the folder of a part:

    ```
    FlyingThings3D/{frames_cleanpass,frames_finalpass}/{TRAIN,TEST}/A/0000/{left,right}/0006.png
    FlyingThings3D/disparity/{TRAIN,TEST}/A/0000/{left,right}/0006.pfm
    Monkaa/{frames_cleanpass,frames_finalpass}/a_rain_of_stones_x2/{left,right}/0000.png
    Driving/{frames_cleanpass,frames_finalpass}/15mm_focallength/scene_forwards/fast/{left,right}/0001.png
    ```

    All archives may also be unpacked into one folder.

    PSMNet's: `frames_cleanpass`, `frames_disparity` (or `disparity`) for FlyingThings3D, beside
    `monkaa_frames_cleanpass`, `monkaa_disparity`, `driving_...`. Merged, as GwcNet, GANet and
    others do: the scenes of all parts in `frames_finalpass/TRAIN` and `disparity/TRAIN`. The subset
    of FlyingThings3D of FlowNet 2.0, whose left disparity is stored negated:

    ```
    FlyingThings3D_subset/{train,val}/{image_clean,image_final}/{left,right}/0000000.png
    FlyingThings3D_subset/{train,val}/disparity/{left,right}/0000000.pfm
    FlyingThings3D_subset/{train,val}/disparity_occlusions/{left,right}/0000000.png  (optional)
    ```

    Images may be PNG or WebP. A frame's files are matched by name. A frame with a missing file is
    an error, as is a part without the requested pass or split: training on less data than intended
    would go unnoticed.

    Data: "SceneFlow Datasets" at lmb.informatik.uni-freiburg.de/resources/datasets; licence:
    research only, no commercial use, cite Mayer et al. 2016.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        split: Split = "train",
        render_pass: RenderPass = "clean",
        view: Side = "left",
        exclude: str | Path | None = None,
    ) -> None:
        """Find the frames; images are read on use.

        Args:
            root: The folder that holds the parts, or the `SceneFlow` folder that does.
            split: `train`: FlyingThings3D TRAIN, Monkaa and Driving, those that exist;
                `test`: FlyingThings3D TEST, or the subset's `val`.
            render_pass: `clean`, `final` with depth of field, motion blur, glare and gamma changes,
                or `both`: all clean frames, then all final ones.
            view: Reference view. `right` gives each pair mirrored, with the right view's ground
                truth.
            exclude: Text file of frames to leave out, one per line, such as
                `TRAIN/A/0018/left/0006.png`: the format of the authors' `all_unused_files.txt`. The
                view and everything before `TRAIN` or `TEST` are ignored.

        Raises:
            ValueError: A line of `exclude` is not a frame, or a folder of images beside the parts
                belongs to none of them; otherwise see `FrameDataset`.
        """
        check_choice("split", split, get_args(Split))
        check_choice("view", view, get_args(Side))
        passes = render_passes(render_pass)
        parts = find_parts(Path(root), split)
        if not parts and split == "test" and find_parts(Path(root), "train"):
            raise FileNotFoundError(
                f"{root}: has parts of Scene Flow's train split alone (Monkaa and Driving have no "
                "other): choose split train"
            )
        if not parts:
            raise FileNotFoundError(
                f"{root}: no part of Scene Flow's {split} split; expected FlyingThings3D, Monkaa "
                "or Driving as released, in PSMNet's or the merged layout, or FlyingThings3D_subset"
            )
        if unknown := unknown_images(Path(root)):
            raise ValueError(
                f"{unknown[0]}: images that belong to no known part; start its name, and that of "
                "its disparity folder, with flyingthings3d_, monkaa_ or driving_, or move it away"
            )
        unused = frozenset() if exclude is None else _read_list(Path(exclude))
        super().__init__(
            every_part(
                _part_frames(part, images, label, view, unused)
                for label, images in passes.items()
                for part in parts
            )
        )


def is_sceneflow(root: str | Path) -> bool:
    """Return whether `root` holds a part of Scene Flow in a layout `SceneFlow` reads."""
    parts = (part for split in get_args(Split) for part in find_parts(Path(root), split))
    return any(part.exists() for part in parts)


def holds_images(root: Path, split: Split, render_pass: Rendering) -> bool:
    """Return whether `root` holds images of a split and render pass."""
    return any(part.images[render_pass].is_dir() for part in find_parts(root, split))


def _part_frames(
    part: Part, images: str, label: str, view: Side, unused: frozenset[Key]
) -> Iterator[Frame]:
    """Find the frames of a part, sorted by name."""
    other: Side = "right" if view == "left" else "left"
    folder = part.images[images]
    rows = matched(
        part.frames_of(folder, view, _IMAGE_SUFFIXES),
        part.frames_of(folder, other, _IMAGE_SUFFIXES),
        part.frames_of(part.truth, view, (".pfm",)),
        LAYOUTS[part.layout],
    )
    other_truth = part.frames_of(part.truth, other, (".pfm",)).find()
    masks = {side: _occlusions(part, side) for side in (view, other)}
    for key, reference, partner, truth in rows:
        *scene, number = "/".join(key).split("/")
        name = (*part.name.split("/"), *scene)
        if (*name[1:], number) in unused or (*name, number) in unused:
            continue
        yield Frame(
            _view(part, view, reference, truth, masks[view].get(key)),
            _view(part, other, partner, other_truth.get(key), masks[other].get(key)),
            "/".join((*filter(None, (label,)), *name, view, number)),
            "/".join((part.name, *scene[:1])) if part.name == "FlyingThings3D/TRAIN" else part.name,
            flipped=view == "right",
            layout=LAYOUTS[part.layout],
        )


def _occlusions(part: Part, side: Side) -> dict[Key, Path]:
    if part.occlusions is None:
        return {}
    return part.frames_of(part.occlusions, side, (".png",)).find()


def _view(part: Part, side: Side, image: Path, truth: Path | None, hidden: Path | None) -> View:
    # Decided by the layout, not by the values: pixels with a wrong sign must stay unknown.
    negated = part.layout == "D" and side == "left"
    masks = {} if hidden is None else {"nonocc": Mask(hidden, is_unset)}
    return View(image, truth, negated_pfm if negated else None, masks)


def _read_list(path: Path) -> frozenset[Key]:
    """Read the frames listed in a file: their folders without the view, and their numbers."""
    try:
        with readable(path):
            lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a list of frames, not UTF-8 text ({error})") from error
    return frozenset(
        _listed(line.strip(), f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    )


def _listed(line: str, place: str) -> Key:
    pieces = line.replace("\\", "/").split("/")
    if len(pieces) < 3 or pieces[-2] not in get_args(Side):
        raise ValueError(f"{place}: {line!r}; expected a frame such as TRAIN/A/0018/left/0006.png")
    start = next((place for place, name in enumerate(pieces) if name in ("TRAIN", "TEST")), 0)
    return (*pieces[start:-2], Path(pieces[-1]).stem)
