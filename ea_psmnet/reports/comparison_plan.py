"""What `compare` is asked for, as a list of trials; what is wrong shows here, before any runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from datasets.builder import build_dataset
from ea_psmnet.models.config import PSMNetConfig, preset
from ea_psmnet.models.weights import find_weights, load_state
from ea_psmnet.reports.resources import parse_volume
from ea_psmnet.reports.trial import Trial, Work
from ea_psmnet.reports.variants import at_sites, parse_variant
from ea_psmnet.tables import check_range

__all__ = ["DEFAULT_SIZES", "DEFAULT_VARIANTS", "Load", "Network", "named_networks", "plan"]

DEFAULT_VARIANTS = ("baseline", "efficient", "non-local")
"""The paper's three."""

DEFAULT_SIZES = ("256x512",)
"""PSMNet's training crop; Scene Flow's images, padded to 544x960, take four times as long."""


@dataclass(frozen=True)
class Network:
    """A column of the paper's Table 5."""

    label: str
    config: PSMNetConfig
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Load:
    """What every network is given to do."""

    sizes: Sequence[str] = ()
    """Of random images; none means the defaults, or with a dataset none."""
    batches: Sequence[int] = (1,)
    works: Sequence[Work] = ("inference", "training")
    root: Path | None = None
    """A dataset to predict."""
    data: str = "auto"


def named_networks(
    variants: Sequence[str],
    presets: Sequence[str],
    checkpoints: Sequence[Path],
    *,
    sites: Sequence[str],
    width: float,
    max_disparity: int,
) -> list[Network]:
    """Networks in the order checkpoints, presets, variants; `DEFAULT_VARIANTS` where none is named.

    Raises:
        ValueError, FileNotFoundError: an unknown name, or a file that is no checkpoint.
    """
    if not (variants or presets or checkpoints):
        variants = DEFAULT_VARIANTS
    checkpoints = [find_weights(path) for path in checkpoints]
    stems = [path.stem for path in checkpoints]
    trained = [
        Network(
            _label(path, stems), replace(load_state(path)[0], max_disparity=max_disparity), path
        )
        for path in checkpoints
    ]
    fresh = [
        Network(name, replace(preset(name), max_disparity=max_disparity)) for name in presets
    ] + [
        Network(text, parse_variant(text, width=width, max_disparity=max_disparity))
        for text in at_sites(variants, sites)
    ]
    return trained + fresh


def _label(path: Path, stems: Sequence[str]) -> str:
    """The file's name; where several have it, with the folder's."""
    return path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}/{path.stem}"


def plan(networks: Sequence[Network], load: Load, **options: Any) -> list[Trial]:
    """A trial for every network and workload.

    Args:
        networks: what to try.
        load: what with.
        options: of `Trial`: budget, device, precision, allocator, repeats.

    Raises:
        ValueError, FileNotFoundError: an impossible size or batch, or no dataset.
    """
    check_range("repeats", options.get("repeats", 1), 1, 1000)
    shapes = _shapes(load, max(network.config.max_disparity for network in networks))
    works: list[tuple[Work, tuple[int, int, int] | None]] = list(product(load.works, shapes))
    if load.root is not None:
        build_dataset(load.data, load.root, split="test")
        works.append(("dataset", None))
    return [
        Trial(
            label=network.label,
            network=network.config.to_dict(),
            checkpoint=str(network.checkpoint) if network.checkpoint else None,
            work=work,
            shape=shape,
            data=load.data,
            root=str(load.root) if load.root else None,
            **options,
        )
        for work, shape in works
        for network in networks
    ]


def _shapes(load: Load, max_disparity: int) -> list[tuple[int, int, int]]:
    """Batch, height and width, in order of pixels."""
    sizes = load.sizes or (() if load.root else DEFAULT_SIZES)
    shapes = [(batch, *_size(text, max_disparity)) for text in sizes for batch in load.batches]
    for batch in load.batches:
        check_range("a batch", batch, 1, 2**16)
    return sorted(set(shapes), key=lambda shape: (shape[0], shape[1] * shape[2]))


def _size(text: str, max_disparity: int) -> tuple[int, int]:
    sides = parse_volume(text)
    if len(sides) != 2 or any(side % 16 for side in sides):
        raise ValueError(f"'{text}' is no size: write height and width, multiples of 16: 544x960")
    for side in sides:
        check_range(f"a side of '{text}'", side, 16, 2**14)
    if sides[1] < max_disparity:
        raise ValueError(
            f"images of {text} are narrower than the {max_disparity} disparities: lower "
            "--max-disparity or take larger --sizes"
        )
    return sides[0], sides[1]
