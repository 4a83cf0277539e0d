"""Training samples: a crop, and what a recipe changes in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from datasets.augment_geometric import Geometric, geometric_crop
from datasets.augment_photometric import Photometric, photometric
from datasets.transforms import random_crop
from ea_psmnet.sample import StereoSample

__all__ = ["AUGMENTATIONS", "Recipe", "augment", "pick"]


@dataclass(frozen=True)
class Recipe:
    """What changes in a training sample, and how much."""

    geometric: Geometric | None = None
    """Scale and tilt; None: nothing but the crop."""
    photometric: Photometric | None = None
    """Colours, blur, noise, covered parts; None: images stay as they are."""
    mirror: float = 0.0
    """Share of samples that `pick` mirrors, from datasets with the right view's truth."""


AUGMENTATIONS: dict[str, Recipe] = {
    "none": Recipe(),
    "robust": Recipe(Geometric(), Photometric(), mirror=0.5),
}
"""Recipes by name. `none` is PSMNet's and the paper's: a random crop. `robust` is for networks that
shall work on photographs of cameras they never saw."""


def augment(
    sample: StereoSample, size: tuple[int, int], recipe: Recipe, rng: np.random.Generator
) -> StereoSample:
    """Make a training sample.

    Args:
        sample: The pair; its arrays are not written to.
        size: (height, width) in pixels.
        recipe: An entry of `AUGMENTATIONS`, or one's own.
        rng: Draws everything: the same state gives the same sample.

    Returns:
        A sample of exactly `size`, with arrays of its own.

    Raises:
        ValueError: the image is too small.
    """
    if recipe.geometric is None:
        crop = random_crop(sample, size, rng)
    else:
        crop = geometric_crop(sample, size, recipe.geometric, rng)
    if recipe.photometric is None:
        return crop
    return photometric(crop, recipe.photometric, rng)


class _Mirrored(Protocol):
    """A dataset with the truth of both views."""

    def mirrored(self, index: int) -> StereoSample: ...


def pick(
    dataset: Sequence[StereoSample], index: int, recipe: Recipe, rng: np.random.Generator
) -> StereoSample:
    """Read a sample, or its mirrored twin: views swapped and flipped, the right view's truth.

    A flip alone would turn every disparity's sign, so the views must swap places, and the truth of
    the right view become the left's. A dataset that has it says so in `has_right_truth`; with
    others, and with recipes that mirror nothing, nothing is drawn from `rng`.
    """
    has_twins = recipe.mirror > 0 and getattr(dataset, "has_right_truth", False)
    if has_twins and rng.random() < recipe.mirror:
        return cast(_Mirrored, dataset).mirrored(index)
    return dataset[index]
