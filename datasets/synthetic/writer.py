"""Writes scenes to disk as Scene Flow's FlyingThings3D is released, for every loader of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ea_psmnet.files import write_image, write_pfm

from .scenes import SyntheticScenes

_FRAME = "0006"
"""The number of the first frame of FlyingThings3D's sequences."""


@dataclass(frozen=True)
class _Task:
    """A scene and the folders of its frame."""

    number: int
    images: Path
    disparities: Path

    @property
    def mark(self) -> Path:
        """The file that is written last: where it exists, the frame is complete."""
        return self.disparities / "left" / f"{_FRAME}.pfm"


class _Frames(Dataset[int]):
    """Write a frame when it is asked for, so that a DataLoader's workers share the work."""

    def __init__(self, scenes: SyntheticScenes, tasks: list[_Task]) -> None:
        self.scenes, self.tasks = scenes, tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> int:
        task = self.tasks[index]
        rendered = self.scenes.render(task.number)
        write_image(task.images / "left" / f"{_FRAME}.png", rendered.left)
        write_image(task.images / "right" / f"{_FRAME}.png", rendered.right)
        write_pfm(task.disparities / "right" / f"{_FRAME}.pfm", rendered.disparity_right)
        write_pfm(task.mark, rendered.disparity_left)
        return task.number


def _tasks(root: Path, counts: dict[str, int]) -> Iterator[_Task]:
    number = 0
    base = root / "FlyingThings3D"
    for split, count in counts.items():
        for place in range(count):
            part = Path(split) / "A" / f"{place:04d}"
            yield _Task(number, base / "frames_cleanpass" / part, base / "disparity" / part)
            number += 1


def write_sceneflow(
    root: Path, scenes: SyntheticScenes, *, test: int = 0, workers: int = 0, progress: bool = True
) -> int:
    """Write `scenes` as `ROOT/FlyingThings3D/{frames_cleanpass,disparity}/{TRAIN,TEST}/A/...`.

    Each scene is one folder with the single frame 0006. Frames that are complete already are
    left alone, so that a stopped run can be taken up again.

    Args:
        root: folder to write into; it is made.
        scenes: what to write; all of its `len(scenes)`.
        test: how many of them, the last ones, go to TEST.
        workers: processes that render, each with one thread; 0 renders in this one.
        progress: whether to show a bar.

    Returns:
        The number of frames that were written now.

    Raises:
        ValueError: `test` is not in 0 to `len(scenes)`.
    """
    if not 0 <= test <= len(scenes):
        raise ValueError(f"test is {test}, expected 0 to {len(scenes)}, the number of scenes")
    counts = {"TRAIN": len(scenes) - test, "TEST": test}
    tasks = [task for task in _tasks(root, counts) if not task.mark.exists()]
    for task in tasks:
        for folder in (task.images, task.disparities):
            for side in ("left", "right"):
                (folder / side).mkdir(parents=True, exist_ok=True)
    if tasks:
        scenes.prepare()
    # Workers start with one torch thread each, which is the efficient number for small tensors.
    loader = DataLoader(_Frames(scenes, tasks), batch_size=None, num_workers=workers)
    for _ in tqdm(loader, desc=str(root), unit="frame", disable=not progress):
        pass
    return len(tasks)
