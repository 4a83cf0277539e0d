"""The datasets' names, without importing their readers: command lines need nothing else."""

from __future__ import annotations

from typing import Literal

__all__ = ["DatasetName", "RenderPass", "Split"]

DatasetName = Literal[
    "auto",
    "sceneflow",
    "kitti2012",
    "kitti2015",
    "middlebury2014",
    "middlebury2021",
    "middeval3",
    "eth3d",
    "sintel",
    "crestereo",
    "falling-things",
    "instereo2k",
    "virtual-kitti",
    "tartanair",
    "tartanair-v2",
    "folder",
    "list",
    "synthetic",
]
"""Keys of `datasets.builder.DATASETS`, and `auto` for whichever lies there."""

Split = Literal["train", "test"]

RenderPass = Literal["clean", "final", "both"]
"""Which of two renderings of a scene: `final` has motion blur, depth of field and fog."""
