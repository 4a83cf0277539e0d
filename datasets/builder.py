"""All datasets by name: a table of them, and the functions that build and detect them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, get_args

from ea_psmnet.datasets import (
    crestereo,
    falling_things,
    folder,
    instereo2k,
    kitti,
    listing,
    middlebury,
    sceneflow,
    sintel,
    tartanair,
)
from ea_psmnet.datasets.names import RENDERINGS, RenderPass, Resolution, Split
from ea_psmnet.pair_lists import is_pair_list
from ea_psmnet.sample import StereoSample
from ea_psmnet.tables import check_choice

_ABOVE, _BELOW = 3, 20
"""Number of parent folders and of subfolders to search when a folder holds no dataset."""

Options = dict[str, Any]
"""Keyword arguments of a reader."""


def _splits(root: Path) -> list[Options]:
    return [{"split": split} for split in get_args(Split)]


def _splits_and_passes(root: Path) -> list[Options]:
    return [
        {"split": split, "render_pass": render_pass}
        for split, render_pass in product(get_args(Split), RENDERINGS)
    ]


def _resolutions(root: Path) -> list[Options]:
    named = middlebury.resolution_of(root)
    sizes = get_args(Resolution) if named is None else (named,)
    return [{"split": "train", "resolution": size} for size in sizes]


def _sceneflow_variants(root: Path) -> list[Options]:
    """Return variants whose images exist, or else the first, whose absence is then reported."""
    variants = _splits_and_passes(root)
    return [one for one in variants if sceneflow.holds_images(root, **one)] or variants[:1]


@dataclass(frozen=True)
class Entry:
    """A dataset of the table, with everything that sets it apart from the others."""

    reader: Callable[..., Sequence[StereoSample]]
    """Builds the dataset from its folder and its own keyword arguments."""
    recognises: Callable[[str | Path], bool]
    """Returns whether a folder or file holds this dataset."""
    any_name: bool = False
    """Whether its folders may have any name. Such folders may lie beside unrelated data, so finding
    them in a parent folder is not worth a hint."""
    needs_root: bool = True
    """Whether the dataset is read from a folder or file."""
    signature: Callable[[], Callable[..., Any]] | None = None
    """Imports the callable whose keyword-only arguments are the options; by default `reader`."""
    variants: Callable[[Path], Iterable[Options]] = _splits
    """Returns the options of each variant (split, render pass, resolution) for a check to look for
    in a folder."""
    all_variants: bool = False
    """Whether each variant must be complete; otherwise one must be there."""
    published_counts: Mapping[str, int] = field(default_factory=dict)
    """Number of frames of a complete download in each part (`FrameDataset.parts`)."""

    def options(self) -> set[str]:
        """Return the names of the reader's keyword arguments."""
        reader = self.reader if self.signature is None else self.signature()
        parameters = inspect.signature(reader).parameters.values()
        return {item.name for item in parameters if item.kind is inspect.Parameter.KEYWORD_ONLY}


def _scene_class() -> Callable[..., Any]:
    from ea_psmnet.datasets import synthetic  # late: readers of files need no renderer

    return synthetic.SyntheticScenes


def _synthetic(root: Path, **options: Any) -> Sequence[StereoSample]:
    scenes = _scene_class()(**options)
    scenes.prepare()  # before a loader forks its workers, so that they share the textures
    return scenes


DATASETS = {
    "list": Entry(listing.PairList, is_pair_list),
    "sceneflow": Entry(
        sceneflow.SceneFlow,
        sceneflow.is_sceneflow,
        variants=_sceneflow_variants,
        all_variants=True,
        published_counts=sceneflow.PUBLISHED_COUNTS,
    ),
    "kitti2012": Entry(kitti.Kitti2012, kitti.is_kitti2012),
    "kitti2015": Entry(kitti.Kitti2015, kitti.is_kitti2015),
    "middlebury2014": Entry(middlebury.Middlebury2014, middlebury.is_middlebury2014, any_name=True),
    "middlebury2021": Entry(middlebury.Middlebury2021, middlebury.is_middlebury2021, any_name=True),
    "middeval3": Entry(middlebury.MiddEval3, middlebury.is_middeval3, variants=_resolutions),
    "eth3d": Entry(middlebury.Eth3d, middlebury.is_eth3d),
    "sintel": Entry(sintel.Sintel, sintel.is_sintel, variants=_splits_and_passes),
    "virtual-kitti": Entry(kitti.VirtualKitti, kitti.is_virtual_kitti),
    "tartanair": Entry(tartanair.TartanAir, tartanair.is_tartanair, any_name=True),
    "tartanair-v2": Entry(tartanair.TartanAirV2, tartanair.is_tartanair_v2, any_name=True),
    "folder": Entry(folder.PairFolder, folder.is_pair_folder, any_name=True),
    "instereo2k": Entry(instereo2k.InStereo2k, instereo2k.is_instereo2k),
    "crestereo": Entry(crestereo.CreStereo, crestereo.is_crestereo),
    "falling-things": Entry(falling_things.FallingThings, falling_things.is_falling_things),
    "synthetic": Entry(_synthetic, lambda _: False, needs_root=False, signature=_scene_class),
}
"""Datasets by name, in the order in which messages list them."""


