"""A report of evaluations: written, read again, and held against another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ea_psmnet.files import write_json, write_text
from ea_psmnet.reports.evaluation_data import Evaluation
from ea_psmnet.reports.evaluation_text import (
    COMPARISON_NOTE,
    comparison_section,
    images_csv,
    overview,
    protocol_rules,
    protocol_section,
    region_section,
)
from ea_psmnet.reports.significance import Comparison, compare_evaluations

__all__ = ["EvaluationReport"]

_VERSION = 1
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
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such report")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["version"] != _VERSION:
                raise ValueError(f"version {record['version']}, expected {_VERSION}")
            evaluations = tuple(Evaluation.from_dict(each) for each in record["methods"])
            return cls(record["title"], evaluations, record["settings"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: no report that `evaluate --out` wrote ({type(error).__name__}: {error})"
            ) from error


def _counterpart(label: str, report: EvaluationReport) -> Evaluation:
    same = [each for each in report.evaluations if each.label == label]
    candidates: Sequence[Evaluation] = same or report.evaluations
    if len(candidates) != 1:
        names = ", ".join(each.label for each in report.evaluations)
        raise ValueError(f"the other report has no {label!r}, but {names}: which one is meant?")
    return candidates[0]
