"""`data`: check, show and render datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

from ea_psmnet.datasets.names import DatasetName, RenderPass, Split


def check(
    root: tyro.conf.Positional[Path],
    *,
    data: DatasetName = "auto",
    max_disparity: float = 192,
    pairs: int = 32,
    whole: bool = True,
    workers: int = 4,
    out: Path | None = None,
) -> int:
    """Open every file of a dataset and report what is wrong with it.

    The check covers damaged files, image sizes, implausible disparities and, for Scene Flow, the
    published numbers of frames; and for some pairs, whether the views are swapped or not rectified,
    and whether the ground truth maps one to the other. Pairs need no ground truth. Exit codes: 0
    nothing is wrong; 1 something is wrong; 2 there is nothing to check.

    Args:
        root: Folder of the dataset, or a list of pairs.
        data: Kind of dataset, as for `evaluate --data`; auto detects it.
        max_disparity: Disparity in pixels above which pixels are counted.
        pairs: Number of pairs whose views are compared.
        whole: Report fewer frames than published as a problem.
        workers: Number of threads.
        out: JSON file for the report.
    """
    from ea_psmnet.datasets.check import check_dataset
    from ea_psmnet.files import write_json

    report = check_dataset(
        root, name=data, max_disparity=max_disparity, pairs=pairs, whole=whole, workers=workers
    )
    print(report.to_text())
    if out is not None:
        write_json(out, report.to_dict())
    return 1 if report.problems else 0


def show(
    root: tyro.conf.Positional[Path],
    *,
    out: Path,
    data: DatasetName = "auto",
    split: Split = "train",
    render_pass: RenderPass = "clean",
    count: int = 8,
    augment: Literal["none", "robust"] | None = None,
    seed: int = 0,
    size: tuple[int, int] = (256, 512),
) -> None:
    """Draw pairs with disparity and warp error on one sheet; ground truth is not needed.

    Args:
        root: Folder of the dataset, or a list of pairs.
        out: Picture to write, for example pairs.png.
        data: Kind of dataset, as for `evaluate --data`; auto detects it.
        split: Split of the dataset, if it has splits.
        render_pass: Rendering of Scene Flow and Sintel.
        count: Number of pairs, evenly spread over the dataset.
        augment: Show training samples with this augmentation instead of whole images.
        seed: Seed of the training samples.
        size: Height and width of the training samples.
    """
    import numpy as np

    from ea_psmnet.datasets.augment import AUGMENTATIONS, pick
    from ea_psmnet.datasets.augment import augment as changed
    from ea_psmnet.datasets.builder import build_dataset
    from ea_psmnet.datasets.check import spread
    from ea_psmnet.files import write_image
    from ea_psmnet.inference.outputs import contact_sheet
    from ea_psmnet.tables import check_range

    check_range("count", count, 1, 10**6)
    check_range("seed", seed, 0, 2**32 - 1)
    dataset = build_dataset(data, root, split=split, render_pass=render_pass, require_truth=False)
    recipe, rng = AUGMENTATIONS[augment or "none"], np.random.default_rng(seed)
    samples = [pick(dataset, place, recipe, rng) for place in spread(len(dataset), count)]
    if augment is not None:
        samples = [changed(sample, size, recipe, rng) for sample in samples]
    write_image(out, contact_sheet(samples, str(root)))


def data() -> None:
    """Check, show and render datasets."""
