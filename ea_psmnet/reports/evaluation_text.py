"""Evaluations as tables and a page: what a paper's supplement would show."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from ea_psmnet.reports.evaluation_data import Evaluation
from ea_psmnet.reports.protocols import PROTOCOLS
from ea_psmnet.reports.regions import ALL, EDGE_DISTANCE, EDGE_JUMP
from ea_psmnet.reports.significance import Comparison
from ea_psmnet.tables import markdown_table

__all__ = [
    "COMPARISON_NOTE",
    "comparison_section",
    "images_csv",
    "overview",
    "protocol_rules",
    "protocol_section",
    "region_section",
]

_ERRORS = (
    *("EPE", "RMSE", "bad-0.5", "bad-1", "bad-2", "bad-3", "bad-4", "D1"),
    *("median", "A90", "A95", "A99"),
)
_FIGURES = (*_ERRORS, "density")
_REGION_FIGURES = ("EPE", "RMSE", "bad-1", "bad-2", "bad-3", "D1", "median", "A90", "density")
_DIGITS = {"EPE": 3, "RMSE": 3, "median": 3, "before": 3, "after": 3, "change": 3}
COMPARISON_NOTE = (
    "EPE in pixels, the others in percent, pooled over pixels; lower is better. The interval is a "
    "paired bootstrap over images (10,000 resamples); where it holds zero, the difference may be "
    "luck."
)
_NAMED = 5  # dropped images that are named; the JSON has all


def overview(evaluations: Sequence[Evaluation], *, bold: bool = False) -> str:
    """One row a method: figures over all counted pixels; `bold` for the smallest errors."""
    rows = [
        {"method": each.label} | _pick(each.figures(), _FIGURES) | {"s/pair": each.seconds}
        for each in evaluations
    ]
    return markdown_table(_without_empty(rows), _DIGITS, _ERRORS if bold else ())


def protocol_section(evaluations: Sequence[Evaluation]) -> str:
    """Every protocol's figures and counts, and the images it drops."""
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
    """What each protocol counts and averages, and its source."""
    rules = {protocol.name: protocol.rule for protocol in PROTOCOLS}
    names = dict.fromkeys(result.name for result in evaluation.protocols)
    return "\n".join(f"- **{name}**: {rules[name]}." for name in names)


def region_section(evaluations: Sequence[Evaluation]) -> str:
    """Figures over parts of the pixels, and what the parts are."""
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
        f"most {EDGE_DISTANCE} px, in rows and in columns, from where the true disparity of two "
        f"neighbours differs by more than {EDGE_JUMP:g} px.",
        _visibility_note(evaluations[0]),
    ]
    table = [markdown_table(rows, _DIGITS)] if rows else []
    return "\n\n".join([*table, " ".join(notes)])


def comparison_section(comparison: Comparison) -> str:
    """A row a figure: before, after, the change and its interval."""
    rows: list[dict[str, object]] = [
        {
            "figure": each.figure,
            "before": each.before,
            "after": each.after,
            "change": each.change,
            "95 % interval": f"{each.low:+.3f} to {each.high:+.3f}"
            if each.low == each.low
            else "none of one image",
            "verdict": each.verdict,
        }
        for each in comparison.differences
    ]
    missing = [
        f"Not in the {which} report, and left out: {', '.join(names)}."
        for which, names in (
            ("earlier", comparison.only_after),
            ("new", comparison.only_before),
        )
        if names
    ]
    title = f"{comparison.label} against {comparison.against}, {comparison.images} images"
    return "\n\n".join([f"**{title}**", markdown_table(rows, _DIGITS), *missing])


def images_csv(evaluations: Sequence[Evaluation]) -> str:
    """A line a method and image, with full precision; empty where there is no figure."""
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
    """The rows without columns in which no row has a value."""
    kept = [n for n in rows[0] if any(r[n] is not None and r[n] == r[n] for r in rows)]
    return [{name: row[name] for name in kept} for row in rows]


def _count(dropped: Mapping[str, Sequence[str]]) -> int:
    return sum(len(names) for names in dropped.values())


def _dropped_lines(evaluation: Evaluation) -> list[str]:
    """What each protocol left out; the same for every method, as only the truth decides."""
    lines = []
    for result in evaluation.protocols:
        for reason, names in result.dropped.items():
            some = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
            lines.append(f"- {result.name} ({result.region}) drops {len(names)}, {reason}: {some}")
    return ["\n".join(lines)] if lines else []


def _visibility_note(evaluation: Evaluation) -> str:
    known, count = evaluation.visibility_known, len(evaluation.images)
    if known == 0:
        return "No pair says which pixels the right image sees: nothing is told of occlusion."
    return (
        f"{known} of {count} pairs say which pixels the right image sees; non-occluded and "
        "occluded pixels are theirs."
    )
