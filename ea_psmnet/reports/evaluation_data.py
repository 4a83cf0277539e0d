"""What an evaluation finds, as plain data: sums and counts, from which every figure follows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ea_psmnet.metrics import DisparityErrors
from ea_psmnet.reports.regions import ALL

__all__ = ["Evaluation", "ImageErrors", "ProtocolResult"]


@dataclass(frozen=True)
class ImageErrors:
    """One pair's errors over all counted pixels."""

    name: str
    errors: DisparityErrors
    seconds: float
    """Time of the prediction alone; NaN where it was not made here."""
    quantiles: Mapping[str, float] = field(default_factory=dict)
    """Exact median, A90, A95 and A99."""

    def figures(self) -> dict[str, float]:
        """EPE and so on, quantiles included."""
        return self.errors.figures() | dict(self.quantiles)


@dataclass(frozen=True)
class ProtocolResult:
    """What a method scores by one protocol."""

    name: str
    region: str
    figures: Mapping[str, float]
    images: int
    """Images used."""
    pixels: int
    """Pixels used."""
    dropped: Mapping[str, tuple[str, ...]]
    """Reasons, each with the names of the images dropped for it."""


@dataclass(frozen=True)
class Evaluation:
    """One method's errors, over pixels whose disparity is known and below a limit.

    Totals are pooled: sums over all pixels of all images, so large images weigh more than small.
    """

    label: str
    max_disparity: float
    """The limit: truth from here on is not counted, whatever the method searches."""
    images: tuple[ImageErrors, ...]
    regions: Mapping[str, DisparityErrors]
    """Errors over parts of the pixels, of all images together; see `regions.regions`."""
    quantiles: Mapping[str, Mapping[str, float]]
    """Median, A90, A95 and A99 of each region, right to within 0.4 % (`ErrorHistogram`)."""
    protocols: tuple[ProtocolResult, ...] = ()
    visibility_known: int = 0
    """Images that say which pixels the right image sees too; both such regions are theirs."""

    @property
    def total(self) -> DisparityErrors:
        """Errors over all counted pixels of all images."""
        return sum((image.errors for image in self.images), DisparityErrors())

    @property
    def seconds(self) -> float:
        """Mean time of a prediction."""
        times = [image.seconds for image in self.images]
        return sum(times) / len(times) if times else math.nan

    def figures(self, region: str = ALL) -> dict[str, float]:
        """EPE and so on of a region, quantiles included."""
        return self.regions[region].figures() | dict(self.quantiles[region])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, from which `EvaluationReport.read` makes the same again.

        Figures that are not finite are left out. `total` and the figures of `regions` are there to
        be read by people; sums and counts are what is kept.
        """
        return {
            "label": self.label,
            "max_disparity": self.max_disparity,
            "visibility_known": self.visibility_known,
            "total": {"pixels": self.total.pixels} | _finite(self.figures()),
            "regions": {
                name: {"sums": asdict(errors), "figures": _finite(self.figures(name))}
                for name, errors in self.regions.items()
            },
            "quantiles": {name: _finite(values) for name, values in self.quantiles.items()},
            "protocols": [
                asdict(result) | {"figures": _finite(result.figures)} for result in self.protocols
            ],
            "images": [
                asdict(image)
                | {
                    "seconds": None if math.isnan(image.seconds) else image.seconds,
                    "quantiles": _finite(image.quantiles),
                }
                for image in self.images
            ],
        }


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if math.isfinite(value)}
