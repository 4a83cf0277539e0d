"""Other ranges than the network's, the right view, and what the two views together say."""

from __future__ import annotations

import numpy as np
import pytest
from stereo_pairs import textured_pair

from ea_psmnet import StereoMatcher
from ea_psmnet.calibration import Calibration
from ea_psmnet.datasets.folder import PairFolder
from ea_psmnet.inference.pair_prediction import find_range
from ea_psmnet.inference.result import StereoResult

FAR, NEAR = 5, 20
"""Disparities at both ends of the pair's background, in pixels. The coarse pass may lose the
rectangle before it, a twentieth of the pixels."""


@pytest.fixture(scope="module")
def sample():
    return textured_pair(128, 384)


@pytest.fixture(scope="module")
def result(matcher, sample):
    return matcher(sample.left, sample.right, right_view=True)


def turned(sample, columns):
    """The pair with its right image moved, so that disparities are smaller by the columns."""
    return sample.left, np.roll(sample.right, columns, axis=1)


def error(found, sample, columns=0):
    """Median error where both views see the point, of the pair `turned` by the columns."""
    inside = sample.masks["nonocc"].copy()
    inside[:, :80] = inside[:, -80:] = False
    return np.median(np.abs(found + columns - sample.disparity)[inside])


# The right view -----------------------------------------------------------------------------------


def test_the_right_view_of_a_mirrored_pair_is_the_left_view(matcher, sample, result):
    mirrored = sample.right[:, ::-1], sample.left[:, ::-1]
    (other,) = matcher.match([mirrored], right_view=True)
    assert np.array_equal(other.right[:, ::-1], result.disparity)
    assert np.array_equal(other.disparity[:, ::-1], result.right)


def test_the_right_view_is_not_predicted_unless_asked_for(matcher, sample, result):
    plain = matcher(sample.left, sample.right)
    assert plain.right is None
    assert np.array_equal(plain.disparity, result.disparity)
    with pytest.raises(ValueError, match="right_view=True"):
        _ = plain.occluded


def test_the_two_views_mark_what_only_one_sees(sample, result):
    hidden = ~sample.masks["nonocc"]
    assert 0.01 < hidden.mean() < 0.2
    assert result.occluded[hidden].mean() > 0.3  # noise tells no side; see the real pairs
    assert result.occluded[~hidden].mean() < 0.1


def test_the_two_views_of_real_pairs_mark_most_of_what_only_one_sees(shared_data):
    matcher = StereoMatcher.load("ea-light", max_disparity=64, device="cpu")
    for name in ("mb03_cones", "mb14_adirondack_q", "mb01_venus"):
        (sample,) = PairFolder(shared_data / "stereo" / name)
        visible = sample.masks["nonocc"]
        found = matcher(sample.left, sample.right, right_view=True).occluded
        marked, wrongly = (found[sample.valid & part].mean() for part in (~visible, visible))
        assert marked > 0.8 > 0.15 > wrongly, (name, marked, wrongly)


def test_a_range_below_zero_holds_for_both_views(matcher, sample, result):
    moved = matcher.searching(-16, 48)(*turned(sample, 12), right_view=True)
    assert error(result.disparity, sample) < 0.5
    assert error(moved.disparity, sample, 12) < 0.5
    assert moved.disparity.min() < 0
    shifted = np.roll(result.right, 12, axis=1) - 12
    assert np.median(np.abs(moved.right - shifted)[:, 80:-80]) < 0.5
    assert matcher.min_disparity == 0


def test_a_range_below_zero_loses_nothing_at_the_border(matcher, sample):
    strip = np.zeros(sample.disparity.shape, bool)
    strip[:, int(NEAR) + 1 : 64] = True
    strip &= sample.masks["nonocc"]
    found = (matcher.searching(-least, 96)(sample.left, sample.right) for least in (0, 64))
    errors = [np.abs(each.disparity - sample.disparity)[strip].mean() for each in found]
    assert errors[1] < 1.5 * errors[0] + 0.1


@pytest.mark.parametrize(
    ("minimum", "kind"), [(0.5, TypeError), (True, TypeError), (9999, ValueError)]
)
def test_an_impossible_smallest_disparity_is_refused(matcher, minimum, kind):
    with pytest.raises(kind, match="min_disparity"):
        matcher.searching(minimum, 48)


