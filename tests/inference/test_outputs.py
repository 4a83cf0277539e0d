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
    picture = outputs.sheet(left, disparity, disparity, np.ones_like(disparity, bool), "a title")
    height, column = 576, picture[:, 24 + 960 + 24 + 400]
    top, step = 84 + 44, 576 + 44
    assert column[top : top + height].std() > 5
    assert np.array_equal(column[top : top + height], column[top + step : top + step + height])


def test_prediction_and_truth_share_the_range_of_both():
    truth, valid = np.linspace(10, 50, 400).reshape(20, 20), np.ones((20, 20), bool)
    pictures, bar = outputs.coloured_beside_truth(truth + 40, truth, valid)
    low, high = bar.colours.get_clim()
    assert (low, high) == (10, 90)
    assert np.array_equal(pictures[0], outputs.colourise(truth + 40, low, high))
    assert np.array_equal(pictures[2], outputs.colourise(truth, low, high))


def test_a_colour_bar_has_arrows_where_values_go_beyond_and_explains_black_where_it_is():
    some = np.array([[0.0, 10, 20]])
    bars = [
        outputs.disparity_bar(low, high, values)
        for low, high, values in (
            *((0, 20, some), (5, 20, some), (0, 15, some), (5, 15, some)),
            (0, 20, np.array([[np.nan, 10]])),
        )
    ]
    assert [bar.extend for bar in bars] == ["neither", "min", "max", "both", "neither"]
    assert ["black" in bar.label for bar in bars] == [False] * 4 + [True]
    assert all(bar.ends == ("far", "near") for bar in bars)
    assert "black" in outputs.error_bar(complete=False).label
    assert "black" not in outputs.error_bar(complete=True).label


def test_points_of_a_scanner_are_drawn_larger_and_surfaces_are_not():
    truth = np.full((60, 60), 30.0)
    points = np.zeros((60, 60), bool)
    points[10::12, 10::12] = True
    surface = np.zeros((60, 60), bool)
    surface[20:40, 20:40] = True
    for valid, least, most in ((points, 0.1, 0.35), (surface, 1 / 9, 1 / 9)):
        error, known = outputs.coloured_beside_truth(truth, truth, valid)[0][1:]
        for picture in (error, known):
            drawn = picture.any(axis=-1)
            assert drawn[valid].all()
            assert least <= drawn.mean() <= most
            assert len(np.unique(picture[drawn], axis=0)) == 1
    assert outputs.is_sparse(points)
    assert not outputs.is_sparse(surface)
    assert not outputs.is_sparse(np.zeros((4, 4), bool))


def test_a_preview_shows_the_disparity_alone_or_beside_the_image(left, disparity):
    both, alone = (outputs.preview(left, disparity, name="n", beside=b) for b in (True, False))
    assert both.shape[1] == 2 * alone.shape[1] - 24
    at = slice(84 + 44, 84 + 44 + 576), slice(24, 24 + 960)
    shifted = both[84 + 44 : 84 + 44 + 576, 24 + 984 : 24 + 984 + 960]
    assert np.array_equal(alone[at], shifted)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (3, 300)])
def test_preview_of_any_shape(shape):
    left = np.zeros((*shape, 3), np.uint8)
    picture = outputs.preview(left, np.full(shape, 7.0, np.float32))
    assert picture.ndim == 3
    assert picture.std() > 0


def test_preview_copes_with_nothing_known(left):
    assert outputs.preview(left, np.full(left.shape[:2], np.nan, np.float32)).size


def test_several_maps_share_a_range():
    near, far = np.full((2, 50), 80.0), np.full((9, 90), 5.0)
    assert outputs.colour_range(near, far) == outputs.colour_range(far, near) == (5, 80)
    assert outputs.colour_range(near, np.full((2, 2), np.nan)) == outputs.colour_range(near)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((8, 18), (0, 32)),
        ((0, 60), (0, 60)),
        ((100, 110), (89, 121)),
        ((40.5, 71.2), (40, 72)),
        ((-4, 3), (-16, 16)),
        ((-17, -2), (-25, 7)),
        ((np.nan, np.nan), (0, 32)),
    ],
)
def test_a_small_range_does_not_fill_the_rainbow(values, expected):
    assert outputs.colour_range(np.repeat(values, 100)) == expected
