"""Writes scenes to disk in the layout of FlyingThings3D, or as a folder per pair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ea_psmnet.datasets.synthetic.render import RenderedScene
from ea_psmnet.datasets.synthetic.scenes import SyntheticScenes
from ea_psmnet.datasets.workers import loaded
from ea_psmnet.files import write_image, write_json, write_pfm
from ea_psmnet.progress import Progress
from ea_psmnet.records import read_record
from ea_psmnet.tables import check_choice, check_range

_FRAME = "0006"
"""Number of the first frame of FlyingThings3D's sequences."""
_PART = "FlyingThings3D"
Layout = Literal["sceneflow", "folder"]
"""`sceneflow` has ground truth for both views, like Scene Flow; `folder` is a folder per pair."""
_TOPS = {"sceneflow": (_PART,), "folder": ("train", "test")}
_MOST_WORKERS = 1024
_SETTINGS = "scenes.json"
"""File with the settings that the scenes of a folder share; written before the first scene."""


@dataclass(frozen=True)
class _Task:
    """A scene and the files of its frame."""

    scenes: SyntheticScenes
    number: int
    left: Path
    right: Path
    right_truth: Path | None
    mark: Path
    """The left view's ground truth, which is written last: if it exists, the frame is complete."""

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
    """Return both disparities, infinite (unknown) for pixels without a solid."""
    left = np.where(rendered.object_left < 0, np.inf, rendered.disparity_left)
    right = np.where(rendered.object_right < 0, np.inf, rendered.disparity_right)
    return left, right


class _Frames:
    """Writes a frame on access, so that the workers of a DataLoader share the work."""

    def __init__(self, tasks: list[_Task]) -> None:
        self.tasks = tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> None:
        self.tasks[index].run()


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

    Each scene is a folder named by its number, with the single frame 0006. Complete frames are
    skipped, so that an interrupted run can be resumed, or more scenes of the same settings added;
    `ROOT/scenes.json` stores the settings. The layout `folder` writes
    `ROOT/{train,test}/NUMBER/{left.png,right.png,disp.pfm}` instead.

    Args:
        root: Folder to write to; created if necessary.
        train: Scenes of the train split for TRAIN; may be empty.
        test: Scenes of the test split for TEST, with the same settings; may be empty.
        layout: Layout of the files.
        workers: Number of rendering processes, each with one thread; 0 renders in this process.
        progress: Whether to show a progress bar.

    Returns:
        The number of frames written by this call.

    Raises:
        OSError: A file cannot be written.
        ValueError: An argument is not as described, or the folder holds other scenes.
    """
    check_range("workers", workers, 0, _MOST_WORKERS)
    check_choice("layout", layout, get_args(Layout))
    for expected, scenes in (("train", train), ("test", test)):
        if scenes.split != expected:
            raise ValueError(f"{expected}: scenes of the {scenes.split} split, expected {expected}")
    if differences := _differences(test.settings, train.settings):
        raise ValueError(f"test: scenes with {differences} as in train; give both the same")
    _check_folder(root, train.settings, layout)
    task = _pair if layout == "folder" else _frame
    every = (task(root, scenes, n) for scenes in (train, test) for n in scenes.numbers)
    tasks = [task for task in every if not task.mark.exists()]
    if tasks:
        train.prepare()  # first: if it fails, nothing is written
        write_json(root / _SETTINGS, train.settings)
    # Workers use one torch thread each, which is fastest for small tensors.
    with (
        loaded(_Frames(tasks), workers, batch_size=None) as frames,
        Progress(total=len(tasks), desc=str(root), unit="frame", disable=not progress) as bar,
    ):
        for _ in frames:
            bar.update()
    return len(tasks)


def _check_folder(root: Path, settings: dict[str, Any], layout: Layout) -> None:
    """Raise a ValueError if `root` holds scenes of other settings, layout or origin."""
    path = root / _SETTINGS
    there = {name: top for name in _TOPS for top in _TOPS[name] if (root / top).exists()}
    if other := [name for name in there if name != layout]:
        raise ValueError(f"{root}: holds scenes in the layout {other[0]}; choose another folder")
    if not path.exists():
        if there:
            raise ValueError(
                f"{root}: holds {there[layout]} of other origin ({_SETTINGS} is missing); "
                "choose another folder"
            )
        return
    recorded = read_record(path, dict[str, Any], remedy="damaged: choose another folder")
    if differences := _differences(recorded, settings):
        raise ValueError(
            f"{root}: holds scenes with {differences}; give the same settings or another folder"
        )


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Describe the differences, such as `seed 0, not 1`."""
    return " and ".join(
        f"{name} {found.get(name)}, not {value}"
        for name, value in expected.items()
        if found.get(name) != value
    )
