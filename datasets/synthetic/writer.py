"""Writes scenes to disk as Scene Flow's FlyingThings3D is released, for every loader of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datasets.sceneflow import Split
from datasets.synthetic.render import RenderedScene
from datasets.synthetic.scenes import SyntheticScenes
from datasets.workers import ErrorsAsValues, raise_errors
from ea_psmnet.files import write_image, write_json, write_pfm

_FRAME = "0006"
"""The number of the first frame of FlyingThings3D's sequences."""
_PART = "FlyingThings3D"
_SETTINGS = "scenes.json"
"""What the scenes of the folder have in common; written before the first of them."""


@dataclass(frozen=True)
class _Task:
    """A scene and the folders of its frame."""

    scenes: SyntheticScenes
    number: int
    images: Path
    disparities: Path

    @property
    def mark(self) -> Path:
        """The file that is written last: where it exists, the frame is complete."""
        return self.disparities / "left" / f"{_FRAME}.pfm"

    def run(self) -> None:
        """Render the scene and write its frame."""
        rendered = self.scenes.render(self.number)
        write_image(self.images / "left" / f"{_FRAME}.png", rendered.left)
        write_image(self.images / "right" / f"{_FRAME}.png", rendered.right)
        left, right = _stored(rendered)
        write_pfm(self.disparities / "right" / f"{_FRAME}.pfm", right)
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


def _tasks(root: Path, scenes: SyntheticScenes) -> Iterator[_Task]:
    base = root / _PART
    for number in scenes.numbers:
        frame = Path(scenes.split.upper()) / "A" / f"{number:04d}"
        yield _Task(scenes, number, base / "frames_cleanpass" / frame, base / "disparity" / frame)


def write_sceneflow(
    root: Path,
    *,
    train: SyntheticScenes,
    test: SyntheticScenes,
    workers: int = 0,
    progress: bool = True,
) -> int:
    """Write scenes as `ROOT/FlyingThings3D/{frames_cleanpass,disparity}/{TRAIN,TEST}/A/NUMBER`.

    Each scene is one folder, called by its number, with the single frame 0006. Frames that are
    complete already are left alone, so that a stopped run can be taken up again, or more scenes of
    the same settings added; `ROOT/scenes.json` tells the settings.

    Args:
        root: folder to write into; it is made.
        train: what goes to TRAIN, of the train split; may be empty.
        test: what goes to TEST, of the test split and otherwise the same settings; may be empty.
        workers: processes that render, each with one thread; 0 renders in this one.
        progress: whether to show a bar.

    Returns:
        The number of frames that were written now.

    Raises:
        OSError: a file cannot be written.
        ValueError: an argument is none of those described, or the folder holds other scenes.
    """
    if workers < 0:
        raise ValueError(f"workers is {workers}, expected 0 or more")
    _check_split("train", train)
    _check_split("test", test)
    if differences := _differences(test.settings, train.settings):
        raise ValueError(f"test: scenes with {differences} as in train; give both the same")
    _check_folder(root, train.settings)
    every = (*_tasks(root, train), *_tasks(root, test))
    tasks = [task for task in every if not task.mark.exists()]
    if tasks:
        train.prepare()  # first: where it fails, nothing is written
        write_json(root / _SETTINGS, train.settings)
    # Workers start with one torch thread each, which is the efficient number for small tensors.
    frames = ErrorsAsValues(_Frames(tasks))
    loader = DataLoader(frames, batch_size=None, num_workers=workers)
    with tqdm(loader, desc=str(root), unit="frame", disable=not progress) as bar:
        for _ in raise_errors(bar):
            pass
    return len(tasks)


def _check_split(expected: Split, scenes: SyntheticScenes) -> None:
    if scenes.split != expected:
        raise ValueError(f"{expected}: scenes of the {scenes.split} split, expected {expected}")


def _check_folder(root: Path, settings: dict[str, Any]) -> None:
    """Raise ValueError if `root` holds scenes of other settings or of other origin."""
    path = root / _SETTINGS
    if not path.exists():
        if (root / _PART).exists():
            raise ValueError(
                f"{root}: holds {_PART} of other origin ({_SETTINGS} is not there); "
                "choose another folder"
            )
        return
    try:
        recorded = dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error}); choose another folder") from error
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
