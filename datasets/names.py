"""Names of datasets, benchmarks, splits and render passes, without the readers; their checks."""

from __future__ import annotations

from typing import Literal, get_args

from ea_psmnet.tables import check_choice

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
"""Keys of `ea_psmnet.datasets.builder.DATASETS`, and `auto` to detect the dataset."""

BenchmarkName = Literal["kitti2012", "kitti2015", "middlebury", "eth3d"]
"""Keys of `ea_psmnet.evaluation.submission.BENCHMARKS`."""

Resolution = Literal["F", "H", "Q"]
"""Size of the images of Middlebury's evaluation: full, half or quarter."""

Split = Literal["train", "test"]

Rendering = Literal["clean", "final"]
"""A rendering of a scene; `final` adds camera effects such as motion blur and depth of field."""

RENDERINGS: tuple[Rendering, ...] = get_args(Rendering)

RenderPass = Literal["clean", "final", "both"]
"""Which renderings of the scenes to read."""


class NoSplitError(ValueError):
    """A dataset does not have a split."""


def train_only(split: Split, why: str) -> None:
    """Raise a NoSplitError that gives the reason `why` if `split` is not `train`."""
    check_choice("split", split, get_args(Split))
    if split != "train":
        raise NoSplitError(f"split {split}: {why}; choose train")


def render_passes(render_pass: RenderPass) -> dict[str, str]:
    """Return the passes to read, keyed by the prefix of their frames' names.

    The prefix is empty unless both passes are read.
    """
    check_choice("render_pass", render_pass, get_args(RenderPass))
    if render_pass == "both":
        return {"clean": "clean", "final": "final"}
    return {"": render_pass}
