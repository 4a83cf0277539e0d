"""An evaluation as a report: written as JSON, Markdown and CSV, read again, and compared."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ea_psmnet.evaluation.confidence import ConfidenceSums, confidence_chart
from ea_psmnet.evaluation.evaluation import Evaluation, ProtocolResult
from ea_psmnet.evaluation.protocols import PROTOCOLS, find_protocols
from ea_psmnet.evaluation.regions import ALL, EDGE_DISTANCE, EDGE_JUMP
from ea_psmnet.evaluation.shares import ImageErrors
from ea_psmnet.evaluation.significance import Comparison, compare_evaluations
from ea_psmnet.files import write_image, write_json, write_text
from ea_psmnet.metrics import DisparityErrors
from ea_psmnet.records import read_record
from ea_psmnet.tables import markdown_table

_VERSION: Literal[1] = 1
_UNITS = (
    "EPE, RMSE, median (A50), A90, A95 and A99 are in pixels, over the pixels that have a "
    "prediction; bad-N (error over N px), D1 (over 3 px and 5 %) and density are in percent of all "
    "counted pixels, where a missing prediction counts as wrong. Quantiles of several images are "
    "accurate to 0.4 %, and below 0.016 px to 0.008 px."
)


@dataclass(frozen=True)
class EvaluationReport:
    """Evaluations of predictors on one dataset."""

    title: str
    """Name of the dataset."""
    evaluations: tuple[Evaluation, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of the evaluation, such as device and versions of libraries."""
    comparisons: tuple[Comparison, ...] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    """Titles of the pictures, with their paths beside the page."""

    def against(self, earlier: EvaluationReport) -> list[Comparison]:
        """Compare every predictor with that of the same label in another report, or its only one.

        Raises:
            ValueError: There is no such predictor, or it cannot be compared.
        """
        return [
            compare_evaluations(each, _counterpart(each.label, earlier))
            for each in self.evaluations
        ]

    def check_comparable(self, labels: Iterable[str], names: Iterable[str]) -> None:
        """Check before measuring that predictors can be compared with those of this report.

        Args:
            labels: Labels of the predictors.
            names: Names of the pairs.

        Raises:
            ValueError: A predictor has no counterpart here, or none of a pair.
        """
        pairs = set(names)
        for label in labels:
            here = _counterpart(label, self)
            if not any(image.name in pairs for image in here.images):
                raise ValueError(f"{label} and {here.label} share no image: nothing to compare")

    def to_text(self) -> str:
        """Return the tables, for a terminal."""
        protocols = [protocol_section] if self.evaluations[0].protocols else []
        parts = [overview, *protocols, region_section]
        if _confident(self.evaluations):
            parts.append(confidence_section)
        return "\n\n".join(part(self.evaluations) for part in parts)

    def comparisons_text(self) -> str:
        """Return a table for every comparison, and how to read them."""
        tables = [comparison_section(each) for each in self.comparisons]
        return "\n\n".join([*tables, COMPARISON_NOTE])

    def to_markdown(self) -> str:
        """Return a page with all tables and explanations."""
        first = self.evaluations[0]
        counted = (
            f"{len(first.images):,} pairs, {first.total.pixels:,} valid pixels whose disparity is "
            f"below {first.max_disparity:g} px. Each counts once in every figure of the first "
            "table and that of the regions."
        )
        table = overview(self.evaluations, bold=True)
        sections = [f"# Disparity errors: {self.title}", counted, table, _UNITS]
        if first.protocols:
            tables, rules = protocol_section(self.evaluations), protocol_rules(first)
            sections += ["## By protocol", tables, "### What the protocols count", rules]
        sections += ["## By region", region_section(self.evaluations)]
        if _confident(self.evaluations):
            chart = f"![Reliability and sparsification]({_CHART})"
            sections += ["## Confidence", confidence_section(self.evaluations), chart]
        if self.comparisons:
            sections += ["## Against an earlier report", self.comparisons_text()]
        if self.pictures:
            shown = (f"![{title}]({path})" for title, path in self.pictures.items())
            sections += ["## The worst pairs", *shown]
        if self.settings:
            made = "; ".join(f"{name} {value}" for name, value in self.settings.items())
            sections += ["## Made with", f"{made}."]
        return "\n\n".join(sections) + "\n"

    def with_pictures_of(self, folder: Path) -> EvaluationReport:
        """The report with those of its pictures that are in a folder."""
        there = {title: path for title, path in self.pictures.items() if (folder / path).is_file()}
        return replace(self, pictures=there)

    def write(self, folder: Path) -> None:
        """Write `report.json`, `report.md` and `images.csv`, with confidence `confidence.png`."""
        write_json(folder / "report.json", self.to_dict())
        write_text(folder / "report.md", self.to_markdown())
        write_text(folder / "images.csv", images_csv(self.evaluations))
        if sure := _confident(self.evaluations):
            write_image(folder / _CHART, confidence_chart(sure))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "version": _VERSION,
            "title": self.title,
            "settings": dict(self.settings),
            "methods": [each.to_dict() for each in self.evaluations],
            "comparisons": [each.to_dict() for each in self.comparisons],
            "pictures": dict(self.pictures),
        }

    @classmethod
    def read(cls, path: Path) -> EvaluationReport:
        """Read a report that `write` wrote, without its comparisons.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not such a report.
        """
        record = read_record(path, _Record, remedy="it is not a report that `evaluate --out` wrote")
        evaluations = tuple(method.evaluation() for method in record.methods)
        return cls(record.title, evaluations, record.settings, pictures=record.pictures)


