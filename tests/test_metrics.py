import math

import numpy as np
import pytest

from ea_psmnet.metrics import DisparityErrors

TRUTH = np.array([[10.0, 10.0, 100.0, 100.0, 50.0]], np.float32)
PREDICTION = np.array([[10.5, 13.5, 104.0, 106.0, 0.0]], np.float32)
COUNTED = np.array([[True, True, True, True, False]])


def test_worked_out_by_hand():
    errors = DisparityErrors.measure(PREDICTION, TRUTH, COUNTED)  # 0.5, 3.5, 4 and 6 px
    assert errors == DisparityErrors(4, 14.0, 3, 3, 3, 2)
    # 4 px of 100 are within 5 %: bad-3, but no KITTI outlier.
    assert errors.figures() == {"EPE": 3.5, "bad-1": 75, "bad-2": 75, "bad-3": 75, "D1": 50}


def test_thresholds_are_exclusive():
    prediction = TRUTH + np.array([[1, 2, 3, 5, 0]], np.float32)
    errors = DisparityErrors.measure(prediction, TRUTH, COUNTED)
    assert (errors.over_1px, errors.over_2px, errors.over_3px, errors.outliers) == (3, 2, 1, 0)


def test_parts_add_up_to_the_whole():
    left = DisparityErrors.measure(PREDICTION[:, :2], TRUTH[:, :2], COUNTED[:, :2])
    right = DisparityErrors.measure(PREDICTION[:, 2:], TRUTH[:, 2:], COUNTED[:, 2:])
    whole = DisparityErrors.measure(PREDICTION, TRUTH, COUNTED)
    assert left + right == whole
    # A mean of means would be 3.5 too here only by accident; make the parts uneven.
    assert (left + right + left).epe == pytest.approx((14 + 4) / 6)


def test_a_missing_prediction_is_wrong_by_every_measure():
    prediction = PREDICTION.copy()
    prediction[0, 0] = np.nan
    errors = DisparityErrors.measure(prediction, TRUTH, COUNTED)
    assert errors.over_1px == 4
    assert math.isinf(errors.epe)


def test_nothing_counted_is_nan_and_not_zero():
    errors = DisparityErrors.measure(PREDICTION, TRUTH, np.zeros_like(COUNTED))
    assert all(math.isnan(value) for value in errors.figures().values())
