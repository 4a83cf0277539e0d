"""`render`: generated scenes as a dataset on disk."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

__all__ = ["render"]


def render(
    *,
    out: Path,
    train: int = 100,
    test: int = 10,
    size: tuple[int, int] = (540, 960),
    max_disparity: int = 192,
    seed: int = 0,
    textures: Path | None = None,
    layout: Literal["sceneflow", "folder"] = "sceneflow",
    workers: int = 2,
) -> None:
    """Render scenes with exact disparity, in Scene Flow's released layout or as folders of pairs.

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
        textures: Folder of photographs that cover surfaces beside the procedural textures.
        layout: sceneflow has the truth of both views; folder is {train,test}/NUMBER/{left.png,
            right.png,disp.pfm}.
        workers: Processes that render.
    """
    from datasets.synthetic import SyntheticScenes, write_sceneflow
    from ea_psmnet.tables import check_range

    for name, count in (("train", train), ("test", test)):
        check_range(name, count, 0, 10**6)
    scenes = partial(
        SyntheticScenes, seed=seed, size=size, max_disparity=max_disparity, textures=textures
    )
    write_sceneflow(
        out,
        train=scenes(count=train),
        test=scenes(split="test", count=test),
        layout=layout,
        workers=workers,
    )
