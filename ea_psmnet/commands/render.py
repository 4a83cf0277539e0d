"""`render`: rendered scenes as a dataset on disk."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal


def render(
    *,
    out: Path,
    train: int = 100,
    test: int = 10,
    size: tuple[int, int] = (540, 960),
    max_disparity: int = 192,
    seed: int = 0,
    textures: Path | None = None,
    kind: str | None = None,
    layout: Literal["sceneflow", "folder"] = "sceneflow",
    workers: int = 2,
) -> None:
    """Render scenes with exact disparity, in the layout of Scene Flow or as folders of pairs.

    The same command continues after an interruption; larger numbers add scenes. Test scenes differ
    from training scenes, including those of `train --data synthetic`.

    Args:
        out: Folder for the dataset.
        train: Number of training scenes.
        test: Number of test scenes.
        size: Height and width of the images.
        max_disparity: Upper limit of the disparities, in pixels.
        seed: Seed of the scenes.
        textures: Folder of photographs that cover surfaces in addition to procedural textures.
        kind: Kind of the scenes, for example bare; default: all kinds, mixed.
        layout: sceneflow has ground truth for both views; folder is {train,test}/NUMBER/{left.png,
            right.png,disp.pfm}.
        workers: Number of rendering processes.
    """
    from ea_psmnet.datasets.synthetic import SyntheticScenes, write_sceneflow
    from ea_psmnet.tables import check_range

    for name, count in (("train", train), ("test", test)):
        check_range(name, count, 0, 10**6)
    if not train + test:
        raise ValueError("nothing to render: --train or --test must be more than 0")
    scenes = partial(
        SyntheticScenes,
        seed=seed,
        size=size,
        max_disparity=max_disparity,
        textures=textures,
        kind=kind,
    )
    write_sceneflow(
        out,
        train=scenes(count=train),
        test=scenes(split="test", count=test),
        layout=layout,
        workers=workers,
    )
