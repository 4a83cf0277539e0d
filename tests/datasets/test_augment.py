"""Recipes: the paper's is a crop and nothing else; the robust one keeps truth and pair together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stereo_pairs import textured_pair, warp_correlation, warp_error

from ea_psmnet.datasets.augment import AUGMENTATIONS, Recipe, augment, pick
from ea_psmnet.datasets.augment.geometric import random_crop
from ea_psmnet.datasets.augment.photometric import Photometric
from ea_psmnet.sample import StereoSample

SIZE = (64, 144)
ROBUST = AUGMENTATIONS["robust"]


@pytest.fixture(scope="module")
def pair() -> StereoSample:
    return textured_pair(120, 260)


def equal(one: StereoSample, other: StereoSample) -> bool:
    fields = ("left", "right", "disparity", "valid")
    return all(np.array_equal(getattr(one, field), getattr(other, field)) for field in fields)


def test_none_is_the_random_crop_to_the_last_draw(pair):
    ours, plain = np.random.default_rng(5), np.random.default_rng(5)
    for _ in range(3):
        sample = augment(pair, SIZE, AUGMENTATIONS["none"], ours)
        assert equal(sample, random_crop(pair, SIZE, plain))
    assert ours.bit_generator.state == plain.bit_generator.state


def test_the_seed_decides(pair):
    first, again, other = (augment(pair, SIZE, ROBUST, np.random.default_rng(s)) for s in (7, 7, 8))
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize("recipe", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_samples_own_their_arrays(pair, recipe):
    for seed in range(10):
        sample = augment(pair, SIZE, recipe, np.random.default_rng(seed))
        assert sample.disparity.shape == SIZE
        assert sample.masks["nonocc"].shape == SIZE
        arrays = (sample.left, sample.right, sample.disparity, sample.valid)
        given = (pair.left, pair.right, pair.disparity, pair.valid)
        assert not any(np.shares_memory(a, b) for a, b in zip(arrays, given, strict=True))
        assert all(array.flags.c_contiguous for array in arrays)


def test_the_warp_check_holds_after_the_robust_recipe(pair):
    samples = [augment(pair, SIZE, ROBUST, np.random.default_rng(seed)) for seed in range(60)]
    right = np.array([warp_correlation(sample) for sample in samples])
    assert np.median(right) > 0.95
    assert np.percentile(right, 10) > 0.7
    assert np.median([warp_correlation(sample, sign=-1) for sample in samples]) < 0.3
    late = [replace(s, disparity=s.disparity + np.float32(6)) for s in samples]
    assert np.median([warp_correlation(sample) for sample in late]) < 0.7


def test_geometry_alone_leaves_the_colours_in_register(pair):
    recipe = Recipe(geometric=ROBUST.geometric)
    errors = [warp_error(augment(pair, SIZE, recipe, np.random.default_rng(s))) for s in range(40)]
    assert np.median(errors) < 1
    assert max(errors) < 12  # a tilt of 1.5 pixels down is left in the images


def test_colours_alone_come_after_the_same_crop(pair):
    recipe = Recipe(photometric=Photometric())
    sample = augment(pair, SIZE, recipe, np.random.default_rng(2))
    crop = random_crop(pair, SIZE, np.random.default_rng(2))
    np.testing.assert_array_equal(sample.disparity, crop.disparity)
    assert (sample.left != crop.left).any()


class Twins(list):
    """A dataset that can tell the right view's truth."""

    has_right_truth = True

    def mirrored(self, index: int) -> str:
        return f"mirrored {self[index]}"


def test_pick_mirrors_its_share_where_the_right_truth_is_known():
    rng = np.random.default_rng(0)
    picks = [pick(Twins("ab"), 1, Recipe(mirror=0.25), rng) for _ in range(1000)]
    assert set(picks) == {"b", "mirrored b"}
    assert picks.count("mirrored b") == pytest.approx(250, abs=50)


@pytest.mark.parametrize(("dataset", "mirror"), [(Twins("ab"), 0.0), (["a", "b"], 1.0)])
def test_pick_draws_nothing_where_nothing_is_mirrored(dataset, mirror):
    rng = np.random.default_rng(0)
    assert pick(dataset, 0, Recipe(mirror=mirror), rng) == "a"
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_a_dataset_may_say_that_it_has_no_right_truth():
    dataset = Twins("ab")
    dataset.has_right_truth = False
    assert pick(dataset, 0, Recipe(mirror=1.0), np.random.default_rng(0)) == "a"
