"""What attention costs on volumes: closed form next to measured, as the paper's Table 1, Figure 3.

Shen et al., "Efficient Attention: Attention with Linear Complexities", WACV 2021.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from ea_psmnet.attention.base import Resources
from ea_psmnet.reports.resource_cases import (
    CASES,
    TABLE_1,
    case_module,
    case_resources,
    check_name,
)
from ea_psmnet.reports.resource_meter import Measured, measure
from ea_psmnet.tables import format_bytes, markdown_table

__all__ = [
    "DTYPES",
    "PAPER_VOLUMES",
    "Row",
    "VolumeReport",
    "decimal",
    "parse_volume",
    "volume_markdown",
    "volume_report",
]

PAPER_VOLUMES = ("64x64", "128x128", "256x256", "28x28x4", "64x64x32")
"""Those of the paper's Figure 3."""

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")
}
"""Types to measure in, by name."""

_PAPER_CHANNELS = (64, 32)
"""d and d_k of the paper's Figure 3."""

_MEASURED_OPERATIONS = 10**11
"""A forward of more takes seconds to minutes on a CPU."""

_MISSING = "not measured"

_PAPER_TEXT = {
    (64, 64): "17 and 32 times: agrees",
    (128, 128): "over 1 GB and 50 G operations: agrees",
    (256, 256): "17.2 GB: agrees; 412 G operations is half of the formula's; 260 and 515 times are "
    "rounded",
    (28, 28, 4): "2 times: does not follow from the formulas",
    (64, 64, 32): "over 68 GB and 3.2 T operations: agrees; 1/32 of the memory does not follow; "
    "1025 times only without the residual sum",
}
"""What the paper's text says of Figure 3, and whether its formulas say the same."""


@dataclass(frozen=True)
class Row:
    """One case on one volume."""

    volume: str
    positions: int
    case: str
    resources: Resources
    bytes: int
    measured: Measured | None
    """None where the closed form exceeds the limits."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = asdict(self)
        values["resources"]["operations"] = self.resources.operations
        return values


class Ratio(NamedTuple):
    """Non-local over efficient, by Table 1."""

    volume: str
    memory: float
    operations: float
    paper: str | None
    """What the paper's text says, where it speaks of this case."""


@dataclass(frozen=True)
class VolumeReport:
    """All cases on all volumes."""

    channels: int
    key_channels: int
    dtype: str
    limit: int
    rows: list[Row]
    ratios: list[Ratio]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {
            "rows": [row.to_dict() for row in self.rows],
            "ratios": [ratio._asdict() for ratio in self.ratios],
            "notes": list(_notes(self)),
        }


def volume_report(
    volumes: Sequence[str],
    *,
    channels: int = 64,
    key_channels: int | None = None,
    cases: Sequence[str] = (),
    dtype: str = "float32",
    limit: int = 2**30,
) -> VolumeReport:
    """Cost of attention on volumes of several sizes, for one sample.

    Args:
        volumes: sides joined by x, as 64x64 or 48x136x240.
        channels: d.
        key_channels: d_k of efficient and dot-product attention; None for d / 2. The others keep
            the key channels they were published with.
        cases: keys of `CASES`; none for all.
        dtype: a key of `DTYPES`.
        limit: measure where the closed form needs no more bytes than this, and at most 100 G
            operations.

    Raises:
        ValueError: an unknown case or type, or something that is no volume or number of channels.
    """
    key_channels = channels // 2 if key_channels is None else key_channels
    if channels < 1 or key_channels < 1:
        raise ValueError(f"{channels} channels with {key_channels} key channels: too few to attend")
    check_name("dtype", dtype, DTYPES)
    for name in cases:
        check_name("mechanism", name, CASES)
    sizes = {volume: parse_volume(volume) for volume in volumes}
    rows = [
        _row(volume, size, case, (channels, key_channels), dtype, limit)
        for volume, size in sizes.items()
        for case in dict.fromkeys(cases or CASES)
    ]
    both = set(TABLE_1[:2]) <= set(cases or CASES)
    told = (channels, key_channels) == _PAPER_CHANNELS and dtype == "float32"
    ratios = [_ratio(v, s, (channels, key_channels), told) for v, s in sizes.items() if both]
    return VolumeReport(channels, key_channels, dtype, limit, rows, ratios)


def parse_volume(text: str) -> tuple[int, ...]:
    """`48x136x240` as (48, 136, 240); two sides or three.

    Raises:
        ValueError: it is no such text, or has fewer than two positions.
    """
    if not re.fullmatch(r"\d+(x\d+){1,2}", text) or math.prod(_sides(text)) < 2:
        raise ValueError(f"'{text}' is no volume: write its sides as 64x64 or 48x136x240")
    return _sides(text)