def _counterpart(label: str, report: EvaluationReport) -> Evaluation:
    def network(label: str) -> str:
        return label.partition(",")[0]  # without the number of scales

    same = [each for each in report.evaluations if each.label == label]
    like = [each for each in report.evaluations if network(each.label) == network(label)]
    candidates: Sequence[Evaluation] = same or like or report.evaluations
    if len(candidates) != 1:
        names = ", ".join(each.label for each in report.evaluations)
        raise ValueError(
            f"the other report has no {label!r}; it has {names}: evaluate one of these"
        )
    return candidates[0]


# Types of the JSON for reading --------------------------------------------------------------------


@dataclass(frozen=True)
class _Region:
    sums: DisparityErrors
    figures: dict[str, float]


@dataclass(frozen=True)
class _Confidence:
    sums: ConfidenceSums
    figures: dict[str, float]


@dataclass(frozen=True)
class _Image:
    name: str
    errors: DisparityErrors
    seconds: float | None
    quantiles: dict[str, float]


@dataclass(frozen=True)
class _Method:
    """The output of `Evaluation.to_dict`."""

    label: str
    max_disparity: float
    visibility_known: int
    total: dict[str, float]
    regions: dict[str, _Region]
    quantiles: dict[str, dict[str, float]]
    protocols: tuple[ProtocolResult, ...]
    images: tuple[_Image, ...]
    confidence: _Confidence | None = None

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
        """Return the evaluation."""
        images = [
            ImageErrors(i.name, i.errors, math.nan if i.seconds is None else i.seconds, i.quantiles)
            for i in self.images
        ]
        return Evaluation(
            label=self.label,
            max_disparity=self.max_disparity,
            images=tuple(images),
            regions={name: region.sums for name, region in self.regions.items()},
            quantiles=self.quantiles,
            protocols=self.protocols,
            visibility_known=self.visibility_known,
            confidence=None if self.confidence is None else self.confidence.sums,
        )


@dataclass(frozen=True)
class _Record:
    """The output of `EvaluationReport.to_dict`."""

    version: Literal[1]
    title: str
    settings: dict[str, str]
    methods: tuple[_Method, ...]
    comparisons: tuple[dict[str, Any], ...]
    pictures: dict[str, str] = field(default_factory=dict)  # older reports have none

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("methods is empty")
        first, *others = ([*m.regions, *(r.name for r in m.protocols)] for m in self.methods)
        if any(other != first for other in others):
            raise ValueError("methods differ in their regions or protocols")


_ERRORS = (
    *("EPE", "RMSE", "bad-0.5", "bad-1", "bad-2", "bad-3", "bad-4", "D1"),
    *("median", "A90", "A95", "A99"),
)
_FIGURES = (*_ERRORS, "density")
_REGION_FIGURES = ("EPE", "RMSE", "bad-1", "bad-2", "bad-3", "D1", "median", "A90", "density")
_DIGITS = {"EPE": 3, "RMSE": 3, "median": 3, "before": 3, "after": 3, "change": 3}
COMPARISON_NOTE = (
    "EPE in pixels, over the pixels that have a prediction, and without an interval if their "
    "numbers differ; the others in percent of all pixels. Lower is better. The interval is a "
    "paired bootstrap over images (10,000 resamples); if zero lies in it, the difference may be "
    "chance."
)
_CHART = "confidence.png"
_CONFIDENCE_NOTE = (
    "`confidence` is the predicted and `correct` the actual share of errors below 1 px, in "
    "percent. ECE: expected calibration error over 20 bins, in percent. AUSE: area between the "
    "sparsification curve and the oracle's, which removes the largest errors first; a mean over "
    "images and over removed shares from 0 to 95 %, in percent for bad-1 and in pixels for the EPE."
)
_NAMED = 5  # number of dropped images that are named; the JSON names all


def overview(evaluations: Sequence[Evaluation], *, bold: bool = False) -> str:
    """A row for every predictor: figures over all counted pixels; `bold` marks the smallest."""
    rows = [
        {"method": each.label} | _pick(each.figures(), _FIGURES) | {"s/pair": each.seconds}
        for each in evaluations
    ]
    return markdown_table(_without_empty(rows), _DIGITS, _ERRORS if bold else ())