# The range of a pair ------------------------------------------------------------------------------


def test_a_pair_that_fits_keeps_the_networks_range(matcher, sample):
    found = find_range(matcher, (sample.left, sample.right))
    assert found.low < FAR + 3
    assert NEAR - 2 < found.high < 48
    assert (found.minimum, found.count) == (0, 48)
    assert found.beyond == 0


@pytest.mark.parametrize("columns", [20, -30])
def test_the_range_of_cameras_that_are_turned_is_found(matcher, sample, columns):
    pair = turned(sample, columns)
    found = find_range(matcher, pair)
    assert found.minimum <= FAR - columns + 1
    assert found.minimum + found.count >= NEAR - columns
    assert found.beyond < 0.02
    before = matcher(*pair).disparity
    after = matcher.searching(found.minimum, found.count)(*pair).disparity
    assert error(after, sample, columns) < 0.5
    assert error(after, sample, columns) < error(before, sample, columns)


def test_a_pair_that_is_narrower_than_the_coarse_range_keeps_its_own(matcher, sample):
    assert np.ptp(sample.disparity[:64, 150:214]) < NEAR
    pair = [np.ascontiguousarray(view[:64, 150:214]) for view in (sample.left, sample.right)]
    found = find_range(matcher, pair)
    assert (found.minimum, found.count) == (0, 48)


def test_a_range_that_is_too_short_becomes_longer(sample):
    short = StereoMatcher.load("ea-light", max_disparity=16, device="cpu", precision="exact")
    found = find_range(short, (sample.left, sample.right))
    assert found.minimum <= FAR
    assert found.count == 32
    assert f"{found.minimum} to {found.minimum + 32} px" in str(found)


# What follows from confidence ---------------------------------------------------------------------


def made_result(disparity, confidence, calibration=None):
    rows = (np.array([values], np.float32) for values in (disparity, confidence))
    return StereoResult(
        next(rows), np.zeros((1, len(disparity), 3), np.uint8), next(rows), calibration=calibration
    )


def test_the_deviation_of_depth_is_that_of_the_formula():
    calibration = Calibration(f=1000, cx=0, cy=0, baseline=0.1)
    result = made_result([50, 10], 1 - np.exp([-1, -2]), calibration)
    scales = np.array([[1, 0.5]])
    np.testing.assert_allclose(result.disparity_deviation, np.sqrt(2) * scales, rtol=1e-4)
    # Z = 100 / d metres: 2 and 10; Z^2 / 100 for each pixel.
    expected = np.array([[4, 100]]) / 100 * np.sqrt(2) * scales
    np.testing.assert_allclose(result.depth_deviation, expected, rtol=1e-4)


def test_pixels_of_less_confidence_are_masked():
    masked = made_result([1, 2, 3], [0.2, 0.5, 0.9]).masked(0.5)
    np.testing.assert_array_equal(masked.disparity, [[np.nan, 2, 3]])
    with pytest.raises(ValueError, match="min_confidence"):
        masked.masked(1.5)


def test_without_confidence_there_is_no_deviation(result):
    for wanted in ("disparity_deviation", "depth_deviation"):
        with pytest.raises(ValueError, match=r"confidence=True|calibration"):
            getattr(result, wanted)
    with pytest.raises(ValueError, match="confidence=True"):
        result.masked(0.5)


def test_confidence_of_a_smaller_prediction_is_of_larger_pixels():
    half = made_result([4, 4], 1 - np.exp([-1, -1]))
    whole = half.resampled(np.zeros((2, 4, 3), np.uint8))
    np.testing.assert_allclose(whole.disparity, 8)
    np.testing.assert_allclose(whole.confidence, 1 - np.exp(-0.5), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [0, 60, -80])
def test_the_range_of_a_real_pair(shared_data, columns):
    sample = PairFolder(shared_data / "stereo" / "mb03_cones")[0]
    found = find_range(StereoMatcher.load(max_disparity=96, device="cpu"), turned(sample, columns))
    low, high = np.percentile(sample.disparity[sample.valid], (1, 99)) - columns
    assert found.minimum <= low
    assert high <= found.minimum + found.count
    assert found.count == 96
    assert (found.minimum == 0) == (columns == 0)