def _sides(text: str) -> tuple[int, ...]:
    return tuple(int(side) for side in text.split("x"))


def _row(
    volume: str,
    size: tuple[int, ...],
    case: str,
    channels: tuple[int, int],
    dtype: str,
    limit: int,
) -> Row:
    resources = case_resources(case, size, *channels)
    needed = resources.bytes(DTYPES[dtype].itemsize)
    measured = None
    if needed <= limit and resources.operations <= _MEASURED_OPERATIONS:
        sides = (1,) * (3 - len(size)) + size
        sample = torch.randn(1, channels[0], *sides).to(DTYPES[dtype])
        measured = measure(case_module(case, *channels), sample)
    return Row(volume, math.prod(size), case, resources, needed, measured)


def _ratio(volume: str, size: tuple[int, ...], channels: tuple[int, int], told: bool) -> Ratio:
    efficient, non_local = (case_resources(name, size, *channels) for name in TABLE_1[:2])
    return Ratio(
        volume,
        non_local.floats / efficient.floats,
        non_local.operations / efficient.operations,
        _PAPER_TEXT.get(size) if told else None,
    )


# As text ------------------------------------------------------------------------------------------

_COUNTED = (
    "Memory and operations are closed forms in Table 1's counting: every tensor once, "
    "normalisations in place, a multiply or an add is one operation, softmax is free "
    "(ea_psmnet/attention/resources.py derives each).",
    "Kept and peak are measured in a forward that records gradients: the storages that torch's "
    "operators return, held at its end and at most. What the backward does not need, as the "
    "branch before the residual sum, is not kept; a normalisation has input and output at once, "
    "so the peak of dot-product attention holds two n x n maps, and focused_linear-published "
    "keeps every step of its phi.",
    "Counted are two operations for each multiply-add of convolutions and matrix products, by "
    "torch's FlopCounterMode: the column before it, without sums, gates, normalisations, biases.",
)
_MODULES = (
    "Rows of Table 1 have no output projection (d_v = d). The modules have theirs, and "
    "dot_product has d_k value channels. efficient, focused_linear, external and hydra are this "
    "project's exact forms, whose peak has some MiB of chunks at any size; -published is the "
    "textbook order."
)
_HALF = (
    "Measured as trained: weights in float32, convolutions under autocast. Attention itself is "
    "computed in float32 whatever the type, so weights between pairs of positions take four bytes "
    "in the closed form, and more of what is measured does."
)


def volume_markdown(report: VolumeReport) -> str:
    """A table with a row a volume and case, the ratios of Table 1, and what is counted."""
    title = (
        f"One volume of d = {report.channels} channels, d_k = {report.key_channels}, "
        f"{report.dtype}, forward in training:"
    )
    parts = [title, markdown_table([_cells(row) for row in report.rows])]
    if report.ratios:
        rows: list[dict[str, object]] = [
            {
                "volume": ratio.volume,
                "memory": f"{ratio.memory:.1f}",
                "operations": f"{ratio.operations:.1f}",
                "the paper's text": ratio.paper or "-",
            }
            for ratio in report.ratios
        ]
        parts += ["Table 1, non-local over efficient:", markdown_table(rows)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in _notes(report))])


def decimal(count: float, unit: str = "") -> str:
    """Three digits in decimal units, as the paper writes them: `4.20 MB`, `101 M`."""
    exponent = min(5, max(0, math.floor(math.log10(float(f"{count:.2e}"))) // 3)) if count else 0
    value = count / 1000**exponent
    digits = 0 if exponent == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {('', 'k', 'M', 'G', 'T', 'P')[exponent]}{unit}".rstrip()


def _cells(row: Row) -> dict[str, object]:
    measured = row.measured
    return {
        "volume": row.volume,
        "mechanism": row.case,
        "memory": decimal(row.bytes, "B"),
        "kept": decimal(measured.kept_bytes, "B") if measured else _MISSING,
        "peak": decimal(measured.peak_bytes, "B") if measured else _MISSING,
        "operations": decimal(row.resources.operations),
        "of products": decimal(row.resources.products),
        "counted": decimal(measured.products) if measured else _MISSING,
    }


def _notes(report: VolumeReport) -> Iterator[str]:
    yield from _COUNTED
    if {row.case for row in report.rows} - set(TABLE_1):
        yield _MODULES
    if DTYPES[report.dtype].itemsize < 4:
        yield _HALF
    differing = {
        row.case
        for row in report.rows
        if row.measured and row.measured.products != row.resources.products
    }
    if differing:
        yield f"Counted differs from the closed form: {', '.join(sorted(differing))}."
    if any(row.measured is None for row in report.rows):
        yield (
            f"Not measured: closed forms above {format_bytes(report.limit)} or "
            f"{decimal(_MEASURED_OPERATIONS)} operations."
        )
