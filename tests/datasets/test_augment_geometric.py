"""Crops, scaled and tilted pairs: the ground truth still aligns the right image with the left."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from stereo_pairs import FRONT, NEAR, far, matched, seen, textured_pair, warp_error

from ea_psmnet.datasets.augment import geometric as augment_geometric
from ea_psmnet.datasets.augment.geometric import (
    Geometric,
    Tilt,
    cut,
    geometric_crop,
    random_crop,
    resized,
    tilted,
)
from ea_psmnet.sample import StereoSample

SIZES = [(96, 300), (150, 200), (48, 100), (64, 128), (130, 120), (70, 260)]
WHOLE = np.s_[0:96, 0:200]


@pytest.fixture(scope="module")
def pair() -> StereoSample:
    return textured_pair()


def test_the_check_tells_a_right_truth_from_wrong_ones(pair):
    assert warp_error(pair) < 0.5
    assert warp_error(pair, sign=-1) > 30
    assert warp_error(replace(pair, disparity=pair.disparity + np.float32(0.5))) > 3


@pytest.mark.parametrize("size", SIZES)
def test_scaling_keeps_both_views_in_register(pair, size):
    scaled = resized(pair, size)
    assert scaled.disparity.shape == size
    assert seen(scaled).mean() > 0.8
    assert warp_error(scaled) < 1.1
    unscaled = scaled.disparity * np.float32(200 / size[1])
    assert size[1] == 200 or warp_error(replace(scaled, disparity=unscaled)) > 10


@pytest.mark.parametrize("size", SIZES)
def test_scaled_truth_is_exact_and_never_between_surfaces(pair, size):
    scaled = resized(pair, size)
    ratio = size[1] / 200
    x = (np.arange(size[1]) + 0.5) / ratio - 0.5
    behind = np.abs(scaled.disparity - ratio * far(x))
    before = np.abs(scaled.disparity - ratio * NEAR)
    assert np.minimum(behind, before).max() < 0.021 * ratio  # half a pixel of the plane's slope
    inside = behind[:, 4:-4][seen(scaled)[:, 4:-4] & (scaled.disparity < ratio * 20)[:, 4:-4]]
    assert inside.max() < 1e-3  # interpolated, where the surface is smooth
    share = (before < behind).mean()
    rows, columns = FRONT
    expected = (rows.stop - rows.start) * (columns.stop - columns.start) / pair.disparity.size
    assert share == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("size", [(60, 125), (130, 120), (143, 263)])
def test_the_front_lands_where_the_images_show_it(pair, size):
    """A nearest pixel that is not centred would move the truth by half a pixel and more."""
    marked = np.zeros_like(pair.left)
    marked[FRONT] = 255
    scaled = resized(replace(pair, left=marked), size)
    bright, near = scaled.left[..., 0] / 255, scaled.disparity > 0.09 * size[1]
    assert abs(bright - near).max() <= 0.55


@pytest.mark.parametrize("size", SIZES)
def test_unknown_truth_stays_unknown_and_spoils_no_neighbour(pair, size):
    valid = np.random.default_rng(0).random(pair.valid.shape) < 0.7
    disparity = np.where(valid, np.float32(0.5), np.float32(0))
    scaled = resized(replace(pair, disparity=disparity, valid=valid), size)
    np.testing.assert_allclose(scaled.disparity[scaled.valid], size[1] / 400, rtol=1e-6)
    assert scaled.valid.mean() == pytest.approx(0.7, abs=0.03)


def test_shrinking_averages_what_it_leaves_out(pair):
    stripes = np.zeros_like(pair.left)
    stripes[:, ::2] = 200
    scaled = resized(replace(pair, left=stripes, right=stripes), (32, 66))
    for view in (scaled.left, scaled.right):
        np.testing.assert_allclose(view, 100, atol=40)


def test_masks_follow_the_pixels(pair):
    front = np.zeros(pair.valid.shape, np.bool_)
    front[FRONT] = True
    for size in SIZES:
        scaled = resized(replace(pair, masks={"front": front}), size)
        np.testing.assert_array_equal(scaled.masks["front"], scaled.disparity > 0.1 * size[1])


def test_the_same_size_is_left_alone(pair):
    assert resized(pair, (96, 200)) is pair


@pytest.mark.parametrize(("angle", "shift"), [(0.0, 1.25), (1.0, 0.0), (-0.7, -1.5)])
def test_tilt_moves_the_match_and_the_truth_with_it(pair, angle, shift):
    sample = tilted(pair, Tilt(angle, shift, (99.5, 47.5)), WHOLE)
    y, x = np.mgrid[:96, :200]
    turn = np.exp(1j * np.radians(angle))
    moved = ((x - pair.disparity - 99.5) + 1j * (y - 47.5)) * turn + 99.5 + 1j * (47.5 + shift)
    np.testing.assert_allclose(
        (x - sample.disparity)[sample.valid], moved.real[sample.valid], atol=1e-4
    )
    within = seen(pair) & (moved.imag > 1) & (moved.imag < 94) & (moved.real > 1)
    difference = np.abs(pair.left.astype(int) - matched(sample.right, moved.real, moved.imag))
    assert difference[within].mean() < 1.5
    still = np.abs(pair.left.astype(int) - matched(pair.right, moved.real, moved.imag))
    assert still[within].mean() > 5
    assert sample.left is not pair.left
    np.testing.assert_array_equal(sample.left, pair.left)


def test_no_tilt_changes_nothing(pair):
    sample = tilted(pair, Tilt(0.0, 0.0, (3.0, 4.0)), WHOLE)
    np.testing.assert_array_equal(sample.right, pair.right)
    np.testing.assert_allclose(sample.disparity, pair.disparity, atol=1e-4)


def test_beyond_the_image_a_tilt_repeats_the_border(pair):
    bright = replace(pair, right=np.full_like(pair.right, 200))
    assert (tilted(bright, Tilt(2.0, 3.0, (99.5, 47.5)), WHOLE).right == 200).all()


def test_a_window_of_a_tilted_pair_shows_what_lies_beyond_the_window(pair):
    tilt, window = Tilt(0.8, 1.3, (99.5, 47.5)), np.s_[20:60, 50:150]
    whole, part = cut(tilted(pair, tilt, WHOLE), window), tilted(pair, tilt, window)
    assert np.abs(whole.right.astype(int) - part.right).max() <= 2
    np.testing.assert_allclose(part.disparity, whole.disparity, atol=1e-4)
    assert part.masks.keys() == pair.masks.keys()


@pytest.mark.parametrize("angle", [0.0, 1.0, -2.0])
@pytest.mark.parametrize("window", [np.s_[10:60, 20:90], np.s_[0:96, 150:200], np.s_[40:96, 0:9]])
def test_images_too_large_for_a_warp_are_narrowed_first(pair, monkeypatch, angle, window):
    tilt = Tilt(angle, 1.5, (99.5, 47.5))
    whole = tilted(pair, tilt, window)
    monkeypatch.setattr(augment_geometric, "_WARPABLE", 50)
    narrowed = tilted(pair, tilt, window)
    assert np.abs(narrowed.right.astype(int) - whole.right).max() <= 2  # steps of 1/32 pixel


def test_a_crop_of_an_image_wider_than_opencv_warps():
    image = np.zeros((96, 40_000, 3), np.uint8)
    wide = StereoSample(image, image, image[..., 0].astype(np.float32), image[..., 0] == 0, "wide")
    sample = tilted(wide, Tilt(0.1, 1.0, (19999.5, 47.5)), np.s_[20:60, 39_000:39_200])
    assert sample.right.shape == (40, 200, 3)


def test_truth_that_a_tilt_takes_beyond_infinity_is_unknown(pair):
    distant = replace(pair, disparity=np.full_like(pair.disparity, 0.1))
    sample = tilted(distant, Tilt(1.0, 0.0, (99.5, 47.5)), WHOLE)
    assert sample.valid[60:].all()
    assert not sample.valid[:35].any()
    assert (sample.disparity[~sample.valid] == 0).all()
    hidden = replace(pair, valid=np.zeros_like(pair.valid))
    assert not tilted(hidden, Tilt(1.0, 0.0, (0, 0)), WHOLE).valid.any()


def flat(height: int, width: int) -> StereoSample:
    image = np.zeros((height, width, 3), np.uint8)
    truth = np.full((height, width), 10, np.float32)
    return StereoSample(image, image, truth, truth > 0, "flat")


def test_crops_have_all_scales_of_the_range():
    rng = np.random.default_rng(0)
    ranges = Geometric(scale_probability=1, scale=(0.5, 2.0), stretch=1.0, tilt_probability=0)
    crops = [geometric_crop(flat(130, 260), (64, 128), ranges, rng) for _ in range(300)]
    assert {crop.disparity.shape for crop in crops} == {(64, 128)}
    scales = np.log([crop.disparity.mean() / 10 for crop in crops])
    assert np.log(0.49) < scales.min() < np.log(0.53)
    assert np.log(1.9) < scales.max() < np.log(2.05)
    assert scales.mean() == pytest.approx(0, abs=0.07)


def test_stretching_changes_width_and_height_apart():
    """The truth tells the scale across, a ramp of brightness the scale down."""
    sample, rng = flat(120, 240), np.random.default_rng(1)
    sample.left[:] = np.arange(120, dtype=np.uint8)[:, None, None]
    ranges = Geometric(scale_probability=1, scale=(1, 1), stretch=1.5, tilt_probability=0)
    crops = [geometric_crop(sample, (60, 120), ranges, rng) for _ in range(100)]
    across = np.array([crop.disparity.mean() / 10 for crop in crops])
    down = np.array([50 / np.ptp(crop.left[5:56, 0, 0].astype(float)) for crop in crops])
    assert across.min() < 0.75
    assert across.max() > 1.35
    np.testing.assert_allclose(across * down, 1, atol=0.06)


def test_probabilities_of_zero_leave_the_plain_crop(pair):
    ranges = Geometric(scale_probability=0, tilt_probability=0)
    crop = geometric_crop(pair, (40, 60), ranges, np.random.default_rng(3))
    places = cv2.matchTemplate(pair.left, crop.left, cv2.TM_SQDIFF)
    _, x, y = (lambda r: (r[0], *r[2]))(cv2.minMaxLoc(places))
    same = cut(pair, np.s_[y : y + 40, x : x + 60])
    for field in ("left", "right", "disparity", "valid"):
        np.testing.assert_array_equal(getattr(crop, field), getattr(same, field))


def test_small_images_are_enlarged_as_far_as_allowed():
    ranges = Geometric(scale_probability=0, scale=(0.8, 1.5))
    crop = geometric_crop(flat(50, 100), (60, 140), ranges, np.random.default_rng(0))
    assert crop.disparity.shape == (60, 140)
    np.testing.assert_allclose(crop.disparity, 14, rtol=1e-6)
    with pytest.raises(ValueError, match=r"flat: no crop of 60x151 .* 50x100, even enlarged 1\.5"):
        geometric_crop(flat(50, 100), (60, 151), ranges, np.random.default_rng(0))


def test_tilts_are_as_frequent_and_as_strong_as_told(pair):
    def vertical(seed: int) -> float:
        ranges = Geometric(0, tilt_probability=0.5, shift=1.5, angle=0.0)
        crop = geometric_crop(pair, (96, 200), ranges, np.random.default_rng(seed))
        offsets = np.linspace(-2, 2, 41)
        y, x = np.mgrid[10:86, 0:200].astype(np.float64)
        there = [matched(crop.right, x, y + offset) for offset in offsets]
        errors = [np.abs(pair.right[10:86].astype(int) - view).mean() for view in there]
        return float(offsets[np.argmin(errors)])

    found = np.array([vertical(seed) for seed in range(60)])
    assert 0.3 < (np.abs(found) > 0.05).mean() < 0.7
    assert 1.1 < found.max() < 1.6
    assert -1.6 < found.min() < -1.1


@pytest.fixture
def places() -> StereoSample:
    """Every pixel tells its own place: red is the row, green the column."""
    rows, columns = np.mgrid[:6, :9]
    left = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    disparity = (10 * rows + columns).astype(np.float32)
    return StereoSample(left, left + np.uint8(100), disparity, disparity % 2 == 0, "place")


def test_all_arrays_share_the_window(places):
    crop = random_crop(places, (3, 4), np.random.default_rng(0))
    rows, columns = crop.left[..., 0].astype(int), crop.left[..., 1].astype(int)
    assert crop.left.shape == (3, 4, 3)
    assert np.array_equal(rows - rows[0, 0], np.mgrid[:3, :4][0])
    assert np.array_equal(columns - columns[0, 0], np.mgrid[:3, :4][1])
    assert np.array_equal(crop.right, crop.left + np.uint8(100))
    assert np.array_equal(crop.disparity, 10 * rows + columns)
    assert np.array_equal(crop.valid, (10 * rows + columns) % 2 == 0)
    assert crop.name == "place"


def test_every_position_occurs_edges_included(places):
    rng = np.random.default_rng(0)
    corners = {tuple(random_crop(places, (5, 7), rng).left[0, 0, :2].tolist()) for _ in range(200)}
    assert corners == {(y, x) for y in range(2) for x in range(3)}


def test_the_seed_decides(places):
    first, second = (random_crop(places, (2, 2), np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first.left, second.left)


def test_the_whole_image_is_a_crop_with_memory_of_its_own(places):
    crop = random_crop(places, (6, 9), np.random.default_rng(0))
    assert np.array_equal(crop.disparity, places.disparity)
    assert not np.shares_memory(crop.disparity, places.disparity)


@pytest.mark.parametrize("size", [(7, 9), (6, 10), (0, 3)])
def test_a_window_that_does_not_fit(places, size):
    with pytest.raises(ValueError, match=rf"place: .*{size[0]}x{size[1]} .* 6x9"):
        random_crop(places, size, np.random.default_rng(0))
