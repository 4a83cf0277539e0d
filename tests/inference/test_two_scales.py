"""Matching at two scales: which pass counts where, and what the second one searches."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from stereo_pairs import textured_pair

from ea_psmnet import StereoMatcher
from ea_psmnet.datasets.synthetic import SyntheticScenes
from ea_psmnet.inference.confidence import UNCALIBRATED
from ea_psmnet.inference.two_scales import fused, second_count


@pytest.fixture(scope="module")
def twice(matcher):
    return matcher.searching(0, 48, two_scales=True)


@pytest.fixture(scope="module")
def sample():
    return textured_pair(128, 384)


def image(*values):
    return np.array([values], np.float32)


def test_which_pass_counts():
    """Near what the first pass has around the pixel: the second; else the surer one."""
    coarse = np.full((20, 20), 10, np.float32), np.full((20, 20), 0.5, np.float32)
    coarse[0][:, 15:] = 40
    disparity, sure = np.full((20, 20), 11.5, np.float32), np.full((20, 20), 0.5, np.float32)
    disparity[8, [3, 4]] = 20
    sure[8, 4] = 0.6
    disparity[8, [10, 11]] = 40  # its neighbours up to 4 pixels away count
    fine = (np.repeat(np.repeat(v, 2, axis=0), 2, axis=1) for v in (2 * disparity, sure))
    found, masses = fused(coarse, tuple(fine))
    expected = np.full((20, 20), 11.5)
    expected[8, 3], expected[8, 4], expected[8, 10], expected[8, 11] = 10, 20, 10, 40
    expected[:, 19] = 40
    np.testing.assert_allclose(found, expected)
    other, chosen, near = masses
    np.testing.assert_allclose(other, 0.5)
    assert chosen[8, 4] == np.float32(0.6)
    np.testing.assert_allclose(near[8, [0, 4, 11]], [1 / 2.5, 1 / 11, 1 / 31])


def test_the_surest_of_four_pixels_counts():
    coarse = image(10, 10), image(0.5, 0.5)
    fine = (
        np.array([[20, 22, 20, 20], [18, 20, 20, 23]], np.float32),
        np.array([[0.1, 0.9, 0.2, 0.3], [0.4, 0.2, 0.1, 0.4]], np.float32),
    )
    disparity, masses = fused(coarse, fine)
    assert disparity.tolist() == [[11, 11.5]]
    np.testing.assert_allclose(masses[1, 0], [0.9, 0.4])


@pytest.mark.parametrize(
    ("largest", "first", "most", "expected"),
    [(20, 0, 384, 64), (24.1, 0, 384, 80), (20, -16, 384, 96), (180, 0, 192, 192)],
)
def test_what_the_second_pass_searches(largest, first, most, expected):
    assert second_count(image(1, largest), first, most, 16) == expected


@pytest.mark.slow
def test_scenes_have_fewer_errors(matcher, twice):
    scenes = SyntheticScenes(seed=3, split="test", size=(128, 256), count=2, max_disparity=40)
    once, both = [], []
    for scene in scenes:
        mask = scene.counted(48)
        for errors, each in ((once, matcher), (both, twice)):
            found = each(scene.left, scene.right).disparity
            errors.append((np.abs(found - scene.disparity)[mask] > 1).mean())
    assert np.mean(both) < 0.9 * np.mean(once)


def test_all_that_a_matcher_gives(matcher, twice, sample):
    result = twice(sample.left, sample.right, confidence=True, right_view=True)
    hidden = ~sample.masks["nonocc"]
    assert np.median(np.abs(result.disparity - sample.disparity)[~hidden]) < 0.2
    assert result.confidence.shape == result.disparity.shape
    wrong = np.abs(result.disparity - sample.disparity) > 1
    assert result.confidence[~wrong].mean() > result.confidence[wrong].mean() + 0.2
    assert result.occluded[hidden].mean() > 0.6 > 0.1 > result.occluded[~hidden].mean()
    evidence = twice.evidence(sample.left, sample.right)
    assert np.array_equal(evidence.disparity, result.disparity)
    assert evidence.masses.shape == (3, *result.disparity.shape)
    assert not np.array_equal(result.disparity, matcher(sample.left, sample.right).disparity)
    pairs = [(sample.left, sample.right)] * 2
    for each in twice.match(pairs):
        np.testing.assert_allclose(each.disparity, result.disparity, atol=0.01)


def test_negative_disparities(twice, sample):
    moved = twice.searching(-16, 48)
    assert moved.two_scales
    found = moved(sample.left, np.roll(sample.right, 12, axis=1)).disparity + 12
    inside = sample.masks["nonocc"].copy()
    inside[:, :80] = inside[:, -80:] = False
    assert np.median(np.abs(found - sample.disparity)[inside]) < 0.5
    assert found.min() < 12


def test_the_second_pass_fits_into_memory_by_tiles(sample):
    """Which the first one does not need."""
    given = {"max_disparity": 48, "device": "cpu", "precision": "exact", "two_scales": True}
    wide = StereoMatcher.load("ea-light", **given)
    first, second = (wide.plan(128 * k, 384 * k) for k in (1, 2))
    tight = StereoMatcher.load("ea-light", **given)
    tight._room = (first.bytes + second.bytes) // 2
    assert tight.plan(128, 384).is_whole
    assert not tight.plan(256, 768).is_whole
    apart = tight(sample.left, sample.right).disparity - wide(sample.left, sample.right).disparity
    assert np.abs(apart).mean() < 0.05
    tight._room = first.bytes + 1
    with pytest.raises(ValueError, match="second of two scales: 768 x 256 pixels"):
        tight(sample.left, sample.right)


def test_a_network_without_calibration_says_so(matcher, sample):
    plain = StereoMatcher(matcher.model, device="cpu", precision="exact", two_scales=True)
    with pytest.warns(UserWarning, match="uncalibrated"):
        plain(sample.left, sample.right)
    assert plain.confidence_map == UNCALIBRATED


def test_bundled_weights_are_calibrated_for_both():
    matcher = StereoMatcher.load("ea-light", two_scales=True, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maps = [matcher.searching(0, 192, two_scales=on).confidence_map for on in (False, True)]
    assert maps[0].weights != maps[1].weights


def test_a_switch_is_true_or_false():
    with pytest.raises(TypeError, match="two_scales is 2: give True or False"):
        StereoMatcher.load("ea-light", two_scales=2)
    with pytest.raises(TypeError, match="two_scales is None"):
        StereoMatcher.load("ea-light", two_scales=None)


def test_the_second_of_two_scales_of_a_narrow_pair_has_all_disparities_of_the_first(
    twice, monkeypatch
):
    """With negative ones, these may lie beyond the width of the enlarged images."""
    moved = twice.searching(-64, 128)
    searched = []
    searching = type(moved).searching
    monkeypatch.setattr(
        type(moved),
        "searching",
        lambda self, *range: searched.append(range) or searching(self, *range),
    )
    pair = (np.zeros((48, 80, 3), np.uint8),) * 2
    found = np.full((48, 80), 42, np.float32)
    moved._fused(pair, found, np.ones_like(found))
    ((first, count),) = searched
    assert first + count >= 2 * 42


def test_a_smallest_disparity_that_cannot_be_doubled_is_told(twice, sample):
    with pytest.raises(ValueError, match="second of two scales: min_disparity is -6000"):
        twice.searching(-3000, 48)(sample.left, sample.right)
