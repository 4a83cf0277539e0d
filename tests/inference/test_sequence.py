"""Smoothing and flicker on sequences whose values follow from the formula."""

import numpy as np
import pytest

from ea_psmnet.inference.video import Flicker, Smoothing, image_change

GREY = np.full((20, 30, 3), 90, np.uint8)


def level(value, shape=(20, 30)):
    return np.full(shape, value, np.float32)


def test_the_noise_of_a_camera_is_little_change_and_motion_is_much():
    rng = np.random.default_rng(0)
    first, second = (
        np.clip(90 + rng.normal(0, 3, (100, 100, 3)), 0, 255).astype(np.uint8) for _ in range(2)
    )
    noise = image_change(first, second)
    assert np.median(noise) < 1
    second[40:60, 40:60] = 160
    change = image_change(first, second)
    assert change[45:55, 45:55].min() > 50
    assert np.array_equal(change[:30], noise[:30])


def test_alternating_disparity_is_averaged_as_the_formula_says():
    """S = S + (1 - k)(d - S) for d = 0, 2, 0, ...: the steps fall to 2 (1 - k) / (1 + k)."""
    for strength in (0.0, 0.5, 0.8):
        smooth, flicker, raw = Smoothing(strength), Flicker(), Flicker()
        for number in range(60):
            disparity = level(2 * (number % 2))
            raw.add(GREY, disparity)
            flicker.add(GREY, smooth(GREY, disparity))
        assert raw.to_dict() == {"median": 2, "percentile_95": 2, "static": 1}
        expected = 2 * (1 - strength) / (1 + strength)
        assert flicker.to_dict()["median"] == pytest.approx(expected, rel=1e-3)


def test_what_moves_leaves_no_trail():
    moved = GREY.copy()
    moved[:, 15:] = 200
    smooth = Smoothing(0.9)
    smooth(GREY, level(10))
    now = smooth(moved, level(30))
    assert now[:, 20:] == pytest.approx(30, abs=1e-3)
    assert now[:, :10] == pytest.approx(12)


def test_unknown_disparities_do_not_spread():
    hole = level(5)
    hole[3, 4] = np.nan
    smooth = Smoothing(0.5)
    assert np.isnan(smooth(GREY, hole)).sum() == 1
    assert np.array_equal(smooth(GREY, level(7))[3, 4], 7)


def test_flicker_counts_static_pixels_alone():
    moved = GREY.copy()
    moved[:, 15:] = 200
    flicker = Flicker()
    disparity = level(10)
    flicker.add(GREY, disparity)
    changed = disparity.copy()
    changed[:, :13] += 1
    changed[:, 13:] += 50
    flicker.add(moved, changed)
    told = flicker.to_dict()
    assert told["median"] == 1
    assert told["static"] == pytest.approx(13 / 30, abs=1 / 30)


def test_one_frame_does_not_flicker():
    flicker = Flicker()
    flicker.add(GREY, level(1))
    assert flicker.to_dict() == {"median": None, "percentile_95": None, "static": None}


@pytest.mark.parametrize("strength", [-0.1, 1.0, 2.0])
def test_an_impossible_strength_is_refused(strength):
    with pytest.raises(ValueError, match="expected from 0 to below 1"):
        Smoothing(strength)
