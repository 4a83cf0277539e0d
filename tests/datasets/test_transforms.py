"""Crops: one window for everything."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.augment.geometric import random_crop
from ea_psmnet.sample import StereoSample


@pytest.fixture
def sample() -> StereoSample:
    """Every pixel tells its own place: red is the row, green the column."""
    rows, columns = np.mgrid[:6, :9]
    left = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    disparity = (10 * rows + columns).astype(np.float32)
    return StereoSample(left, left + np.uint8(100), disparity, disparity % 2 == 0, "place")


def test_all_arrays_share_the_window(sample):
    crop = random_crop(sample, (3, 4), np.random.default_rng(0))
    rows, columns = crop.left[..., 0].astype(int), crop.left[..., 1].astype(int)
    assert crop.left.shape == (3, 4, 3)
    assert np.array_equal(rows - rows[0, 0], np.mgrid[:3, :4][0])
    assert np.array_equal(columns - columns[0, 0], np.mgrid[:3, :4][1])
    assert np.array_equal(crop.right, crop.left + np.uint8(100))
    assert np.array_equal(crop.disparity, 10 * rows + columns)
    assert np.array_equal(crop.valid, (10 * rows + columns) % 2 == 0)
    assert crop.name == "place"


def test_every_position_occurs_edges_included(sample):
    rng = np.random.default_rng(0)
    corners = {tuple(random_crop(sample, (5, 7), rng).left[0, 0, :2].tolist()) for _ in range(200)}
    assert corners == {(y, x) for y in range(2) for x in range(3)}


def test_the_seed_decides(sample):
    first, second = (random_crop(sample, (2, 2), np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first.left, second.left)


def test_the_whole_image_is_a_crop_with_memory_of_its_own(sample):
    crop = random_crop(sample, (6, 9), np.random.default_rng(0))
    assert np.array_equal(crop.disparity, sample.disparity)
    assert not np.shares_memory(crop.disparity, sample.disparity)


@pytest.mark.parametrize("size", [(7, 9), (6, 10), (0, 3)])
def test_a_window_that_does_not_fit(sample, size):
    with pytest.raises(ValueError, match=rf"place: .*{size[0]}x{size[1]} .* 6x9"):
        random_crop(sample, size, np.random.default_rng(0))
