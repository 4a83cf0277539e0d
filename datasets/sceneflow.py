"""Scene Flow: FlyingThings3D, Monkaa and Driving (Mayer et al., CVPR 2016), as released."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from datasets.frames import Frame, FrameDataset

__all__ = ["PARTS", "RenderPass", "SceneFlow", "Split", "is_sceneflow"]

Split = Literal["train", "test"]
RenderPass = Literal["clean", "final"]

PARTS = ("FlyingThings3D", "Monkaa", "Driving")
"""Folders of the release; any subset may be present."""

# Not any image: the release has these two only, and a preview in another format beside a frame
# must not be taken for the frame.
_IMAGE_SUFFIXES = (".png", ".webp")
_LAYOUT = (
    "expected ROOT/[SceneFlow/]{FlyingThings3D,Monkaa,Driving}/"
    "{frames_cleanpass,frames_finalpass,disparity}/... as released, "
    "FlyingThings3D with TRAIN and TEST below"
)


class SceneFlow(FrameDataset):
    """Scene Flow in the released layout, with or without a `SceneFlow` folder above.

    ```
    FlyingThings3D/{frames_cleanpass,frames_finalpass}/{TRAIN,TEST}/A/0000/{left,right}/0006.png
    FlyingThings3D/disparity/{TRAIN,TEST}/A/0000/left/0006.pfm
    Monkaa/{frames_cleanpass,frames_finalpass}/a_rain_of_stones_x2/{left,right}/0000.png
    Driving/{frames_cleanpass,frames_finalpass}/15mm_focallength/scene_forwards/fast/{left,right}/0001.png
    ```

    Images may be PNG or WebP. A frame's files are matched by name; a frame lacking one is an error,
    as is a part lacking the pass or split asked for: training on less than was meant goes unseen.

    Data: "SceneFlow Datasets" at lmb.informatik.uni-freiburg.de/resources/datasets; licence:
    research only, no commercial use, cite Mayer et al. 2016.
    """

    def __init__(
        self, root: str | Path, *, split: Split = "train", render_pass: RenderPass = "clean"
    ) -> None:
        """Find the frames; images are read on use.

        Args:
            root: The folder that holds the parts, or the `SceneFlow` folder that does.
            split: `train`: FlyingThings3D TRAIN, Monkaa and Driving, what is there of them;
                `test`: FlyingThings3D TEST.
            render_pass: `clean`, or `final` with motion blur, depth of field and fog.

        Raises:
            FileNotFoundError: a folder or a file of a frame is missing, or there are no frames.
            ValueError: `split` or `render_pass` is none of those named.
        """
        _check_choice("split", split, get_args(Split))
        _check_choice("render_pass", render_pass, get_args(RenderPass))
        root = Path(root)
        parts = _parts(root)
        if split == "test":
            parts = [part for part in parts if part.name == "FlyingThings3D"]
        if not parts:
            raise FileNotFoundError(f"{root}: no part of Scene Flow's {split} split; {_LAYOUT}")
        super().__init__(
            frame for part in parts for frame in _part_frames(part, split, render_pass)
        )


def is_sceneflow(root: str | Path) -> bool:
    """Whether `root` holds a part of Scene Flow in the layout `SceneFlow` reads."""
    return bool(_parts(Path(root)))


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field}={value!r}; choose one of {', '.join(choices)}")


def _parts(root: Path) -> list[Path]:
    """Part folders that exist, in the order of `PARTS`."""
    home = root / "SceneFlow" if (root / "SceneFlow").is_dir() else root
    return [home / part for part in PARTS if (home / part).is_dir()]


def _part_frames(part: Path, split: Split, render_pass: RenderPass) -> Iterator[Frame]:
    """Frames of one part sorted by name, which is the same order on every file system."""
    below = split.upper() if part.name == "FlyingThings3D" else ""
    images = part / f"frames_{render_pass}pass" / below
    truth = part / "disparity" / below
    left = _find(images, "left", _IMAGE_SUFFIXES)
    right = _find(images, "right", _IMAGE_SUFFIXES)
    disparity = _find(truth, "left", (".pfm",))
    if not left and not right:
        raise FileNotFoundError(f"{images}: no frames (.png or .webp); {_LAYOUT}")
    for key in sorted(left.keys() | right.keys()):
        yield Frame(
            left=_partner(left, key, images, "left", "png or .webp"),
            right=_partner(right, key, images, "right", "png or .webp"),
            disparity=_partner(disparity, key, truth, "left", "pfm"),
            name="/".join(filter(None, (part.name, below, *key[:-1], "left", key[-1]))),
        )


_Key = tuple[str, ...]
"""Folders above the view and the frame number: `("A", "0000", "0006")`."""


def _find(folder: Path, view: str, suffixes: tuple[str, ...]) -> dict[_Key, Path]:
    """All `.../VIEW/NUMBER.SUFFIX` below `folder`.

    Keys come from path parts below `folder`: the root may itself contain `left`.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; {_LAYOUT}")
    found = {}
    for path in sorted(folder.glob(f"**/{view}/*")):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            *scene, _, _ = path.relative_to(folder).parts
            found[(*scene, path.stem)] = path
    return found


def _partner(found: dict[_Key, Path], key: _Key, folder: Path, view: str, suffix: str) -> Path:
    if key not in found:
        missing = folder.joinpath(*key[:-1], view, key[-1])
        raise FileNotFoundError(
            f"{missing}.{suffix}: missing, though the frame's other image is there; "
            f"unpack the archive again or remove the frame; {_LAYOUT}"
        )
    return found[key]
