"""Scene Flow: FlyingThings3D, Monkaa and Driving (Mayer et al., CVPR 2016), as people keep it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from datasets.decoders import is_unset, negated_pfm
from datasets.frames import Frame, FrameDataset, Mask, View
from datasets.names import RenderPass, Split
from datasets.sceneflow_layouts import LAYOUTS, Part, find_parts, unknown_images
from datasets.splits import check_choice, render_passes
from datasets.templates import Key, every_part, matched
from ea_psmnet.files import readable

__all__ = ["PUBLISHED_COUNTS", "RenderPass", "SceneFlow", "Side", "Split", "is_sceneflow"]

Side = Literal["left", "right"]

PUBLISHED_COUNTS = {
    "FlyingThings3D/TRAIN/A": 7460,
    "FlyingThings3D/TRAIN/B": 7460,
    "FlyingThings3D/TRAIN/C": 7470,
    "Monkaa": 8664,
    "Driving": 4400,
    "FlyingThings3D/TEST": 4370,
}
"""Frames of a complete download in each part (`FrameDataset.parts`): 35,454 to train on."""

# Not any image: the release has these two only, and a preview in another format beside a frame
# must not be taken for the frame.
_IMAGE_SUFFIXES = (".png", ".webp")


class SceneFlow(FrameDataset):
    """Scene Flow in any of four layouts, with or without a `SceneFlow` folder above.

    As released (images may also lie in `frames_cleanpass_webp`); `ROOT` may be one part's folder:

    ```
    FlyingThings3D/{frames_cleanpass,frames_finalpass}/{TRAIN,TEST}/A/0000/{left,right}/0006.png
    FlyingThings3D/disparity/{TRAIN,TEST}/A/0000/{left,right}/0006.pfm
    Monkaa/{frames_cleanpass,frames_finalpass}/a_rain_of_stones_x2/{left,right}/0000.png
    Driving/{frames_cleanpass,frames_finalpass}/15mm_focallength/scene_forwards/fast/{left,right}/0001.png
    ```

    PSMNet's: `frames_cleanpass`, `frames_disparity` (or `disparity`) for FlyingThings3D, beside
    `monkaa_frames_cleanpass`, `monkaa_disparity`, `driving_...`. Merged, as GwcNet, GANet and
    others do: the scenes of all parts in `frames_finalpass/TRAIN` and `disparity/TRAIN`. The subset
    of FlyingThings3D of FlowNet 2.0, whose left disparity is stored with a minus sign:

    ```
    FlyingThings3D_subset/{train,val}/{image_clean,image_final}/{left,right}/0000000.png
    FlyingThings3D_subset/{train,val}/disparity/{left,right}/0000000.pfm
    FlyingThings3D_subset/{train,val}/disparity_occlusions/{left,right}/0000000.png  (optional)
    ```

    Images may be PNG or WebP. A frame's files are matched by name; a frame lacking one is an error,
    as is a part lacking the pass or split asked for: training on less than was meant goes unseen.

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
            split: `train`: FlyingThings3D TRAIN, Monkaa and Driving, what is there of them;
                `test`: FlyingThings3D TEST, or the subset's `val`.
            render_pass: `clean`, `final` with motion blur, depth of field and fog, or `both`: all
                clean frames, then all final ones.
            view: The reference. `right` gives each pair mirrored, with the right view's truth.
            exclude: A text file of frames to leave out, one a line as `TRAIN/A/0018/left/0006.png`:
                the form of the authors' `all_unused_files.txt`. Left or right makes no difference,
                nor what stands before `TRAIN` or `TEST`.

        Raises:
            FileNotFoundError: a folder or a file of a frame is missing, or there are no frames.
            ValueError: an argument is none of those named, a line of `exclude` no frame, or beside
                the parts lies a folder of images that is of none.
        """
        check_choice("split", split, get_args(Split))
        check_choice("view", view, get_args(Side))
        passes = render_passes(render_pass)
        parts = find_parts(Path(root), split)
        if not parts:
            raise FileNotFoundError(
                f"{root}: no part of Scene Flow's {split} split; expected FlyingThings3D, Monkaa "
                "or Driving as released, in PSMNet's or the merged layout, or FlyingThings3D_subset"
            )
        if unknown := unknown_images(Path(root)):
            raise ValueError(
                f"{unknown[0]}: images of no part that is known; begin its name, and that of its "
                "disparity folder, with flyingthings3d_, monkaa_ or driving_, or move it away"
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
    """Whether `root` holds a part of Scene Flow in a layout `SceneFlow` reads."""
    parts = (part for split in get_args(Split) for part in find_parts(Path(root), split))
    return any(part.exists() for part in parts)


def _part_frames(
    part: Part, images: str, label: str, view: Side, unused: frozenset[Key]
) -> Iterator[Frame]:
    """Frames of one part, sorted by name."""
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
    # By rule and not by looking: a wrong sign within a file must stay unknown.
    negated = part.layout == "D" and side == "left"
    masks = {} if hidden is None else {"nonocc": Mask(hidden, is_unset)}
    return View(image, truth, negated_pfm if negated else None, masks)


def _read_list(path: Path) -> frozenset[Key]:
    """Frames named in a file: the folders but for the view, and the number."""
    try:
        with readable(path):
            lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no list of frames, it is no UTF-8 text ({error})") from error
    return frozenset(
        _listed(line.strip(), f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    )


def _listed(line: str, place: str) -> Key:
    pieces = line.replace("\\", "/").split("/")
    if len(pieces) < 3 or pieces[-2] not in get_args(Side):
        raise ValueError(f"{place}: {line!r}; expected a frame as TRAIN/A/0018/left/0006.png")
    start = next((place for place, name in enumerate(pieces) if name in ("TRAIN", "TEST")), 0)
    return (*pieces[start:-2], Path(pieces[-1]).stem)
