import math

import numpy as np
import pytest

from ea_psmnet.metrics import DisparityErrors, ErrorHistogram, absolute_errors, quantiles

TRUTH = np.array([[10.0, 10.0, 100.0, 100.0, 50.0]], np.float32)
PREDICTION = np.array([[10.5, 13.5, 104.0, 106.0, 0.0]], np.float32)
COUNTED = np.array([[True, True, True, True, False]])


def test_worked_out_by_hand():
    errors = DisparityErrors.measure(PREDICTION, TRUTH, COUNTED)  # 0.5, 3.5, 4 and 6 px
    assert errors == DisparityErrors(
        pixels=4,
        predicted=4,
        absolute=14.0,
        squared=0.25 + 12.25 + 16 + 36,
        over_half_px=3,
        over_1px=3,
        over_2px=3,
        over_3px=3,
        over_4px=1,
        outliers=2,  # 4 px of 100 are within 5 %: over 3 px, but no KITTI outlier
    )
    assert errors.figures() == {
        "EPE": 3.5,
        "RMSE": pytest.approx(math.sqrt(64.5 / 4)),
        "bad-0.5": 75,
        "bad-1": 75,
        "bad-2": 75,
        "bad-3": 75,
        "bad-4": 25,
        "D1": 50,
        "density": 100,
    }


@pytest.mark.parametrize(
    ("shift", "figure"), [(0.5, "bad-0.5"), (1, "bad-1"), (2, "bad-2"), (3, "bad-3"), (4, "bad-4")]
)
def test_thresholds_are_exclusive(shift, figure):
    counted = np.ones_like(COUNTED)
    at = DisparityErrors.measure(TRUTH + np.float32(shift), TRUTH, counted)
    beyond = DisparityErrors.measure(TRUTH + np.float32(shift + 0.01), TRUTH, counted)
    assert at.figures()[figure] == 0
    assert beyond.figures()[figure] == 100


def test_kittis_outlier_is_beyond_both_bounds():
    truth = np.array([[20.0, 20.0, 80.0, 80.0]], np.float32)
    off = np.array([[3.0, 3.1, 4.0, 4.1]], np.float32)  # 5 % of 80 is 4
    errors = DisparityErrors.measure(truth - off, truth, np.ones_like(truth, bool))
    assert errors.outliers == 2


def test_parts_add_up_to_the_whole():
    left = DisparityErrors.measure(PREDICTION[:, :2], TRUTH[:, :2], COUNTED[:, :2])
    right = DisparityErrors.measure(PREDICTION[:, 2:], TRUTH[:, 2:], COUNTED[:, 2:])
    whole = DisparityErrors.measure(PREDICTION, TRUTH, COUNTED)
    assert left + right == whole
    # A mean of means would be 3.5 too here only by accident; make the parts uneven.
    assert (left + right + left).epe == pytest.approx((14 + 4) / 6)


@pytest.mark.parametrize("missing", [np.nan, np.inf])
def test_a_hole_is_wrong_and_told_but_has_no_size(missing):
    prediction = PREDICTION.copy()
    prediction[0, 0] = missing
    errors = DisparityErrors.measure(prediction, TRUTH, COUNTED)
    figures = errors.figures()
    assert (errors.over_half_px, errors.over_4px, errors.outliers) == (4, 2, 3)
    assert figures["EPE"] == pytest.approx((3.5 + 4 + 6) / 3)
    assert figures["density"] == 75


def test_nothing_counted_is_nan_and_not_zero():
    errors = DisparityErrors.measure(PREDICTION, TRUTH, np.zeros_like(COUNTED))
    assert all(math.isnan(value) for value in errors.figures().values())


def test_quantiles_are_the_smallest_error_that_covers_the_share():
    assert quantiles(np.arange(1, 11.0)) == {"median": 5, "A90": 9, "A95": 10, "A99": 10}
    assert quantiles(np.array([7.0])) == dict.fromkeys(("median", "A90", "A95", "A99"), 7)
    assert all(math.isnan(value) for value in quantiles(np.zeros(0)).values())


def test_errors_are_of_counted_and_predicted_pixels():
    prediction = np.array([[np.nan, 13.5, 104.0, 94.0, 0.0]], np.float32)
    np.testing.assert_allclose(absolute_errors(prediction, TRUTH, COUNTED), [3.5, 4, 6])


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_pooled_quantiles_keep_their_stated_bound(scale):
    errors = np.abs(np.random.default_rng(0).standard_cauchy(20_000)) * scale
    errors = errors[errors < 4000]
    parts = [ErrorHistogram.measure(part) for part in np.array_split(errors, 7)]
    pooled = sum(parts, ErrorHistogram()).quantiles()
    for name, exact in quantiles(errors).items():
        assert pooled[name] == pytest.approx(exact, rel=1 / 256)


def test_a_histogram_holds_errors_of_any_size():
    histogram = ErrorHistogram.measure(np.array([0.0, 1e-9, 1e30]))
    assert histogram.counts.sum() == 3
    assert histogram.quantiles()["median"] == pytest.approx(0, abs=1 / 128)
    assert histogram.quantiles()["A99"] >= 4096
    assert all(math.isnan(value) for value in ErrorHistogram().quantiles().values())
