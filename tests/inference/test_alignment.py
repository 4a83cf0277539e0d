"""Alignments of rows: closed forms, and what is recovered from points that they moved."""

import cv2
import numpy as np
import pytest

from ea_psmnet.inference.alignment import RowAlignment, fit_rows

SIZE = WIDTH, HEIGHT = 600, 400


def matches(alignment, outliers=0, noise=0.0):
    """Points of a right image that an alignment brings to their rows, and their left matches."""
    rng = np.random.default_rng(0)
    right = rng.uniform((0, 0), SIZE, (500, 2))
    left = alignment.moved(right, *SIZE)
    left[:, 0] += rng.uniform(5, 60, 500)  # any disparities
    left[:, 1] += rng.normal(0, noise, 500)
    left[:outliers] = rng.uniform((0, 0), SIZE, (outliers, 2))
    return left, right


def test_the_centre_moves_by_the_offset_alone():
    centre = np.array([[(WIDTH - 1) / 2, (HEIGHT - 1) / 2]])
    moved = RowAlignment(offset=2.5, rotation=4, zoom=1.1).moved(centre, *SIZE)
    np.testing.assert_allclose(moved - centre, [[0, 2.5]], atol=1e-9)


def test_a_quarter_turn_takes_right_to_below():
    centre = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    moved = RowAlignment(offset=0, rotation=90, zoom=2).moved(centre[None] + [10, 0], *SIZE)
    np.testing.assert_allclose(moved[0] - centre, (0, 20), atol=1e-9)


@pytest.mark.parametrize("outliers", [0, 150])
@pytest.mark.parametrize(
    "alignment",
    [RowAlignment(0, 0, 1), RowAlignment(3, 0.7, 1.01), RowAlignment(-40, -5, 0.9)],
)
def test_an_alignment_is_recovered_from_matches(alignment, outliers):
    fit = fit_rows(*matches(alignment, outliers, noise=0.1), *SIZE)
    found, errors = fit.alignment, fit.errors
    for name in ("offset", "rotation", "zoom"):
        error = getattr(errors, name)
        assert 0 < error < 0.02
        assert getattr(found, name) == pytest.approx(getattr(alignment, name), abs=6 * error)
    assert fit.agreeing[outliers:].all()
    assert fit.agreeing[:outliers].sum() <= 5


def test_matches_that_determine_nothing_give_none():
    left, right = matches(RowAlignment(0, 0, 1))
    assert fit_rows(left[:5], right[:5], *SIZE) is None
    right[:, 1] = left[:, 1] = 100  # all in one row
    assert fit_rows(left, right, *SIZE) is None


def test_an_image_moves_as_its_points_do():
    alignment = RowAlignment(offset=6, rotation=3, zoom=1.02)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    spots = np.array([(100, 80), (320, 200), (500, 310)])
    for x, y in spots.tolist():
        cv2.circle(image, (x, y), 5, (255, 255, 255), cv2.FILLED, cv2.LINE_AA)
    warped = alignment.apply(image)
    assert warped.shape == image.shape
    for x, y in alignment.moved(spots, *SIZE):
        window = warped[int(y) - 12 : int(y) + 13, int(x) - 12 : int(x) + 13, 0].astype(float)
        rows, columns = np.mgrid[-12:13, -12:13]
        centre = [(window * axis).sum() / window.sum() for axis in (columns, rows)]
        np.testing.assert_allclose(np.add(centre, (int(x), int(y))), (x, y), atol=0.1)
