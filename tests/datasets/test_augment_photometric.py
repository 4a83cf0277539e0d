"""Colours and details: each change is what its name says, and none moves a pixel."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from stereo_pairs import textured_pair

from ea_psmnet.datasets.augment.photometric import Photometric, Tone, photometric, toned
from ea_psmnet.sample import StereoSample

OFF = Photometric(
    shared=Tone(),
    own=Tone(),
    own_probability=0,
    grey_probability=0,
    one_grey_probability=0,
    blur_probability=0,
    noise_probability=0,
    jpeg_probability=0,
    patch_probability=0,
)
STRONG = Tone(1.3, 1.2, 1.3, 1.3, (1.2, 1.2, 1.2))


@pytest.fixture(scope="module")
def pair() -> StereoSample:
    return textured_pair()


@pytest.fixture(scope="module")
def same(pair) -> StereoSample:
    """Both views alike: what differs afterwards was made to differ."""
    return replace(pair, right=pair.left)


def changed(sample: StereoSample, seed: int = 0, **ranges) -> StereoSample:
    return photometric(sample, replace(OFF, **ranges), np.random.default_rng(seed))


def ramp() -> NDArray[np.uint8]:
    return np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)


def values(tone: Tone) -> NDArray[np.int64]:
    """The three channels that a grey ramp becomes, (256, 3)."""
    return toned(ramp(), tone)[0].astype(int)


def test_with_everything_off_nothing_changes(pair):
    sample = changed(pair)
    np.testing.assert_array_equal(sample.left, pair.left)
    np.testing.assert_array_equal(sample.right, pair.right)


def test_only_images_change_and_the_given_ones_are_not_written_to(pair):
    before = pair.left.copy(), pair.right.copy()
    sample = photometric(pair, Photometric(patch_probability=1), np.random.default_rng(1))
    for field in ("disparity", "valid", "masks", "name"):
        assert getattr(sample, field) is getattr(pair, field)
    np.testing.assert_array_equal(pair.left, before[0])
    np.testing.assert_array_equal(pair.right, before[1])
    assert (sample.left != pair.left).mean() > 0.5


def test_curves_are_what_their_names_say():
    ideal = np.arange(256)
    np.testing.assert_array_equal(values(Tone()), np.repeat(ideal[:, None], 3, 1))
    np.testing.assert_array_equal(values(Tone(exposure=2))[:, 0], np.minimum(2 * ideal, 255))
    np.testing.assert_allclose(values(Tone(gamma=1.5))[:, 1], 255 * (ideal / 255) ** 1.5, atol=0.6)
    np.testing.assert_allclose(values(Tone(contrast=0.5))[:, 2], 63.75 + ideal / 2, atol=0.8)
    gains = values(Tone(gains=(0.5, 1.0, 1.25)))[200]
    np.testing.assert_array_equal(gains, [100, 200, 250])


def test_contrast_keeps_the_mean_of_any_image(pair):
    dark = (pair.left // 3).astype(np.uint8)
    lively = toned(dark, Tone(contrast=1.4))
    assert lively.mean() == pytest.approx(dark.mean(), abs=1)
    assert lively.std() == pytest.approx(1.4 * dark.std(), rel=0.03)


def test_saturation_moves_colours_from_and_to_their_grey(pair):
    grey = toned(pair.left, Tone(saturation=0))
    expected = pair.left @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey, np.repeat(expected[..., None], 3, 2), atol=1)
    half = toned(pair.left, Tone(saturation=0.5))
    np.testing.assert_allclose(half, (pair.left + expected[..., None]) / 2, atol=1)


def test_tones_cover_their_ranges_evenly():
    rng = np.random.default_rng(0)
    ranges = Tone(1.3, 1.2, 1.5, 1.4, (1.1, 1.25, 1.3))
    logs = np.log([ranges.draw(rng).factors() for _ in range(2000)])
    limits = np.log(ranges.factors())
    assert (np.abs(logs) <= limits).all()
    np.testing.assert_allclose(logs.max(0), limits, rtol=0.02)
    np.testing.assert_allclose(logs.min(0), -limits, rtol=0.02)
    np.testing.assert_allclose(logs.std(0), limits / np.sqrt(3), rtol=0.05)
    assert np.abs(np.corrcoef(logs.T) - np.eye(7)).max() < 0.1


def test_shared_tones_change_both_views_alike_and_own_tones_apart(same):
    alike = [changed(same, seed, shared=STRONG) for seed in range(20)]
    assert all((sample.left == sample.right).all() for sample in alike)
    assert all((sample.left != same.left).any() for sample in alike)
    apart = [changed(same, seed, own=STRONG, own_probability=0.5) for seed in range(200)]
    differ = [(sample.left != sample.right).any() for sample in apart]
    assert 0.4 < np.mean(differ) < 0.6


def test_the_recipe_reaches_the_exposures_of_real_pairs(same):
    """Gamma of 1.5 and gains a quarter apart between the views lie within what is drawn."""
    rng, own = np.random.default_rng(0), Photometric().own
    logs = np.log([own.draw(rng).factors() / own.draw(rng).factors() for _ in range(2000)])
    assert (np.abs(logs[:, 2]) > np.log(1.5)).mean() > 0.002
    assert (np.abs(logs[:, 4:]) > np.log(1.25)).mean(0).min() > 0.05


def test_grey_takes_both_views_or_one(same):
    def is_grey(view: NDArray) -> bool:
        return bool((np.ptp(view, axis=-1) == 0).all())

    both = changed(same, grey_probability=1)
    assert is_grey(both.left)
    assert is_grey(both.right)
    one = [changed(same, seed, one_grey_probability=1) for seed in range(20)]
    assert {(is_grey(s.left), is_grey(s.right)) for s in one} == {(True, False), (False, True)}


def test_blur_takes_detail_from_a_view_at_a_time(same):
    def detail(view: NDArray) -> float:
        return float(cv2.Laplacian(view, cv2.CV_32F).std())

    blurred = [changed(same, seed, blur_probability=0.5, blur=2.0) for seed in range(40)]
    shares = np.array([[detail(v) / detail(same.left) for v in (s.left, s.right)] for s in blurred])
    assert 0.25 < (shares == 1).mean() < 0.75
    assert ((shares == 1).any(1) & (shares < 1).any(1)).any()
    assert shares.min() < 0.5
    assert shares.max() == 1


def test_blur_does_not_shift(same):
    point = np.zeros_like(same.left)
    point[40, 50] = 255
    sample = changed(replace(same, left=point), 3, blur_probability=1)
    spread = sample.left[..., 0] / sample.left[..., 0].sum()
    assert 0.1 < spread.max() < 0.9
    assert (spread * np.arange(96)[:, None]).sum() == pytest.approx(40)
    assert (spread * np.arange(200)).sum() == pytest.approx(50)


def test_noise_has_the_strength_told_and_is_each_views_own(same):
    grey = replace(same, left=np.full_like(same.left, 128), right=np.full_like(same.left, 128))
    noisy = [changed(grey, seed, noise_probability=1, noise=8.0) for seed in range(60)]
    stds = np.array([[view.astype(float).std() for view in (s.left, s.right)] for s in noisy])
    assert stds.max() < 8.2
    assert stds.max() > 6.5
    assert stds.mean() == pytest.approx(4, abs=0.6)
    assert np.mean([view.mean() for s in noisy for view in (s.left, s.right)]) == pytest.approx(
        128, abs=0.05
    )
    pictures = [(view - 128.0).ravel() for view in (noisy[0].left, noisy[0].right)]
    assert abs(np.corrcoef(*pictures)[0, 1]) < 0.02


def test_compression_loses_a_little_and_keeps_colours_in_place(same):
    sample = changed(same, jpeg_probability=1)
    error = sample.left.astype(int) - same.left
    assert 0.5 < np.abs(error).mean() < 12
    assert np.abs(error.mean((0, 1))).max() < 1.5


def test_patches_cover_the_right_view_only_and_as_much_as_told(pair):
    ranges = {"patch_probability": 1.0, "patches": 1, "patch_side": (0.25, 0.5)}
    for seed in range(30):
        sample = changed(pair, seed, **ranges)
        np.testing.assert_array_equal(sample.left, pair.left)
        rows, columns = np.nonzero((sample.right != pair.right).any(-1))
        assert 22 <= np.ptp(rows) + 1 <= 48
        assert 22 <= np.ptp(columns) + 1 <= 48


def test_patches_are_plain_or_turned(pair):
    plain = turned = 0
    for seed in range(30):
        sample = changed(pair, seed, patch_probability=1, patches=1, patch_side=(0.3, 0.3))
        rows, columns = np.nonzero((sample.right != pair.right).any(-1))
        box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        mean = np.rint(pair.right.mean((0, 1)))
        plain += bool((sample.right[box] == mean).all())
        turned += bool((sample.right[box] == pair.right[box][::-1, ::-1]).all())
    assert plain + turned == 30
    assert min(plain, turned) > 5


def test_patches_have_their_probability_and_number(pair):
    def covered(seed: int) -> int:
        sample = changed(pair, seed, patch_probability=0.5, patches=3, patch_side=(0.1, 0.1))
        different = (sample.right != pair.right).any(-1).astype(np.uint8)
        whole = cv2.morphologyEx(different, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
        return cv2.connectedComponents(whole)[0] - 1

    counts = np.bincount([covered(seed) for seed in range(200)])
    assert len(counts) == 4
    assert 75 < counts[0] < 125
    assert counts[1:].min() > 15


def test_tiny_images_have_tiny_patches():
    image = np.zeros((2, 3, 3), np.uint8)
    truth = np.zeros((2, 3), np.float32)
    tiny = StereoSample(image, image, truth, truth == 0, "tiny")
    assert changed(tiny, patch_probability=1, patch_side=(0.1, 3.0)).right.shape == (2, 3, 3)
