import numpy as np
import pytest

from ea_psmnet.inference.outputs import error_map
from ea_psmnet.inference.worst_sheet import sheet_row, worst_sheet


def row(shape, error=0.0, known=1.0):
    rng = np.random.default_rng(0)
    truth = rng.uniform(2, 40, shape).astype(np.float32)
    left = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    return sheet_row(left, truth + np.float32(error), truth, rng.random(shape) < known, "a pair")


@pytest.mark.parametrize("shape", [(30, 40), (400, 100), (3, 900)])
def test_panels_fit_and_keep_their_shape(shape):
    panels = row(shape).panels
    assert len(panels) == 4
    for panel in panels:
        height, width = panel.shape[:2]
        assert width == 400 or height == 300
        assert width <= 400
        assert height <= 300
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.3)


def test_a_row_shows_prediction_error_and_truth():
    _, predicted, error, true = row((300, 400)).panels
    np.testing.assert_array_equal(predicted, true)
    perfect = error_map(np.zeros((1, 1)), np.zeros((1, 1)), np.ones((1, 1), bool))
    assert (error == perfect[0, 0]).all()
    wrong = row((300, 400), error=20).panels[2]
    assert (wrong != perfect[0, 0]).any(axis=-1).all()


def test_a_sheet_holds_its_rows_in_order():
    rows = [row((300, 400)), row((150, 400), error=20)]
    picture = worst_sheet("the worst", rows)
    x, y = 16, 56 + 34 + 34
    np.testing.assert_array_equal(picture[y : y + 300, x : x + 400], rows[0].panels[0])
    y += 300 + 16 + 34
    x += 2 * 416
    np.testing.assert_array_equal(picture[y : y + 150, x : x + 400], rows[1].panels[2])


def test_nothing_known_is_drawn_too():
    assert worst_sheet("the worst", [row((30, 40), known=0.0)]).size