_WITH_TEST_SPLIT = ("sceneflow", "instereo2k", "synthetic")
"""Datasets whose test split has ground truth; folders of pairs may have one."""


def dataset_entry(name: str) -> Entry:
    """Return the entry of a dataset.

    Raises:
        ValueError: The name is unknown.
    """
    check_choice("dataset", name, DATASETS)
    return DATASETS[name]


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
        name: A key of `DATASETS`, or `auto` to detect the dataset from `root`.
        root: The dataset's folder, or the file of `list`; unused by `synthetic`.
        split: `train` or `test`; ignored by `list`, and by a `folder` with neither `train` nor
            `test`.
        render_pass: `clean`, `final` or `both`, for `sceneflow` and `sintel`.
        require_truth: Whether `folder` and `list` reject pairs without ground truth; all other
            datasets always do.
        **options: Further arguments of the dataset's reader, such as `resolution` of `MiddEval3`.

    Returns:
        Samples in a fixed order, each read or rendered on access.

    Raises:
        FileNotFoundError: `root` does not hold the data in the expected layout.
        ValueError: The name is unknown, or the dataset does not take an argument.
    """
    if (name == "auto" or dataset_entry(name).needs_root) and not str(root):
        raise ValueError(f"{name}: needs the folder of the data")
    if name == "auto":
        name = detect_dataset(root)
    entry = dataset_entry(name)
    accepted = entry.options()
    if "render_pass" not in accepted and render_pass != "clean":
        raise ValueError(f"render_pass={render_pass!r}: {name} has no render passes")
    if unknown := options.keys() - accepted:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no option of {name}, "
            f"which takes {', '.join(sorted(accepted)) or 'none'}"
        )
    options |= {"split": split, "render_pass": render_pass, "require_truth": require_truth}
    known = {key: value for key, value in options.items() if key in accepted}
    return entry.reader(Path(root), **known)


def measuring_split(name: str, root: str | Path = "") -> Split:
    """Return the split to measure errors on: `test` if the dataset has one, otherwise `train`.

    Args:
        name: A key of `DATASETS`, or `auto` to detect the dataset from `root`.
        root: The dataset's folder.

    Raises:
        FileNotFoundError, ValueError: The dataset cannot be detected.
    """
    name = detect_dataset(root) if name == "auto" else name
    own = name == "folder" and folder.has_splits(Path(root))
    has_test = name in _WITH_TEST_SPLIT or (own and folder.is_pair_folder(Path(root) / "test"))
    return "test" if has_test else "train"


def measuring_pairs(name: str, root: str | Path) -> Sequence[StereoSample]:
    """Build the `measuring_split` of a dataset, with the same arguments."""
    name = detect_dataset(root) if name == "auto" else name
    return build_dataset(name, root, split=measuring_split(name, root))


def has_passes(name: str) -> bool:
    """Return whether a dataset of the table has several render passes."""
    return "render_pass" in dataset_entry(name).options()


def detect_dataset(root: str | Path) -> str:
    """Return the name of the dataset in `root`, a key of `DATASETS`.

    Raises:
        FileNotFoundError: `root` does not exist.
        ValueError: The layout is unknown, or `root` holds several datasets.
    """
    if not Path(root).exists():
        raise FileNotFoundError(f"{root}: no such file or folder")
    names = _recognised(Path(root))
    if len(names) > 1:
        raise ValueError(
            f"{root}: holds {' and '.join(names)}; choose one by its name (--data {names[0]})"
        )
    if names:
        return names[0]
    raise ValueError(
        f"{root}: no known layout{_nearby(Path(root))}; expected one of {', '.join(DATASETS)} "
        "(see datasets/ for their layouts); the simplest is a folder per pair "
        "with left.png, right.png and disp.npy|.pfm|.png"
    )


def _recognised(root: Path) -> list[str]:
    return [name for name, entry in DATASETS.items() if entry.recognises(root)]


def _nearby(root: Path) -> str:
    """Name a parent folder or subfolder that holds a dataset, as a hint for the user."""
    inside = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    for place in (*root.resolve().parents[:_ABOVE], *inside[:_BELOW]):
        with suppress(OSError):  # folders of other users, and what vanishes meanwhile
            for name in _recognised(place):
                if place in inside or not DATASETS[name].any_name:
                    return f", though {place} holds {name}"
    return ""
