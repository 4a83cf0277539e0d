"""Every dataset by its name: one table, one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.folder import PairFolder, is_pair_folder
from datasets.sceneflow import RenderPass, SceneFlow, Split, is_sceneflow
from ea_psmnet.sample import StereoSample

__all__ = ["DATASETS", "build_dataset", "detect_dataset"]


@dataclass(frozen=True)
class _Request:
    """What a caller of `build_dataset` asked for; an entry of the table takes what concerns it."""

    root: Path
    split: Split
    render_pass: RenderPass
    scenes: Mapping[str, Any]


def _sceneflow(request: _Request) -> Sequence[StereoSample]:
    return SceneFlow(request.root, split=request.split, render_pass=request.render_pass)


def _folder(request: _Request) -> Sequence[StereoSample]:
    return PairFolder(request.root)


def _synthetic(request: _Request) -> Sequence[StereoSample]:
    # Late: readers of files need no renderer.
    from datasets.synthetic import SyntheticScenes

    scenes = SyntheticScenes(split=request.split, **request.scenes)
    scenes.prepare()  # before a loader forks its workers, so that they share the textures
    return scenes


DATASETS: dict[str, Callable[[_Request], Sequence[StereoSample]]] = {
    "sceneflow": _sceneflow,
    "folder": _folder,
    "synthetic": _synthetic,
}
"""Datasets by name."""


def build_dataset(
    name: str,
    root: str | Path = "",
    *,
    split: Split = "train",
    render_pass: RenderPass = "clean",
    **scenes: Any,
) -> Sequence[StereoSample]:
    """Build a dataset.

    Args:
        name: A key of `DATASETS`, or `auto` for what `detect_dataset` sees in `root`.
        root: The folder to read; `synthetic` needs none.
        split: `train` or `test`, of `sceneflow` and `synthetic`; a folder has no splits.
        render_pass: `clean` or `final`, of `sceneflow`.
        **scenes: Arguments of `SyntheticScenes`, for `synthetic` only: seed, size, count and
            max_disparity.

    Returns:
        Samples in a fixed order, each read or rendered when asked for.

    Raises:
        FileNotFoundError: `root` does not hold the data in the layout expected.
        ValueError: an unknown name, or an argument the dataset has no use for.
    """
    if name not in (*DATASETS, "auto"):
        raise ValueError(f"no dataset {name!r}; choose one of {', '.join(DATASETS)} or auto")
    if name != "synthetic" and not str(root):
        raise ValueError(f"{name}: needs the folder of the data")
    if name == "auto":
        name = detect_dataset(root)
    if scenes and name != "synthetic":
        raise ValueError(f"{', '.join(scenes)}: for synthetic scenes only, not for {name}")
    return DATASETS[name](_Request(Path(root), split, render_pass, scenes))


def detect_dataset(root: str | Path) -> str:
    """Name the dataset whose layout `root` has: a key of `DATASETS`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: its layout is none of those known.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    if is_sceneflow(root):
        return "sceneflow"
    if is_pair_folder(root):
        return "folder"
    raise ValueError(
        f"{root}: no known layout; expected Scene Flow as released (FlyingThings3D, Monkaa or "
        "Driving inside), or folders of left.png, right.png and disp.npy|.pfm|.png"
    )
