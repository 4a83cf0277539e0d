"""Writes scenes to disk as Scene Flow's FlyingThings3D is released, or as folders of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from datasets.sceneflow import Split
from datasets.synthetic.render import RenderedScene
from datasets.synthetic.scenes import SyntheticScenes
from datasets.workers import loaded
from ea_psmnet.files import write_image, write_json, write_pfm
from ea_psmnet.records import read_record

_FRAME = "0006"
"""The number of the first frame of FlyingThings3D's sequences."""
_PART = "FlyingThings3D"
Layout = Literal["sceneflow", "folder"]
"""`sceneflow`: both views' truth, for every loader of Scene Flow; `folder`: a folder a pair."""
_TOPS = {"sceneflow": (_PART,), "folder": ("train", "test")}
_MOST_WORKERS = 1024
_SETTINGS = "scenes.json"
"""What the scenes of the folder have in common; written before the first of them."""


@dataclass(frozen=True)
class _Task:
    """A scene and the files of its frame."""

    scenes: SyntheticScenes
    number: int
    left: Path
    right: Path
    right_truth: Path | None
    mark: Path
    """The left view's truth, which is written last: where it exists, the frame is complete."""

    def run(self) -> None:
        """Render the scene and write its frame."""
        rendered = self.scenes.render(self.number)
        write_image(self.left, rendered.left)
        write_image(self.right, rendered.right)
        left, right = _stored(rendered)
        if self.right_truth is not None:
            write_pfm(self.right_truth, right)
        write_pfm(self.mark, left)


def _stored(rendered: RenderedScene) -> tuple[np.ndarray, np.ndarray]:
    """Both disparities, infinite where a pixel sees no solid: in a PFM, 0 would be known."""
    left = np.where(rendered.object_left < 0, np.inf, rendered.disparity_left)
    right = np.where(rendered.object_right < 0, np.inf, rendered.disparity_right)
    return left, right


class _Frames(Dataset[None]):
    """Write a frame when it is asked for, so that a DataLoader's workers share the work."""

    def __init__(self, tasks: list[_Task]) -> None:
        self.tasks = tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> None:
        self.tasks[index].run()


def _tasks(root: Path, scenes: SyntheticScenes, layout: Layout) -> Iterator[_Task]:
    task = _pair if layout == "folder" else _frame
    return (task(root, scenes, number) for number in scenes.numbers)


def _pair(root: Path, scenes: SyntheticScenes, number: int) -> _Task:
    folder = root / scenes.split / f"{number:06d}"
    left, right, truth = (folder / name for name in ("left.png", "right.png", "disp.pfm"))
    return _Task(scenes, number, left, right, None, truth)


def _frame(root: Path, scenes: SyntheticScenes, number: int) -> _Task:
    frame = Path(scenes.split.upper()) / "A" / f"{number:04d}"
    images, truth = (root / _PART / kind / frame for kind in ("frames_cleanpass", "disparity"))
    left, right = (images / view / f"{_FRAME}.png" for view in ("left", "right"))
    mark, right_truth = (truth / view / f"{_FRAME}.pfm" for view in ("left", "right"))
    return _Task(scenes, number, left, right, right_truth, mark)


def write_sceneflow(
    root: Path,
    *,
    train: SyntheticScenes,
    test: SyntheticScenes,
    layout: Layout = "sceneflow",
    workers: int = 0,
    progress: bool = True,
) -> int:
    """Write scenes as `ROOT/FlyingThings3D/{frames_cleanpass,disparity}/{TRAIN,TEST}/A/NUMBER`.

    Each scene is one folder, called by its number, with the single frame 0006. Frames that are
    complete already are left alone, so that a stopped run can be taken up again, or more scenes of
    the same settings added; `ROOT/scenes.json` tells the settings. The layout `folder` makes
    `ROOT/{train,test}/NUMBER/{left.png,right.png,disp.pfm}` of them instead.

    Args:
        root: folder to write into; it is made.
        train: what goes to TRAIN, of the train split; may be empty.
        test: what goes to TEST, of the test split and otherwise the same settings; may be empty.
        layout: how the files are arranged.
        workers: processes that render, each with one thread; 0 renders in this one.
        progress: whether to show a bar.

    Returns:
        The number of frames that were written now.

    Raises:
        OSError: a file cannot be written.
        ValueError: an argument is none of those described, or the folder holds other scenes.
    """
    if not 0 <= workers <= _MOST_WORKERS:
        raise ValueError(f"workers is {workers}, expected 0 to {_MOST_WORKERS}")
    if layout not in get_args(Layout):
        raise ValueError(f"layout is {layout!r}, expected {' or '.join(get_args(Layout))}")
    _check_split("train", train)
    _check_split("test", test)
    if differences := _differences(test.settings, train.settings):
        raise ValueError(f"test: scenes with {differences} as in train; give both the same")
    _check_folder(root, train.settings, layout)
    every = (*_tasks(root, train, layout), *_tasks(root, test, layout))
    tasks = [task for task in every if not task.mark.exists()]
    if tasks:
        train.prepare()  # first: where it fails, nothing is written
        write_json(root / _SETTINGS, train.settings)
    # Workers start with one torch thread each, which is the efficient number for small tensors.
    with (
        loaded(_Frames(tasks), workers, batch_size=None) as frames,
        tqdm(total=len(tasks), desc=str(root), unit="frame", disable=not progress) as bar,
    ):
        for _ in frames:
            bar.update()
    return len(tasks)


def _check_split(expected: Split, scenes: SyntheticScenes) -> None:
    if scenes.split != expected:
        raise ValueError(f"{expected}: scenes of the {scenes.split} split, expected {expected}")


def _check_folder(root: Path, settings: dict[str, Any], layout: Layout) -> None:
    """Raise ValueError if `root` holds scenes of other settings, layout or origin."""
    path = root / _SETTINGS
    there = {name: top for name in _TOPS for top in _TOPS[name] if (root / top).exists()}
    if other := [name for name in there if name != layout]:
        raise ValueError(f"{root}: holds scenes in the layout {other[0]}; choose another folder")
    if not path.exists():
        if there:
            raise ValueError(
                f"{root}: holds {there[layout]} of other origin ({_SETTINGS} is not there); "
                "choose another folder"
            )
        return
    recorded = read_record(path, dict[str, Any], remedy="damaged: choose another folder")
    if differences := _differences(recorded, settings):
        raise ValueError(
            f"{root}: holds scenes with {differences}; give the same settings or another folder"
        )


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """What differs, as `seed 0, not 1`."""
    return " and ".join(
        f"{name} {found.get(name)}, not {value}"
        for name, value in expected.items()
        if found.get(name) != value
    )
