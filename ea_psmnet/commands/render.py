"""`render`: generated scenes as a dataset on disk."""

from __future__ import annotations

from pathlib import Path

__all__ = ["render"]


def render(
    *,
    out: Path,
    train: int = 100,
    test: int = 10,
    size: tuple[int, int] = (540, 960),
    max_disparity: int = 192,
    seed: int = 0,
    workers: int = 2,
) -> None:
    """Render scenes with exact disparity into Scene Flow's released layout.

    The same command continues where it was stopped; larger numbers of scenes add to those that are
    there. The test scenes are others than the training scenes, and than those that `train --data
    synthetic` renders.

    Args:
        out: Folder for the dataset.
        train: Training scenes.
        test: Test scenes.
        size: Height and width of the images.
        max_disparity: Scenes stay below this many pixels of disparity.
        seed: Another seed gives other scenes.
        workers: Processes that render.
    """
    from datasets.synthetic import SyntheticScenes, write_sceneflow

    for name, count in (("train", train), ("test", test)):
        if count < 0:
            raise ValueError(f"{name} is {count}, expected 0 or more")
    write_sceneflow(
        out,
        train=SyntheticScenes(seed=seed, size=size, count=train, max_disparity=max_disparity),
        test=SyntheticScenes(
            seed=seed, split="test", size=size, count=test, max_disparity=max_disparity
        ),
        workers=workers,
    )
