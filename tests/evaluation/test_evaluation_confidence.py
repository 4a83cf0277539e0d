"""Figures of confidence, by hand and in closed form; and in the report of an evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_pairs import made_pair, prediction

from ea_psmnet.evaluation.confidence import (
    BINS,
    FRACTIONS,
    ConfidenceSums,
    confidence_chart,
    sparsification,
)
from ea_psmnet.evaluation.evaluation import evaluate_predictors
from ea_psmnet.evaluation.predictors import Predictor
from ea_psmnet.evaluation.report import EvaluationReport
from ea_psmnet.evaluation.shares import Journal
from ea_psmnet.files import read_image
from ea_psmnet.inference.result import StereoResult


def measured(confidence, errors):
    """Sums of pixels with these errors, all of which count."""
    errors = np.atleast_2d(np.asarray(errors, np.float64))
    truth, sure = np.zeros_like(errors), np.broadcast_to(confidence, errors.shape)
    return ConfidenceSums.measure(sure, errors, truth, np.ones(errors.shape, bool))


def drawn(count=20_000):
    """Errors whose probability to be below 1 px is known: Laplacian, of random scales."""
    rng = np.random.default_rng(0)
    scales = np.exp(rng.uniform(-2, 2, count))
    return 1 - np.exp(-1 / scales), rng.exponential(scales)


def test_what_remains_when_pixels_are_removed():
    curve = sparsification(np.arange(1, 21.0), -np.arange(20))
    # The largest is removed first: the mean of 1 to n is (n + 1) / 2.
    assert curve == pytest.approx([(n + 1) / 2 for n in range(20, 0, -1)])
    flat = sparsification(np.ones(1000), np.random.default_rng(0).random(1000))
    assert flat == pytest.approx((1.0,) * len(FRACTIONS))


def test_a_single_pixel_always_remains():
    assert sparsification(np.array([3.0]), np.array([0.5])) == (3.0,) * len(FRACTIONS)


def test_errors_that_are_as_likely_as_told_are_calibrated():
    confidence, errors = drawn()
    figures = measured(confidence, errors).figures()
    assert figures["ECE"] < 1.5
    assert figures["confidence"] == pytest.approx(figures["correct"], abs=1)
    assert figures["AUSE of bad-1"] > 1  # of equal scales nobody knows which error is large


def test_the_calibration_error_by_hand():
    errors = [0.5, 0.5, 0.5, 2, 2, 2, 2, 0.5]
    confidence = [[0.92, 0.92, 0.92, 0.92, 0.32, 0.32, 0.32, 0.32]]
    figures = measured(confidence, errors).figures()
    # 0.92 instead of 3/4 and 0.32 instead of 1/4, each of half of the pixels.
    assert figures["ECE"] == pytest.approx(100 * (0.17 + 0.07) / 2)
    assert figures["confidence"] == pytest.approx(62)
    assert figures["correct"] == pytest.approx(50)


def test_perfect_confidence_has_no_area():
    _, errors = drawn()
    figures = measured(1 / (1 + errors), errors).figures()
    assert figures["AUSE of bad-1"] == pytest.approx(0, abs=1e-9)
    assert figures["AUSE of EPE"] == pytest.approx(0, abs=1e-9)


def test_the_worst_confidence_has_the_largest_area():
    confidence, errors = drawn()
    areas = [
        measured(ranks, errors).figures()["AUSE of EPE"]
        for ranks in (confidence, np.full_like(confidence, 0.5), 1 - confidence)
    ]
    assert 0 < areas[0] < areas[1] < areas[2]


def test_curves_fall_as_wrong_pixels_are_removed():
    sums = measured(*drawn())
    for curve in (sums.oracle_epe, sums.oracle_bad, sums.bad, sums.epe):
        assert np.diff(curve).max() <= 0.02 * curve[0]
    for curve in (sums.oracle_epe, sums.oracle_bad):
        assert np.diff(curve).max() <= 0


def test_sums_of_images_add_up():
    one, other = measured(0.9, [0.2, 3.0]), measured(0.4, [0.2, 0.3, 4.0])
    both = one + other
    assert both.images == 2
    assert sum(both.counts) == 5
    assert both.figures()["confidence"] == pytest.approx(100 * (2 * 0.9 + 3 * 0.4) / 5)
    expected = (one.figures()["AUSE of EPE"] + other.figures()["AUSE of EPE"]) / 2
    assert both.figures()["AUSE of EPE"] == pytest.approx(expected)
    assert one + ConfidenceSums.nothing() == one


def test_pixels_without_truth_or_prediction_do_not_count():
    disparity = np.array([[1.0, np.nan, 5.0]])
    counted = np.array([[True, True, False]])
    sums = ConfidenceSums.measure(np.full((1, 3), 0.5), disparity, np.ones((1, 3)), counted)
    assert sum(sums.counts) == sum(sums.correct) == 1
    nothing = ConfidenceSums.measure(np.ones((1, 3)), disparity, np.ones((1, 3)), counted < 0)
    assert nothing == ConfidenceSums.nothing()
    assert all(np.isnan(value) for value in nothing.figures().values())


def test_all_values_of_a_record_must_be_there():
    with pytest.raises(ValueError, match=f"counts must have {BINS} values"):
        ConfidenceSums(1, (1.0,), *[(0.0,) * 20] * 6)


# In an evaluation ---------------------------------------------------------------------------------

PAIRS = [made_pair(np.full((4, 6), 10.0), "a"), made_pair(np.full((4, 6), 20.0), "b")]


def sure_predictor():
    """Predicts 10 everywhere: right for the first pair, and says so by half."""

    def together(samples):
        tens, sure = prediction(np.full((4, 6), 10.0)), np.full((4, 6), 0.75, np.float32)
        return [StereoResult(tens, sample.left, sure) for sample in samples]

    return Predictor("sure", lambda sample: together([sample])[0].disparity, together=together)


def unsure_predictor():
    return Predictor("unsure", lambda sample: prediction(sample.disparity))


@pytest.fixture
def evaluations(tmp_path):
    predictors = [sure_predictor(), unsure_predictor()]
    journal = Journal(tmp_path / "journal", {"of": "a test"})
    fresh = evaluate_predictors(predictors, PAIRS, journal=journal)
    kept = evaluate_predictors(predictors, PAIRS, journal=journal)
    assert [each.confidence for each in fresh] == [each.confidence for each in kept]
    return kept


def test_an_evaluation_has_the_confidence_of_those_who_tell_it(evaluations):
    sure, unsure = evaluations
    assert unsure.confidence is None
    assert sure.confidence.images == 2
    figures = sure.confidence.figures()
    assert figures["correct"] == pytest.approx(50)
    assert figures["ECE"] == pytest.approx(25)


def test_the_report_keeps_it_and_draws_it(tmp_path, evaluations):
    report = EvaluationReport("made", tuple(evaluations))
    report.write(tmp_path)
    again = EvaluationReport.read(tmp_path / "report.json")
    assert [each.confidence for each in again.evaluations] == [
        each.confidence for each in evaluations
    ]
    assert json.loads((tmp_path / "report.json").read_text())["methods"][1]["confidence"] is None
    assert "](confidence.png)" in (tmp_path / "report.md").read_text()
    assert "AUSE" in report.to_text()
    assert read_image(tmp_path / "confidence.png").std() > 0


def test_a_report_without_confidence_has_no_chart(tmp_path, evaluations):
    report = EvaluationReport("made", (evaluations[1],))
    report.write(tmp_path)
    assert not (tmp_path / "confidence.png").exists()
    assert "AUSE" not in report.to_markdown()


def test_a_chart_of_several_methods():
    confidence, errors = drawn(1000)
    methods = {name: measured(confidence, errors) for name in ("one", "other")}
    assert confidence_chart(methods).shape == (600, 1300, 3)
