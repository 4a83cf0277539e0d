"""Differences between the predictions of an exported file and of its network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ea_psmnet.experiments.measure import timed
from ea_psmnet.inference.exported import ExportedMatcher
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.metrics import DisparityErrors
from ea_psmnet.progress import Progress
from ea_psmnet.sample import StereoSample
from ea_psmnet.tables import markdown_table

LIMIT = 0.05
"""Largest mean difference of disparity to the network's in float32, in pixels."""

_REPEATS = 3


@dataclass(frozen=True)
class PairParity:
    """The predictions of a file and of the network for one pair."""

    name: str
    pixels: int
    most: float
    """Largest difference of a pixel, in pixels."""
    mean: float
    """Mean difference, in pixels."""
    epe: float
    """End-point error of the network in float32; NaN without ground truth."""
    exported_epe: float
    """End-point error of the file."""
    seconds: float
    """Time of the network."""
    exported_seconds: float
    """Time of the file."""


@dataclass(frozen=True)
class Parity:
    """The predictions of a file and of the network for several pairs."""

    pairs: Sequence[PairParity]

    @property
    def most(self) -> float:
        """Largest difference of a pixel, in pixels."""
        return max(pair.most for pair in self.pairs)

    @property
    def mean(self) -> float:
        """Mean difference of all pixels, in pixels."""
        pixels = sum(pair.pixels for pair in self.pairs)
        return sum(pair.mean * pair.pixels for pair in self.pairs) / pixels

    @property
    def epe_change(self) -> float:
        """Mean change of the pairs' end-point errors, in pixels; NaN without ground truth."""
        changes = [pair.exported_epe - pair.epe for pair in self.pairs]
        known = [change for change in changes if not math.isnan(change)]
        return sum(known) / len(known) if known else math.nan

    @property
    def speed(self) -> float:
        """Time of the network divided by that of the file; above 1 the file is faster."""
        seconds = sum(pair.seconds for pair in self.pairs)
        return seconds / sum(pair.exported_seconds for pair in self.pairs)

    def table(self) -> str:
        """A row a pair, as Markdown."""
        rows = [
            {
                "pair": pair.name,
                "max px": pair.most,
                "mean px": pair.mean,
                "EPE": pair.epe,
                "exported EPE": pair.exported_epe,
                "s": pair.seconds,
                "exported s": pair.exported_seconds,
            }
            for pair in self.pairs
        ]
        digits = dict.fromkeys(("max px", "mean px", "EPE", "exported EPE"), 5)
        return markdown_table(rows, digits)

    def to_dict(self) -> dict[str, Any]:
        """Figures over all pairs as plain values; None for NaN."""
        figures = {
            "pairs": len(self.pairs),
            "max_px": self.most,
            "mean_px": self.mean,
            "epe_change_px": self.epe_change,
            "speed": self.speed,
        }
        return {name: None if math.isnan(value) else value for name, value in figures.items()}


def compare(
    exact: StereoMatcher,
    network: StereoMatcher,
    exported: ExportedMatcher,
    samples: Iterable[StereoSample],
) -> Parity:
    """Predict pairs with an exported file and with the network.

    Args:
        exact: The network in float32, whose disparities are compared.
        network: The network whose time is compared.
        exported: The file.
        samples: At least one pair.

    Raises:
        ValueError: There is no pair; or a pair is not of a size that the file is for.
    """
    shown = Progress(samples, desc="comparing", unit="pair", leave=False, disable=None)
    pairs = [_compared(exact, network, exported, sample) for sample in shown]
    if not pairs:
        raise ValueError("there is no pair to compare the exported file with the network")
    return Parity(pairs)


def check_parity(parity: Parity, what: str) -> None:
    """Raise a ValueError if the mean difference is above `LIMIT`, or no number."""
    if not parity.mean <= LIMIT:
        raise ValueError(
            f"{what}: not kept: its disparities differ by {parity.mean:.3f} px on average (at most "
            f"{parity.most:.1f}) from the network's in float32, and {LIMIT} are allowed; --force "
            "keeps it"
        )


def _compared(
    exact: StereoMatcher, network: StereoMatcher, exported: ExportedMatcher, sample: StereoSample
) -> PairParity:
    left, right = sample.left, sample.right
    found = exported.disparity(left, right)
    expected = exact(left, right).disparity
    if network is not exact:
        network(left, right)
    calls: tuple[Callable[[], object], ...] = (
        lambda: network(left, right),
        lambda: exported.disparity(left, right),
    )
    # In turn, after one prediction each, so that a busy machine slows both.
    taken = np.array([[timed(call, network.device) for call in calls] for _ in range(_REPEATS)])
    seconds, exported_seconds = map(float, np.median(taken, axis=0))
    difference = np.abs(found.astype(np.float64) - expected)
    return PairParity(
        name=sample.name,
        pixels=difference.size,
        most=float(difference.max()),
        mean=float(difference.mean()),
        epe=_epe(expected, sample, exact.max_disparity),
        exported_epe=_epe(found, sample, exact.max_disparity),
        seconds=seconds,
        exported_seconds=exported_seconds,
    )


def _epe(disparity: NDArray[np.float32], sample: StereoSample, limit: float) -> float:
    return DisparityErrors.measure(disparity, sample.disparity, sample.counted(limit)).epe
