import cv2
import numpy as np
import pytest

from ea_psmnet.inference.baselines import BlockMatcher, fill_background

SHIFT = 7


@pytest.fixture(scope="module")
def views():
    """A textured plane at one disparity."""
    rng = np.random.default_rng(0)
    wide = cv2.GaussianBlur(rng.integers(0, 256, (60, 140, 3), dtype=np.uint8), (0, 0), 1)
    return wide[:, : 140 - SHIFT], wide[:, SHIFT:]


@pytest.mark.parametrize("name", ["sgbm", "bm"])
def test_a_shift_is_found_and_the_left_border_filled(views, name):
    disparity = BlockMatcher(name, max_disparity=32, pad=False)(*views)
    assert disparity.dtype == np.float32
    assert disparity.shape == views[0].shape[:2]
    np.testing.assert_allclose(np.median(disparity), SHIFT, atol=0.1)
    assert np.isfinite(disparity).all()
    assert np.mean(np.abs(disparity - SHIFT) > 1) < 0.1


@pytest.mark.parametrize("name", ["sgbm", "bm"])
def test_holes_are_left_where_opencv_does_not_search(views, name):
    disparity = BlockMatcher(name, max_disparity=32, fill=False, pad=False)(*views)
    assert np.isnan(disparity[:, :32]).all()
    assert np.mean(np.isfinite(disparity[8:-8, 40:-8])) > 0.9


@pytest.mark.parametrize("name", ["sgbm", "bm"])
def test_padding_lets_it_search_the_left_border(views, name):
    disparity = BlockMatcher(name, max_disparity=32, fill=False, pad=True)(*views)
    assert disparity.shape == views[0].shape[:2]
    inside = disparity[8:-8, SHIFT + 8 : 32]
    assert np.mean(np.abs(inside - SHIFT) < 1) > 0.9


def test_too_narrow_an_image_is_refused_unless_padded(views):
    with pytest.raises(ValueError, match="cannot search 144 pixels in an image 133 wide"):
        BlockMatcher("sgbm", max_disparity=144, pad=False)(*views)
    assert BlockMatcher("sgbm", max_disparity=144)(*views).shape == (60, 133)


@pytest.mark.parametrize("name", ["sgbm", "bm"])
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("height", [1, 2, 8, 9, 10, 30])
@pytest.mark.parametrize("width", [1, 5, 33, 34, 36, 39, 40, 41, 43])
def test_the_smallest_images_have_the_same_result_every_time(views, name, pad, height, width):
    pair = [np.ascontiguousarray(view[:height, :width]) for view in views]
    matcher = BlockMatcher(name, max_disparity=32, fill=False, pad=pad)
    if width <= 32 and not pad:
        pytest.skip("refused")
    first = matcher(*pair)
    assert first.shape == (height, width)
    assert np.nanmax(first, initial=0) <= 32
    # What OpenCV does not write is left over from here.
    clutter = [np.full((60, 300), value, np.int16) for value in range(1, 2000, 500)]
    assert len(clutter) == 4
    del clutter
    np.testing.assert_array_equal(matcher(*pair), first)


# Filling, as KITTI's kits do ----------------------------------------------------------------------

HOLE = np.nan


def test_a_hole_takes_the_background_beside_it():
    disparity = np.array([[HOLE, 9, HOLE, HOLE, 4, HOLE, 6, HOLE, HOLE]])
    np.testing.assert_array_equal(fill_background(disparity), [[9, 9, 4, 4, 4, 4, 6, 6, 6]])


def test_empty_rows_take_the_columns_end_but_not_between():
    rows = [[HOLE, HOLE], [HOLE, 3], [HOLE, HOLE], [7, 8], [np.inf, -np.inf]]
    expected = [[3, 3], [3, 3], [HOLE, HOLE], [7, 8], [7, 8]]
    np.testing.assert_array_equal(fill_background(np.array(rows)), expected)


def test_what_is_known_stays_and_the_input_too():
    disparity = np.array([[1.5, HOLE], [-2, 0]])
    filled = fill_background(disparity)
    np.testing.assert_array_equal(filled, [[1.5, 1.5], [-2, 0]])
    assert np.isnan(disparity[0, 1])


def test_without_a_hole_nothing_changes():
    disparity = np.array([[3.5, -1], [0, 9]])
    filled = fill_background(disparity)
    np.testing.assert_array_equal(filled, disparity)
    assert filled.dtype == np.float32


def test_nothing_known_stays_nothing():
    assert np.isnan(fill_background(np.full((3, 4), HOLE))).all()
