"""Confidence: the probability that the error of a pixel's disparity is below 1 pixel.

The evidence is the probability that the network's own distribution over disparities gives to the
neighbourhood of the estimate. This is not a probability of the error: levels are 4 pixels apart,
and networks are overconfident (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
A logistic function of its log-odds at three widths, fitted to ground truth, turns it into one
(Platt scaling with three inputs). `scripts/calibrate_confidence` fits it and stores it in the
description beside the weights. For a pair that is matched at two scales the evidence is what both
passes say: `two_scales.py`.

Shapes: B batch, K disparity levels, h and w of the volume, H = 4h, W = 4w of the image.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.files import content_hash
from ea_psmnet.models.config import SCALE
from ea_psmnet.models.weights import find_weights, read_card
from ea_psmnet.ops.precision import full_precision, widen
from ea_psmnet.records import parse_record

WIDTHS = (1, 3, 5)
"""Widths of the windows around the estimate, in levels of 4 pixels."""

_LEAST = 1e-4
"""Masses are clamped this far from 0 and 1, whose log-odds are infinite."""


@full_precision
def window_masses(scores: Tensor, disparity: Tensor, first: float) -> Tensor:
    """Probability of a window of each of `WIDTHS` around every pixel's estimate.

    The probabilities of each cell are summed over the window around each level, and these sums are
    interpolated trilinearly at the pixel and its estimate; half of a level's probability belongs to
    either side of it.

    Args:
        scores: (B, K, h, w), higher is likelier.
        disparity: (B, H, W), the estimate in pixels.
        first: Disparity of level 0, in pixels.

    Returns:
        (B, len(WIDTHS), H, W), from 0 to 1.
    """
    levels = scores.shape[1]
    probabilities = widen(scores).softmax(dim=1).unsqueeze(1)  # (B, 1, K, h, w)
    place = (2 * (disparity - first) / SCALE + 1) / levels - 1  # -1 to 1 from border to border
    rows, columns = (
        (2 * torch.arange(side, device=place.device, dtype=place.dtype) + 1) / side - 1
        for side in disparity.shape[-2:]
    )
    grid = torch.stack(
        [columns.expand_as(place), rows.unsqueeze(-1).expand_as(place), place], dim=-1
    ).unsqueeze(1)  # (B, 1, H, W, 3)
    found = []
    for width in WIDTHS:
        padded = F.pad(probabilities, (0, 0, 0, 0, width // 2, width // 2))
        sums = F.avg_pool3d(padded, (width, 1, 1), 1, divisor_override=1)
        mass = F.grid_sample(sums, grid, padding_mode="border", align_corners=False)
        found.append(mass[:, 0, 0])
    return torch.stack(found, dim=1)


@dataclass(frozen=True)
class ConfidenceMap:
    """Masses to confidence: a logistic function of a weighted sum of their log-odds.

    Raises:
        ValueError: The number of weights is not that of the masses.
    """

    weights: tuple[float, ...]
    """A weight for each mass: those of `WIDTHS`, or of `two_scales.fused`."""
    bias: float
    network: str = ""
    """SHA-256 of the file of weights to which it was fitted."""
    scenes: str = ""
    """The scenes on which it was fitted and measured."""
    figures: Mapping[str, float] | None = None
    """Measurements on scenes that were not used for the fit."""

    def __post_init__(self) -> None:
        if len(self.weights) != len(WIDTHS):
            raise ValueError(f"{len(self.weights)} weights, expected {len(WIDTHS)}")

    def __call__(self, masses: Tensor) -> Tensor:
        """Masses (B, 3, ...) to confidence (B, ...)."""
        odds = _log_odds(masses)
        weights = odds.new_tensor(self.weights).view(-1, *[1] * (odds.dim() - 2))
        # No product of matrices, which autocast would round.
        return torch.sigmoid((weights * odds).sum(dim=1) + self.bias)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the description of weights."""
        return asdict(self)


UNCALIBRATED = ConfidenceMap((0.0, 1.0, 0.0), 0.0)
"""The mass within 6 pixels itself, or, at two scales, the confidence of the chosen pass: it ranks
pixels, but is not a probability of an error."""

CARD_KEYS = {False: "confidence", True: "confidence_two_scales"}
"""Entries of the description of weights, by whether pairs are matched at two scales."""


def read_confidence(path: Path | str | None, *, two_scales: bool = False) -> ConfidenceMap:
    """Read the map from the description beside a file of weights.

    Without one, or if it was fitted to other weights, a warning says that confidence is
    uncalibrated, and the result is `UNCALIBRATED`.

    Args:
        path: See `find_weights`; None for a network that was not loaded from a file.
        two_scales: Whether it is for pairs that are matched at two scales.

    Raises:
        FileNotFoundError: There are no such weights.
        ValueError: The description is damaged.
    """
    key = CARD_KEYS[two_scales]
    record = None if path is None else read_card(path).get(key)
    if path is None or record is None:
        return _uncalibrated("this network has no calibration of it")
    source = f"{find_weights(path).with_suffix('.json')}: {key}"
    found = parse_record(json.dumps(record), ConfidenceMap, source)
    if found.network != content_hash(find_weights(path)):
        return _uncalibrated(f"{source} was fitted to other weights")
    return found


def _uncalibrated(reason: str) -> ConfidenceMap:
    warnings.warn(
        f"confidence is uncalibrated: {reason}; it ranks pixels, but is not a probability "
        "(scripts/calibrate_confidence makes it one)",
        stacklevel=4,
    )
    return UNCALIBRATED


def fit_confidence(masses: NDArray[np.floating], correct: NDArray[np.bool_]) -> ConfidenceMap:
    """Fit a map by maximum likelihood.

    Args:
        masses: (N, 3).
        correct: (N,), whether the error is below `THRESHOLD`.

    Raises:
        ValueError: All pixels are correct, or none is: there is nothing to fit.
    """
    if correct.all() or not correct.any():
        raise ValueError("every pixel is correct, or none: confidence needs both to be fitted")
    inputs = _log_odds(torch.from_numpy(np.asarray(masses, np.float64)))
    target = torch.from_numpy(correct).to(inputs)
    weights = torch.zeros(inputs.shape[1] + 1, dtype=inputs.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = inputs @ weights[:-1] + weights[-1]
        value = F.binary_cross_entropy_with_logits(logits, target)
        value.backward()
        return value

    optimiser.step(loss)
    *found, bias = weights.tolist()
    return ConfidenceMap(tuple(found), bias)


def _log_odds(masses: Tensor) -> Tensor:
    return masses.clamp(_LEAST, 1 - _LEAST).logit()
