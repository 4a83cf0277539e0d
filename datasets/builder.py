"""Every dataset by its name: one table, one function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.crestereo import CreStereo, is_crestereo
from datasets.eth3d import Eth3d, is_eth3d
from datasets.falling_things import FallingThings, is_falling_things
from datasets.folder import PairFolder, is_pair_folder
from datasets.instereo2k import InStereo2k, is_instereo2k
from datasets.kitti import Kitti2012, Kitti2015, is_kitti2012, is_kitti2015
from datasets.listing import PairList, is_pair_list
from datasets.middlebury import (
    MiddEval3,
    Middlebury2014,
    Middlebury2021,
    is_middeval3,
    is_middlebury2014,
    is_middlebury2021,
)
from datasets.names import RenderPass, Split
from datasets.sceneflow import SceneFlow, is_sceneflow
from datasets.sintel import Sintel, is_sintel
from datasets.tartanair import TartanAir, TartanAirV2, is_tartanair, is_tartanair_v2
from datasets.virtual_kitti import VirtualKitti, is_virtual_kitti
from ea_psmnet.sample import StereoSample

__all__ = ["DATASETS", "Entry", "build_dataset", "detect_dataset"]

_ABOVE, _BELOW = 3, 20
"""How many folders are looked into, above and below one that is none."""
_AMONG_OTHERS = ("folder", "middlebury2014", "middlebury2021", "tartanair", "tartanair-v2")
"""Sets of folders of any name, which may lie beside anything: finding them above tells little."""


@dataclass(frozen=True)
class Entry:
    """A dataset of the table."""

    reader: Callable[..., Sequence[StereoSample]]
    """Builds it from the folder and its own keyword arguments."""
    recognises: Callable[[str | Path], bool]
    """Whether a folder or file is of this kind."""


def _synthetic(root: Path, **scenes: Any) -> Sequence[StereoSample]:
    # Late: readers of files need no renderer.
    from datasets.synthetic import SyntheticScenes

    series = SyntheticScenes(**scenes)
    series.prepare()  # before a loader forks its workers, so that they share the textures
    return series


DATASETS = {
    "list": Entry(PairList, is_pair_list),
    "sceneflow": Entry(SceneFlow, is_sceneflow),
    "kitti2012": Entry(Kitti2012, is_kitti2012),
    "kitti2015": Entry(Kitti2015, is_kitti2015),
    "middlebury2014": Entry(Middlebury2014, is_middlebury2014),
    "middlebury2021": Entry(Middlebury2021, is_middlebury2021),
    "middeval3": Entry(MiddEval3, is_middeval3),
    "eth3d": Entry(Eth3d, is_eth3d),
    "sintel": Entry(Sintel, is_sintel),
    "virtual-kitti": Entry(VirtualKitti, is_virtual_kitti),
    "tartanair": Entry(TartanAir, is_tartanair),
    "tartanair-v2": Entry(TartanAirV2, is_tartanair_v2),
    "folder": Entry(PairFolder, is_pair_folder),
    "instereo2k": Entry(InStereo2k, is_instereo2k),
    "crestereo": Entry(CreStereo, is_crestereo),
    "falling-things": Entry(FallingThings, is_falling_things),
    "synthetic": Entry(_synthetic, lambda _: False),
}
"""Datasets by name, in the order in which messages tell them."""


def build_dataset(
    name: str,
    root: str | Path = "",
    *,
    split: Split = "train",
    render_pass: RenderPass = "clean",
    require_truth: bool = True,
    **options: Any,
) -> Sequence[StereoSample]:
    """Build a dataset.

    Args:
        name: A key of `DATASETS`, or `auto` for what `detect_dataset` sees in `root`.
        root: The folder to read, or the file of `list`; `synthetic` needs none.
        split: `train` or `test`; `folder` and `list` have no splits.
        render_pass: `clean`, `final` or `both`, of `sceneflow` and `sintel`.
        require_truth: Whether `folder` and `list` refuse pairs without truth; others always do.
        **options: Further arguments of the set's reader, as `resolution` of `MiddEval3`.

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
    accepted = _accepted(name)
    if "render_pass" not in accepted and render_pass != "clean":
        raise ValueError(f"render_pass={render_pass!r}: {name} has no render passes")
    if unknown := options.keys() - accepted:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no option of {name}, "
            f"which takes {', '.join(sorted(accepted)) or 'none'}"
        )
    options |= {"split": split, "render_pass": render_pass, "require_truth": require_truth}
    known = {key: value for key, value in options.items() if key in accepted}
    return DATASETS[name].reader(Path(root), **known)


def detect_dataset(root: str | Path) -> str:
    """Name the dataset whose layout `root` has: a key of `DATASETS`.

    Raises:
        FileNotFoundError: there is no such folder or list.
        ValueError: its layout is none of those known, or it holds several datasets.
    """
    if not Path(root).exists():
        raise FileNotFoundError(f"{root}: no such folder")
    names = _recognised(Path(root))
    if len(names) > 1:
        raise ValueError(
            f"{root}: holds {' and '.join(names)}; choose one by its name (--data {names[0]})"
        )
    if names:
        return names[0]
    raise ValueError(
        f"{root}: no known layout{_nearby(Path(root))}; expected one of {', '.join(DATASETS)} "
        "(each tells its tree in datasets/), simplest a folder a pair with left.png, right.png "
        "and disp.npy|.pfm|.png"
    )


def _recognised(root: Path) -> list[str]:
    return [name for name, entry in DATASETS.items() if entry.recognises(root)]


def _nearby(root: Path) -> str:
    """Which folder above or below holds a dataset: people name one too high or too low."""
    inside = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    for folder in (*root.resolve().parents[:_ABOVE], *inside[:_BELOW]):
        for name in _recognised(folder):
            if folder in inside or name not in _AMONG_OTHERS:
                return f", though {folder} holds {name}"
    return ""


def _accepted(name: str) -> set[str]:
    """Keyword arguments of a dataset's reader."""
    reader: Callable[..., Any] = DATASETS[name].reader
    if name == "synthetic":
        from datasets.synthetic import SyntheticScenes

        reader = SyntheticScenes
    parameters = inspect.signature(reader).parameters.values()
    return {item.name for item in parameters if item.kind is inspect.Parameter.KEYWORD_ONLY}
