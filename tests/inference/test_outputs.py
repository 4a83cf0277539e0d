"""Pictures: the right colours in the right places."""

from __future__ import annotations

import numpy as np
import pytest

from ea_psmnet.inference import outputs

BLACK = (0, 0, 0)


def test_near_is_red_far_is_blue_unknown_is_black():
    colours = outputs.colourise(np.array([[2.0, 9.0, np.nan, np.inf, -50.0, 99.0]]), 2, 9)
    far, near, unknown, infinite, below, above = colours[0].astype(int)
    assert far[2] == far.max() > 100
    assert near[0] == near.max() > 100
    assert tuple(unknown) == tuple(infinite) == BLACK
    assert np.array_equal(below, far)
    assert np.array_equal(above, near)
    with pytest.raises(ValueError, match="must be larger"):
        outputs.colourise(np.zeros((1, 1)), 3, 3)


def test_no_known_disparity_is_drawn_black():
    colours = outputs.colourise(np.linspace(0, 1, 1000)[None], 0, 1)
    assert colours.max(axis=-1).min() > 100


def test_error_colours_go_from_blue_to_red_at_the_documented_steps():
    truth = np.full((1, 7), 10.0)
    errors = np.array([[0.0, 0.12, 0.9, 1.1, -1.1, 9.0, np.nan]])
    colours = outputs.error_map(truth + errors, truth, np.ones((1, 7), bool))[0].astype(int)
    none, tiny, small, over, under, large, lost = colours
    assert np.array_equal(none, tiny)
    assert small[2] > small[0]
    assert over[0] > over[2]
    assert np.array_equal(over, under)
    assert np.array_equal(large, lost)
    assert large[0] > 2 * large[2]


def test_error_is_black_where_truth_is_unknown():
    truth = np.array([[np.nan, 5.0]])
    colours = outputs.error_map(np.full((1, 2), 5.0), truth, np.array([[False, True]]))
    assert tuple(colours[0, 0]) == BLACK
    assert tuple(colours[0, 1]) != BLACK


@pytest.mark.parametrize("known", [1.0, 0.5, 0.0])
def test_sheet_holds_four_panels_whatever_is_known(left, disparity, known):
    valid = np.random.default_rng(0).random(disparity.shape) < known
    picture = outputs.sheet(left, disparity, disparity, valid, "a $title with 1_000 % signs")
    assert picture.dtype == np.uint8
    assert picture.shape[1] > 2 * 960
    assert picture.shape[0] > 2 * 960 * 24 / 40


def test_sheet_uses_one_range_for_prediction_and_truth(left, disparity):
    """With prediction equal to truth, the right panels are the same pixels."""
    picture = outputs.sheet(left, disparity, disparity, np.ones_like(disparity, bool), "")
    height, column = 576, picture[:, 24 + 960 + 24 + 400]
    top, step = 44, 576 + 44
    assert np.array_equal(column[top : top + height], column[top + step : top + step + height])


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (3, 300)])
def test_preview_of_any_shape(shape):
    left = np.zeros((*shape, 3), np.uint8)
    picture = outputs.preview(left, np.full(shape, 7.0, np.float32))
    assert picture.ndim == 3
    assert picture.std() > 0


def test_preview_copes_with_nothing_known(left):
    assert outputs.preview(left, np.full(left.shape[:2], np.nan, np.float32)).size


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((8, 18), (0, 32)),
        ((0, 60), (0, 60)),
        ((100, 110), (89, 121)),
        ((40.5, 71.2), (40, 72)),
        ((-4, 3), (-4, 28)),
        ((np.nan, np.nan), (0, 32)),
    ],
)
def test_a_small_range_does_not_fill_the_rainbow(values, expected):
    assert outputs.colour_range(np.repeat(values, 100)) == expected
