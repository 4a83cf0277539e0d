"""A report of evaluations: written, read again, and held against another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ea_psmnet.files import write_json, write_text
from ea_psmnet.metrics import DisparityErrors
from ea_psmnet.records import read_record
from ea_psmnet.reports.evaluation_data import Evaluation, ImageErrors, ProtocolResult
from ea_psmnet.reports.evaluation_text import (
    COMPARISON_NOTE,
    comparison_section,
    images_csv,
    overview,
    protocol_rules,
    protocol_section,
    region_section,
)
from ea_psmnet.reports.protocols import find_protocols
from ea_psmnet.reports.regions import ALL
from ea_psmnet.reports.significance import Comparison, compare_evaluations

__all__ = ["EvaluationReport"]

_VERSION: Literal[1] = 1
_UNITS = (
    "EPE, RMSE, median (A50), A90, A95 and A99 are in pixels, over the pixels that are predicted; "
    "bad-N (error over N px), D1 (over 3 px and 5 %) and density are in percent of all counted "
    "pixels, in which a missing prediction is a wrong one. Quantiles are right to within 0.4 %."
)


@dataclass(frozen=True)
class EvaluationReport:
    """Methods on one dataset."""

    title: str
    """The dataset, and which part of it."""
    evaluations: tuple[Evaluation, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    """How it was made, as device and versions of libraries."""
    comparisons: tuple[Comparison, ...] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    """What pictures beside the page show, and where they are; not kept in the JSON."""

    def against(self, earlier: EvaluationReport) -> list[Comparison]:
        """Each method against the earlier report's of the same label, or against its only one.

        Raises:
            ValueError: no such method, or one that cannot be compared.
        """
        return [
            compare_evaluations(each, _counterpart(each.label, earlier))
            for each in self.evaluations
        ]

    def to_text(self) -> str:
        """The tables, for a screen."""
        protocols = [protocol_section] if self.evaluations[0].protocols else []
        parts = [overview, *protocols, region_section]
        return "\n\n".join(part(self.evaluations) for part in parts)

    def comparisons_text(self) -> str:
        """A table a comparison, and how to read them."""
        tables = [comparison_section(each) for each in self.comparisons]
        return "\n\n".join([*tables, COMPARISON_NOTE])

    def to_markdown(self) -> str:
        """A page with every table and what it takes to read them."""
        first = self.evaluations[0]
        counted = (
            f"{len(first.images):,} pairs, {first.total.pixels:,} pixels whose true disparity is "
            f"known and below {first.max_disparity:g} px. Each counts once in every figure of the "
            "first and the regions' table."
        )
        table = overview(self.evaluations, bold=True)
        sections = [f"# Disparity errors: {self.title}", counted, table, _UNITS]
        if first.protocols:
            tables, rules = protocol_section(self.evaluations), protocol_rules(first)
            sections += ["## By protocol", tables, "### What the protocols count", rules]
        sections += ["## By region", region_section(self.evaluations)]
        if self.comparisons:
            sections += ["## Against an earlier report", self.comparisons_text()]
        if self.pictures:
            shown = (f"![{title}]({path})" for title, path in self.pictures.items())
            sections += ["## The worst pairs", *shown]
        if self.settings:
            made = "; ".join(f"{name} {value}" for name, value in self.settings.items())
            sections += ["## Made with", f"{made}."]
        return "\n\n".join(sections) + "\n"

    def write(self, folder: Path) -> None:
        """Write `report.json`, `report.md` and `images.csv`."""
        write_json(folder / "report.json", self.to_dict())
        write_text(folder / "report.md", self.to_markdown())
        write_text(folder / "images.csv", images_csv(self.evaluations))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "version": _VERSION,
            "title": self.title,
            "settings": dict(self.settings),
            "methods": [each.to_dict() for each in self.evaluations],
            "comparisons": [each.to_dict() for each in self.comparisons],
        }

    @classmethod
    def read(cls, path: Path) -> EvaluationReport:
        """A report that `write` wrote, without its comparisons and pictures.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is no such report.
        """
        record = read_record(path, _Record, remedy="it is no report that `evaluate --out` wrote")
        evaluations = tuple(method.evaluation() for method in record.methods)
        return cls(record.title, evaluations, record.settings)


def _counterpart(label: str, report: EvaluationReport) -> Evaluation:
    same = [each for each in report.evaluations if each.label == label]
    candidates: Sequence[Evaluation] = same or report.evaluations
    if len(candidates) != 1:
        names = ", ".join(each.label for each in report.evaluations)
        raise ValueError(f"the other report has no {label!r}, but {names}: which one is meant?")
    return candidates[0]


# The JSON as it is read again ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Region:
    sums: DisparityErrors
    figures: dict[str, float]


@dataclass(frozen=True)
class _Image:
    name: str
    errors: DisparityErrors
    seconds: float | None
    quantiles: dict[str, float]


@dataclass(frozen=True)
class _Method:
    """What `Evaluation.to_dict` makes."""

    label: str
    max_disparity: float
    visibility_known: int
    total: dict[str, float]
    regions: dict[str, _Region]
    quantiles: dict[str, dict[str, float]]
    protocols: tuple[ProtocolResult, ...]
    images: tuple[_Image, ...]

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError("images is empty")
        if ALL not in self.regions or self.regions.keys() != self.quantiles.keys():
            raise ValueError(f"regions and quantiles must both have '{ALL}' and be of one kind")
        pixels = sum(image.errors.pixels for image in self.images)
        if any(region.sums.pixels > pixels for region in self.regions.values()):
            raise ValueError(f"regions have more pixels than the images together, {pixels}")
        find_protocols([result.name for result in self.protocols])

    def evaluation(self) -> Evaluation:
        """What it was made of."""
        images = (
            ImageErrors(
                each.name,
                each.errors,
                math.nan if each.seconds is None else each.seconds,
                each.quantiles,
            )
            for each in self.images
        )
        return Evaluation(
            label=self.label,
            max_disparity=self.max_disparity,
            images=tuple(images),
            regions={name: region.sums for name, region in self.regions.items()},
            quantiles=self.quantiles,
            protocols=self.protocols,
            visibility_known=self.visibility_known,
        )


@dataclass(frozen=True)
class _Record:
    """What `EvaluationReport.to_dict` makes."""

    version: Literal[1]
    title: str
    settings: dict[str, str]
    methods: tuple[_Method, ...]
    comparisons: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("methods is empty")
        first, *others = ([*m.regions, *(r.name for r in m.protocols)] for m in self.methods)
        if any(other != first for other in others):
            raise ValueError("methods differ in their regions or protocols")
