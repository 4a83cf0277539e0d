"""Training samples: random crops with geometric and photometric augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from ea_psmnet.datasets.augment.geometric import Geometric, geometric_crop, random_crop
from ea_psmnet.datasets.augment.photometric import Photometric, photometric
from ea_psmnet.sample import StereoSample


@dataclass(frozen=True)
class Recipe:
    """Augmentation of training samples: which changes, and how strong."""

    geometric: Geometric | None = None
    """Scale and tilt; None for a crop only."""
    photometric: Photometric | None = None
    """Colours, blur, noise and covered patches; None leaves the images unchanged."""
    mirror: float = 0.0
    """Share of samples that `pick` mirrors, if the dataset has ground truth of the right view."""


AUGMENTATIONS: dict[str, Recipe] = {
    "none": Recipe(),
    "robust": Recipe(Geometric(), Photometric(), mirror=0.5),
}
"""Recipes by name. `none` is a random crop, as in PSMNet. `robust` is for networks that should
generalise to photographs of unseen cameras."""


def augment(
    sample: StereoSample, size: tuple[int, int], recipe: Recipe, rng: np.random.Generator
) -> StereoSample:
    """Crop and augment a sample for training; the same state of `rng` gives the same result.

    The result has exactly `size` (height, width), in pixels, and arrays of its own.

    Raises:
        ValueError: The image is too small.
    """
    if recipe.geometric is None:
        crop = random_crop(sample, size, rng)
    else:
        crop = geometric_crop(sample, size, recipe.geometric, rng)
    if recipe.photometric is None:
        return crop
    return photometric(crop, recipe.photometric, rng)


class _Mirrored(Protocol):
    """A dataset with ground truth of both views."""

    def mirrored(self, index: int) -> StereoSample: ...


def pick(
    dataset: Sequence[StereoSample], index: int, recipe: Recipe, rng: np.random.Generator
) -> StereoSample:
    """Read a sample, or at random its mirrored twin.

    A flip alone would negate the disparity, so the views are also swapped, which needs ground truth
    of the right view. If the dataset has none (`has_right_truth`), or the recipe mirrors nothing,
    nothing is drawn from `rng`.
    """
    has_twins = recipe.mirror > 0 and getattr(dataset, "has_right_truth", False)
    if has_twins and rng.random() < recipe.mirror:
        return cast(_Mirrored, dataset).mirrored(index)
    return dataset[index]