def protocol_section(evaluations: Sequence[Evaluation]) -> str:
    """Figures and counts of every protocol, and the images that it drops."""
    rows = [
        {"protocol": result.name, "region": result.region, "method": each.label}
        | _pick(result.figures, _ERRORS)
        | {"images": result.images, "dropped": _count(result.dropped), "pixels": result.pixels}
        for results in zip(*(each.protocols for each in evaluations), strict=True)
        for each, result in zip(evaluations, results, strict=True)
        if result.images
    ]
    tables = [markdown_table(_without_empty(rows), _DIGITS)] if rows else []
    return "\n\n".join([*tables, *_dropped_lines(evaluations[0])])


def protocol_rules(evaluation: Evaluation) -> str:
    """List what every protocol counts and averages, and its source."""
    rules = {protocol.name: protocol.rule for protocol in PROTOCOLS}
    names = dict.fromkeys(result.name for result in evaluation.protocols)
    return "\n".join(f"- **{name}**: {rules[name]}." for name in names)


def region_section(evaluations: Sequence[Evaluation]) -> str:
    """Figures over parts of the pixels, and definitions of the parts."""
    total = evaluations[0].total.pixels
    rows = [
        {"region": name, "share": 100 * each.regions[name].pixels / total, "method": each.label}
        | _pick(each.figures(name), _REGION_FIGURES)
        for name in evaluations[0].regions
        for each in evaluations
        if name != ALL and each.regions[name].pixels
    ]
    notes = [
        "Share is in percent of the counted pixels. Ranges are of true disparity. Near edges: at "
        f"most {EDGE_DISTANCE} px, in rows and in columns, from two neighbours whose true "
        f"disparities differ by more than {EDGE_JUMP:g} px.",
        _visibility_note(evaluations[0]),
    ]
    table = [markdown_table(rows, _DIGITS)] if rows else []
    return "\n\n".join([*table, " ".join(notes)])


def _confident(evaluations: Sequence[Evaluation]) -> dict[str, ConfidenceSums]:
    """The predictors that have confidence, by label."""
    return {each.label: each.confidence for each in evaluations if each.confidence is not None}


def confidence_section(evaluations: Sequence[Evaluation]) -> str:
    """Figures of every predictor's confidence, and their explanation."""
    rows = [
        {"method": label, "images": sums.images, "pixels": int(sum(sums.counts))} | sums.figures()
        for label, sums in _confident(evaluations).items()
    ]
    return f"{markdown_table(rows)}\n\n{_CONFIDENCE_NOTE}"


def comparison_section(comparison: Comparison) -> str:
    """A row for every figure: before, after, the change and its interval."""
    rows: list[dict[str, object]] = [
        {
            "figure": each.figure,
            "before": each.before,
            "after": each.after,
            "change": each.change,
            "95 % interval": f"{each.low:+.3f} to {each.high:+.3f}"
            if each.low == each.low
            else "none",
            "verdict": each.verdict,
        }
        for each in comparison.differences
    ]
    lacking = {"earlier": comparison.only_after, "new": comparison.only_before}
    missing = [
        f"Not in the {which} report, and left out: {', '.join(names)}."
        for which, names in lacking.items()
        if names
    ]
    title = f"{comparison.label} against {comparison.against}, {comparison.images} images"
    return "\n\n".join([f"**{title}**", markdown_table(rows, _DIGITS), *missing])


def images_csv(evaluations: Sequence[Evaluation]) -> str:
    """A line for every predictor and image, with full precision; empty where there is no figure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "image", "pixels", *_FIGURES, "seconds"])
    for each in evaluations:
        for image in each.images:
            figures = [*_pick(image.figures(), _FIGURES).values(), image.seconds]
            cells = ["" if value is None or value != value else value for value in figures]
            writer.writerow([each.label, image.name, image.errors.pixels, *cells])
    return text.getvalue()


def _pick(figures: Mapping[str, float], names: Sequence[str]) -> dict[str, float | None]:
    return {name: figures.get(name) for name in names}


def _without_empty(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Leave out columns in which no row has a value."""
    kept = [n for n in rows[0] if any(r[n] is not None and r[n] == r[n] for r in rows)]
    return [{name: row[name] for name in kept} for row in rows]


def _count(dropped: Mapping[str, Sequence[str]]) -> int:
    return sum(len(names) for names in dropped.values())


def _dropped_lines(evaluation: Evaluation) -> list[str]:
    """List what every protocol drops; the same for all predictors: only ground truth decides."""
    lines = []
    for result in evaluation.protocols:
        for reason, names in result.dropped.items():
            some = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
            lines.append(f"- {result.name} ({result.region}) drops {len(names)}, {reason}: {some}")
    return ["\n".join(lines)] if lines else []


def _visibility_note(evaluation: Evaluation) -> str:
    known, count = evaluation.visibility_known, len(evaluation.images)
    if known == 0:
        return "Occlusion is unknown: no pair has a mask of the pixels visible in the right image."
    return (
        f"{known} of {count} pairs have a mask of the pixels visible in the right image; the "
        "regions of non-occluded and occluded pixels are of these."
    )
