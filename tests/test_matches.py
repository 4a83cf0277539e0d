"""Matched features of images whose offset is known."""

import cv2
import numpy as np

from ea_psmnet.matches import match_features

DOWN, ACROSS = 4, 9


def noise(height=160, width=240, seed=0):
    rng = np.random.default_rng(seed)
    grey = rng.integers(0, 256, (height, width), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(grey, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


def test_a_shift_is_that_of_the_matches():
    wide = noise()
    found = match_features(wide[DOWN:, ACROSS:], wide[:-DOWN, :-ACROSS], 500)
    assert len(found.left) == len(found.right) > 100
    offsets = found.left - found.right
    np.testing.assert_allclose(np.median(offsets, 0), (-ACROSS, -DOWN), atol=0.05)
    assert np.mean(np.abs(offsets - (-ACROSS, -DOWN)).max(1) < 0.5) > 0.95
    assert min(found.features) >= len(found.left)


def test_a_match_counts_once_whatever_its_orientations():
    found = match_features(noise()[:, :200], noise()[:, 40:], 500)
    both = np.hstack([found.left, found.right])
    assert len(np.unique(both, axis=0)) == len(both) > 100


def test_different_images_have_next_to_no_matches():
    found = match_features(noise(), noise(seed=1), 500)
    assert min(found.features) > 200
    assert len(found.left) < 10


def test_a_flat_image_has_no_features():
    found = match_features(noise(), np.full((160, 240), 90, np.uint8), 500)
    assert found.features[1] == 0
    assert found.left.shape == found.right.shape == (0, 2)
