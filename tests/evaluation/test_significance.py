import math
from dataclasses import replace

import numpy as np
import pytest
from made_pairs import made_pair, prediction

from ea_psmnet.evaluation.evaluation import Evaluation
from ea_psmnet.evaluation.shares import ImageErrors
from ea_psmnet.evaluation.significance import compare_evaluations
from ea_psmnet.metrics import DisparityErrors


def evaluation(label, errors, pixels=1):
    """One image an error, of so many pixels, all of that error; `errors` by name."""
    images = []
    for name, error in errors.items():
        sample = made_pair(np.full(pixels, 10.0), name)
        measured = DisparityErrors.measure(
            prediction(np.full(pixels, 10 + error)), sample.disparity, sample.valid
        )
        images.append(ImageErrors(name, measured, 0.0))
    return Evaluation(label, 192, tuple(images), regions={}, quantiles={})


def figure(comparison, name):
    (found,) = (d for d in comparison.differences if d.figure == name)
    return found


def numbered(errors):
    return {str(index): error for index, error in enumerate(errors)}


def test_differences_are_of_pooled_figures_on_shared_images():
    after = evaluation("new", {"a": 1, "b": 2, "c": 9})
    before = evaluation("old", {"b": 4, "a": 1, "d": 7})
    comparison = compare_evaluations(after, before)
    assert (comparison.images, comparison.only_after, comparison.only_before) == (2, ("c",), ("d",))
    epe = figure(comparison, "EPE")
    assert (epe.before, epe.after, epe.change) == (2.5, 1.5, -1)
    bad = figure(comparison, "bad-3")
    assert (bad.before, bad.after) == (50, 0)


def test_a_constant_gain_has_an_interval_of_no_width():
    """Images differ widely, the gain does not: only a paired interval sees that."""
    errors = np.random.default_rng(0).uniform(1, 40, 30)
    after, before = evaluation("n", numbered(errors)), evaluation("o", numbered(errors + 0.25))
    epe = figure(compare_evaluations(after, before), "EPE")
    assert (epe.low, epe.high) == (pytest.approx(-0.25, abs=1e-5), pytest.approx(-0.25, abs=1e-5))
    assert epe.verdict == "better"
    assert figure(compare_evaluations(before, after), "EPE").verdict == "worse"


def test_the_interval_is_that_of_the_mean():
    """Equal images: the bootstrap of a mean of n differences has deviation s / sqrt(n)."""
    changes = np.random.default_rng(1).normal(0, 1, 100)
    after = evaluation("n", numbered(20 + changes))
    epe = figure(compare_evaluations(after, evaluation("o", numbered(np.full(100, 20.0)))), "EPE")
    half = 1.96 * changes.std() / 10
    # 10,000 resamples place the ends to within 0.003 (one deviation).
    assert epe.low == pytest.approx(changes.mean() - half, abs=0.009)
    assert epe.high == pytest.approx(changes.mean() + half, abs=0.009)
    assert epe.verdict == "unclear"


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(2)
    pair = [evaluation(n, numbered(rng.uniform(0, 5, 12))) for n in "no"]
    first, again, other = (compare_evaluations(*pair, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert figure(first, "EPE").low != figure(other, "EPE").low


def test_one_image_has_no_interval():
    comparison = compare_evaluations(evaluation("n", {"a": 1}), evaluation("o", {"a": 2}))
    epe = figure(comparison, "EPE")
    assert epe.change == -1
    assert math.isnan(epe.low)
    assert epe.verdict == "unclear"
    assert "low" not in comparison.to_dict()["differences"][0]


def test_leaving_out_the_worst_pixels_is_not_better():
    def with_holes(label, errors):
        images = evaluation(label, numbered([1, 1, 9]), pixels=4).images
        first = replace(images[0].errors, predicted=4 - errors, absolute=0)
        return Evaluation(label, 192, (replace(images[0], errors=first), *images[1:]), {}, {})

    comparison = compare_evaluations(with_holes("n", 3), with_holes("o", 0))
    assert math.isnan(figure(comparison, "EPE").low)
    assert figure(comparison, "EPE").verdict == "unclear"
    holes = figure(comparison, "holes")
    assert (holes.before, holes.after) == (0, 25)
    assert holes.verdict == "unclear"  # in one image of three
    assert figure(compare_evaluations(with_holes("n", 3), with_holes("o", 3)), "EPE").low == 0


def test_what_cannot_be_compared_is_refused():
    one = evaluation("n", {"a": 1})
    with pytest.raises(ValueError, match="share no image"):
        compare_evaluations(one, evaluation("o", {"b": 1}))
    with pytest.raises(ValueError, match="a: 1 pixels counted, 2 in the other report"):
        compare_evaluations(one, evaluation("o", {"a": 1}, pixels=2))
