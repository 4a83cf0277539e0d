"""Confidence from distributions whose masses are known."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from stereo_pairs import textured_pair

from ea_psmnet import StereoMatcher
from ea_psmnet.datasets.synthetic import SyntheticScenes
from ea_psmnet.evaluation.evaluation import evaluate_predictors
from ea_psmnet.evaluation.predictors import network
from ea_psmnet.files import content_hash
from ea_psmnet.inference.confidence import (
    UNCALIBRATED,
    ConfidenceMap,
    fit_confidence,
    read_confidence,
    window_masses,
)
from ea_psmnet.inference.memory_plan import MemoryPlan
from ea_psmnet.inference.result import disparity_deviation, rescaled
from ea_psmnet.inference.tiles import spans
from ea_psmnet.models.weights import BUNDLED


def scores_of(probabilities, height=2, width=3):
    """Scores (1, K, h, w) of one distribution everywhere."""
    logs = torch.tensor(probabilities, dtype=torch.float64).log()
    return logs.view(1, -1, 1, 1).expand(1, -1, height, width).contiguous()


def masses_at(scores, disparity, first=0.0):
    """Masses (widths,) at one disparity, which must be those of every pixel."""
    height, width = (4 * side for side in scores.shape[-2:])
    estimate = torch.full((1, height, width), disparity, dtype=scores.dtype)
    masses = window_masses(scores, estimate, first)[0]
    assert masses.shape == (3, height, width)
    torch.testing.assert_close(masses, masses[:, :1, :1].expand_as(masses))
    return masses[:, 0, 0].tolist()


DISTRIBUTION = [0.05, 0.1, 0.2, 0.4, 0.05, 0.05, 0.05, 0.1]


@pytest.mark.parametrize("first", [0.0, 1.5])
@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (3, (0.4, 0.65, 0.8)),
        (2.5, (0.3, 0.675, 0.8)),  # between levels: the mean of the two
        (3.25, (0.4 - 0.35 / 4, 0.65 - 0.15 / 4, 0.8 - 0.05 / 4)),
        (0, (0.05, 0.15, 0.35)),  # nothing is below the first level
        (7, (0.1, 0.15, 0.2)),
        (9, (0.1, 0.15, 0.2)),  # outside: as at the last level
    ],
)
def test_masses_of_a_distribution(place, expected, first):
    found = masses_at(scores_of(DISTRIBUTION), 4 * place + first, first)
    assert found == pytest.approx(expected, abs=1e-6)


def test_masses_between_cells_are_those_of_the_blended_distributions():
    left, right = scores_of([0.7, 0.1, 0.1, 0.1], 1, 1), scores_of([0.1, 0.1, 0.1, 0.7], 1, 1)
    estimate = torch.zeros(1, 4, 8, dtype=torch.float64)
    found = window_masses(torch.cat([left, right], dim=-1), estimate, 0.0)[0, 0, 0]
    # Middles of pixels lie at eighths between those of the cells, which are 4 pixels apart.
    share = torch.tensor([0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(found, 0.7 - 0.6 * share)


def test_masses_of_half_precision_are_summed_in_float32():
    scores = scores_of(DISTRIBUTION).bfloat16()
    masses = window_masses(scores, torch.full((1, 8, 12), 12.0), 0.0)
    assert masses.dtype == torch.float32
    assert masses[0, :, 0, 0].tolist() == pytest.approx([0.4, 0.65, 0.8], abs=5e-3)


def test_a_map_is_logistic_in_the_log_odds():
    masses = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64).view(1, 3, 1, 1)
    found = ConfidenceMap((0.5, 2.0, 1.0), -0.25)(masses)
    odds = (0.2 / 0.8) ** 0.5 * (0.5 / 0.5) ** 2 * (0.9 / 0.1) * np.exp(-0.25)
    assert found.shape == (1, 1, 1)
    assert found.item() == pytest.approx(odds / (1 + odds))


def test_without_calibration_it_is_the_mass_within_three_levels():
    masses = torch.rand(1, 3, 4, 5) * 0.98 + 0.01
    torch.testing.assert_close(UNCALIBRATED(masses), masses[:, 1])


def test_a_map_of_another_number_of_weights_is_refused():
    with pytest.raises(ValueError, match="2 weights, expected 3"):
        ConfidenceMap((1.0, 2.0), 0.0)


def test_fitting_finds_the_map_that_drew_the_errors():
    rng = np.random.default_rng(0)
    true = ConfidenceMap((0.6, 0.9, -0.4), 0.3)
    masses = rng.uniform(0.02, 0.98, (50_000, 3))
    wanted = true(torch.from_numpy(masses)).numpy()
    found = fit_confidence(masses, rng.uniform(size=len(masses)) < wanted)
    assert found.weights == pytest.approx(true.weights, abs=0.05)
    assert found.bias == pytest.approx(true.bias, abs=0.05)


@pytest.mark.parametrize("correct", [True, False])
def test_nothing_to_fit(correct):
    with pytest.raises(ValueError, match="needs both"):
        fit_confidence(np.full((5, 3), 0.5), np.full(5, correct))


def test_a_laplacian_error_has_the_deviation_and_the_probabilities():
    scale = np.array([0.2, 1.0, 3.0])
    confidence = 1 - np.exp(-1 / scale)
    np.testing.assert_allclose(disparity_deviation(confidence), np.sqrt(2) * scale, rtol=1e-5)
    # At half size errors are half as large: at full size they are doubled.
    np.testing.assert_allclose(rescaled(confidence, 2), 1 - np.exp(-1 / (2 * scale)), rtol=1e-5)
    np.testing.assert_allclose(rescaled(confidence, 1), confidence, rtol=1e-6)


def test_the_ends_of_confidence():
    assert disparity_deviation(np.zeros(1)).tolist() == [np.inf]
    assert 0 < disparity_deviation(np.ones(1))[0] < 0.2
    assert rescaled(np.array([0.0, 1.0]), 3).tolist() == [0, 1]


# With a network ----------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path):
    """Weights without a description."""
    return shutil.copy(BUNDLED / "ea-light.safetensors", tmp_path / "mine.safetensors")


def describe(path, **changes):
    record = ConfidenceMap((0.5, 1.0, 0.25), -0.5, content_hash(path)).to_dict() | changes
    path.with_suffix(".json").write_text(json.dumps({"confidence": record}))


def test_the_map_is_read_from_the_description_of_its_weights(weights):
    describe(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_confidence(weights).weights == (0.5, 1.0, 0.25)


def test_without_a_map_of_these_weights_confidence_is_said_to_be_uncalibrated(weights):
    with pytest.warns(UserWarning, match="uncalibrated: this network has no"):
        assert read_confidence(weights) == UNCALIBRATED
    with pytest.warns(UserWarning, match="uncalibrated"):
        assert read_confidence(None) == UNCALIBRATED
    describe(weights, network="0" * 64)
    with pytest.warns(UserWarning, match="fitted to other weights"):
        assert read_confidence(weights) == UNCALIBRATED


@pytest.mark.parametrize(
    ("changes", "told"), [({"weights": [1.0]}, "1 weights, expected 3"), ({"bias": "0"}, "bias")]
)
def test_a_damaged_map_is_refused(weights, changes, told):
    describe(weights, **changes)
    with pytest.raises(ValueError, match=rf"mine\.json: confidence.*{told}"):
        read_confidence(weights)


@pytest.fixture(scope="module")
def sample():
    return textured_pair(186, 300)


@pytest.fixture(scope="module")
def result(matcher, sample):
    return matcher(sample.left, sample.right, confidence=True)


def test_disparity_is_the_same_with_confidence_and_without(matcher, sample, result):
    plain = matcher(sample.left, sample.right)
    assert plain.confidence is None
    assert np.array_equal(plain.disparity, result.disparity)


def test_confidence_is_high_where_the_network_is_right(sample, result):
    assert result.confidence.shape == result.disparity.shape
    assert result.confidence.dtype == np.float32
    assert 0 <= result.confidence.min() < result.confidence.max() <= 1
    right = np.abs(result.disparity - sample.disparity) < 1
    assert 0.5 < right.mean() < 1
    assert result.confidence[right].mean() > result.confidence[~right].mean() + 0.15


def test_half_precision_has_nearly_the_same_confidence(sample, result, monkeypatch):
    # On any processor: slow on some, but the same arithmetic.
    monkeypatch.setattr("ea_psmnet.inference.matcher.has_fast_bfloat16", lambda _: True)
    fast = StereoMatcher.load("ea-light", max_disparity=48, device="cpu", precision="fast")
    found = fast(sample.left, sample.right, confidence=True)
    assert found.confidence.dtype == np.float32
    assert np.abs(found.confidence - result.confidence).mean() < 0.03


def test_several_sizes_have_the_confidence_of_each_alone(matcher, sample, result):
    small = sample.left[:90, :201], sample.right[:90, :201]
    found = matcher.match([small, (sample.left, sample.right)], confidence=True)
    assert found[0].confidence.shape == (90, 201)
    np.testing.assert_allclose(found[1].confidence, result.confidence, rtol=0, atol=1e-5)


def test_tiles_have_the_confidence_of_the_whole(matcher, sample, result, monkeypatch):
    tiles = MemoryPlan(spans(48, 2), spans(76, 1), 0)
    monkeypatch.setattr(matcher, "plan", lambda *_: tiles)
    tiled = matcher(sample.left, sample.right, confidence=True)
    assert np.abs(tiled.confidence - result.confidence).mean() < 0.02


@pytest.mark.slow
def test_bundled_weights_are_calibrated():
    scenes = SyntheticScenes(seed=77_001, split="test", size=(256, 512), count=6)
    networks = []
    for name in ("ea-light", "ea-psmnet-small"):
        matcher = StereoMatcher.load(name, device="cpu")
        assert matcher.confidence_map != UNCALIBRATED
        networks.append(network(matcher, name, confidence=True))
    for evaluation in evaluate_predictors(networks, scenes):
        figures = evaluation.confidence.figures()
        assert figures["ECE"] < 10, evaluation.label
        assert figures["AUSE of bad-1"] < 18, evaluation.label
