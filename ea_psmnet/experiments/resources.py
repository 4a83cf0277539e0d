"""Costs of attention on volumes: closed forms beside measurements.

After Table 1 and Figure 3 of Shen et al., "Efficient Attention: Attention with Linear
Complexities", WACV 2021.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ea_psmnet.attention import (
    MECHANISMS,
    ExternalAttention,
    FocusedLinearAttention,
    HydraAttention,
    build_attention,
    closed_form,
)
from ea_psmnet.attention.base import TABLE_1, Resources, split_heads
from ea_psmnet.attention.external import external_attention_reference
from ea_psmnet.attention.focused_linear import focused_features, focused_linear_attention
from ea_psmnet.attention.hydra import hydra_attention
from ea_psmnet.ops.attention import dot_product_attention_reference, efficient_attention
from ea_psmnet.tables import check_choice, format_bytes, markdown_table
from ea_psmnet.training.memory import LiveBytes

# Cases to measure ---------------------------------------------------------------------------------

_COMPARED = ("table1-efficient", "table1-non-local")
"""Rows of the paper's Table 1 whose costs cross."""


class Case(NamedTuple):
    """A name of `closed_form`, and options of the module."""

    form: str
    options: Mapping[str, Any]


CASES: dict[str, Case] = {
    **{name: Case(name, {}) for name in (*TABLE_1, *MECHANISMS)},
    **{
        f"{name}-published": Case(name, {"published_order": True})
        for name in ("efficient", "focused_linear", "external", "hydra")
    },
    "dot_product-sdpa": Case("dot_product", {"backend": "sdpa"}),
}
"""All cases by name."""

_WITH_KEY_CHANNELS = ("table1-efficient", "table1-non-local", "efficient", "dot_product")
"""Cases that take d_k; the others keep that of their publication, d."""


def case_resources(name: str, size: Sequence[int], channels: int, key_channels: int) -> Resources:
    """Return the closed form of a case on one volume."""
    return closed_form(CASES[name].form, size, channels, **_options(name, key_channels))


def case_module(name: str, channels: int, key_channels: int) -> nn.Module:
    """Build the module to measure for a case, from (1, C, D, H, W) to the same shape."""
    options = _options(name, key_channels)
    if name in _PUBLISHED:
        return _PUBLISHED[name](channels)
    if name not in TABLE_1:
        return build_attention(CASES[name].form, channels, **options)
    if name == "table1-residual":
        return _ResidualBlock(channels)
    kernels = {
        "table1-efficient": efficient_attention,
        "table1-non-local": dot_product_attention_reference,
    }
    return _AttentionBlock(kernels[name], channels, key_channels)


def _options(name: str, key_channels: int) -> dict[str, Any]:
    form, options = CASES[name]
    return {**options, **({"key_channels": key_channels} if form in _WITH_KEY_CHANNELS else {})}


class _PublishedExternal(ExternalAttention):
    """External attention with all weights between positions and memory rows at once."""

    def attend(self, volume: Tensor) -> Tensor:
        queries = self.queries(volume).flatten(2)  # (B, C, n)
        gathered = external_attention_reference(queries, self.key_memory, self.value_memory)
        return self.projection(gathered.reshape(volume.shape).to(volume.dtype))


class _PublishedHydra(HydraAttention):
    """Hydra attention, convolution by convolution."""

    def attend(self, volume: Tensor) -> Tensor:
        layers = (self.queries, self.keys, self.values)
        queries, keys, values = (layer(volume).flatten(2) for layer in layers)  # (B, C, n)
        gathered = hydra_attention(queries, keys, values, self.reduction)
        return self.projection(gathered.reshape(volume.shape).to(volume.dtype))


class _PublishedFocusedLinear(FocusedLinearAttention):
    """Focused linear attention with phi of all queries and keys at once."""

    def attend(self, volume: Tensor) -> Tensor:
        layers = (self.queries, self.keys)
        queries, keys = (
            focused_features(layer(volume).flatten(2), self.scale, self.focusing_power)
            for layer in layers
        )  # (B, k, n)
        values = self.values(volume)
        q, k, v = (split_heads(t, self.heads) for t in (queries, keys, values))
        gathered = focused_linear_attention(q, k, v, self.denominator)
        return self._project(gathered.reshape(values.shape).to(volume.dtype), values)


_PUBLISHED = {
    "external-published": _PublishedExternal,
    "focused_linear-published": _PublishedFocusedLinear,
    "hydra-published": _PublishedHydra,
}


class _AttentionBlock(nn.Module):
    """x + A(W_q x, W_k x, W_v x) with d_v = d and without projection, as Table 1 counts."""

    def __init__(self, kernel: Callable[..., Tensor], channels: int, key_channels: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.queries = nn.Conv3d(channels, key_channels, kernel_size=1)
        self.keys = nn.Conv3d(channels, key_channels, kernel_size=1)
        self.values = nn.Conv3d(channels, channels, kernel_size=1)

    def forward(self, volume: Tensor) -> Tensor:
        layers = (self.queries, self.keys, self.values)
        heads = (layer(volume).flatten(2).unsqueeze(1) for layer in layers)  # (B, 1, k or C, n)
        return volume + self.kernel(*heads).reshape(volume.shape).to(volume.dtype)


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each with batch normalisation and an in-place ReLU, and the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(
                nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1), bias=False),
                nn.BatchNorm3d(channels),
            )
            for _ in range(2)
        )

    def forward(self, volume: Tensor) -> Tensor:
        return F.relu_(volume + self.second(F.relu_(self.first(volume))))


# Measurement --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Measurements of a forward pass that records gradients."""

    kept_bytes: int
    """Bytes held at the end: the output, and what the backward pass needs."""
    peak_bytes: int
    """Most bytes held at one time, without the input and the parameters."""
    products: int
    """Operations of convolutions and matrix products."""


def measure(module: nn.Module, volume: Tensor) -> Measured:
    """Run a module once on a volume, and count bytes and operations.

    Memory is that of the storages that torch's operators return, until they are freed, without
    tensors inside an operator. Operations are counted by torch's `FlopCounterMode`, two for every
    multiply-add of a convolution, a matrix product or `scaled_dot_product_attention`; elementwise
    operations, softmax, normalisations and biases do not count.

    Args:
        module: The module; set to training mode, in float32, or float64 for such a volume.
        volume: Volume (B, C, D, H, W); for half precision the module runs under autocast.
    """
    half = volume.element_size() < 4
    module.to(torch.float32 if half else volume.dtype).train()
    volume = volume.detach().requires_grad_()
    live = LiveBytes()
    autocast = torch.autocast(volume.device.type, volume.dtype if half else None, enabled=half)
    with autocast, operation_counter() as counter, live:
        output = module(volume)
    kept = live.held
    del output  # alive until here, with everything that its backward pass needs
    return Measured(kept, live.peak, counter.get_total_flops())


def operation_counter() -> FlopCounterMode:
    """Torch's counter, which also counts `scaled_dot_product_attention` on CPUs."""

    def count(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # from shapes (B, heads, n, channels)

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={on_cpu: count})


# The report ---------------------------------------------------------------------------------------

PAPER_VOLUMES = ("64x64", "128x128", "256x256", "28x28x4", "64x64x32")
"""Volumes of the paper's Figure 3."""

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")
}
"""Types of volumes by name."""

_PAPER_CHANNELS = (64, 32)
"""d and d_k of the paper's Figure 3."""

_MEASURED_OPERATIONS = 10**11
"""Largest number of operations to measure; more take seconds to minutes on a CPU."""

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
"""Statements of the paper's text on Figure 3, and whether they agree with its formulas."""


@dataclass(frozen=True)
class Row:
    """A case on one volume."""

    volume: str
    positions: int
    case: str
    resources: Resources
    bytes: int
    measured: Measured | None
    """None if the closed form exceeds the limits."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        values = asdict(self)
        values["resources"]["operations"] = self.resources.operations
        return values


class Ratio(NamedTuple):
    """Ratio of non-local to efficient attention, by Table 1."""

    volume: str
    memory: float
    operations: float
    paper: str | None
    """Statement of the paper's text on this case, if there is one."""


@dataclass(frozen=True)
class VolumeReport:
    """Costs of all cases on all volumes."""

    channels: int
    key_channels: int
    dtype: str
    limit: int
    rows: list[Row]
    ratios: list[Ratio]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
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
    """Compute and measure the cost of attention on volumes of several sizes, for one sample.

    Args:
        volumes: Sizes, with sides joined by x, as 64x64 or 48x136x240.
        channels: Channels d of the volumes.
        key_channels: Key channels d_k of efficient and dot-product attention; None for d / 2. The
            other mechanisms keep the key channels they were published with.
        cases: Keys of `CASES`; empty for all.
        dtype: Type of the volumes, a key of `DTYPES`.
        limit: Largest closed form to measure, in bytes; also at most 100 G operations are measured.

    Raises:
        ValueError: A case or type is unknown, or a volume or number of channels is impossible.
    """
    key_channels = channels // 2 if key_channels is None else key_channels
    if channels < 1 or key_channels < 1:
        raise ValueError(f"{channels} channels with {key_channels} key channels: too few to attend")
    check_choice("dtype", dtype, list(DTYPES))
    for name in cases:
        check_choice("mechanism", name, list(CASES))
    sizes = {volume: parse_volume(volume) for volume in volumes}
    rows = [
        _row(volume, size, case, (channels, key_channels), dtype, limit)
        for volume, size in sizes.items()
        for case in dict.fromkeys(cases or CASES)
    ]
    both = set(_COMPARED) <= set(cases or CASES)
    told = (channels, key_channels) == _PAPER_CHANNELS and dtype == "float32"
    ratios = [_ratio(v, s, (channels, key_channels), told) for v, s in sizes.items() if both]
    return VolumeReport(channels, key_channels, dtype, limit, rows, ratios)


def parse_volume(text: str) -> tuple[int, ...]:
    """Read `48x136x240` as (48, 136, 240), with two sides or three.

    Raises:
        ValueError: The text is not a volume, or the volume has fewer than two positions.
    """
    known = re.fullmatch(r"\d+(x\d+){1,2}", text)
    sides = tuple(map(int, text.split("x"))) if known else ()
    if math.prod(sides) < 2:
        raise ValueError(f"'{text}' is not a volume: give its sides as 64x64 or 48x136x240")
    return sides


def _row(
    volume: str, size: tuple[int, ...], case: str, channels: tuple[int, int], dtype: str, limit: int
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
    efficient, non_local = (case_resources(name, size, *channels) for name in _COMPARED)
    return Ratio(
        volume,
        non_local.floats / efficient.floats,
        non_local.operations / efficient.operations,
        _PAPER_TEXT.get(size) if told else None,
    )


# As text ------------------------------------------------------------------------------------------

_COUNTED = (
    "Memory and operations are closed forms, counted as in Table 1: every tensor once, "
    "normalisations in place, a multiplication or an addition is one operation, softmax is free "
    "(derived in ea_psmnet/attention/base.py).",
    "Kept and peak are measured in a forward pass that records gradients: bytes of the storages "
    "that torch's operators return, at its end and at most. Tensors that the backward pass does "
    "not need, such as the branch before the residual sum, are not kept. A normalisation has input "
    "and output at once, so the peak of dot-product attention has two n x n maps, and "
    "focused_linear-published keeps every step of its phi.",
    "Counted are two operations for every multiply-add of convolutions and matrix products, by "
    "torch's FlopCounterMode: as the column before, without sums, gates, normalisations, biases.",
)
_MODULES = (
    "Rows of Table 1 have no output projection (d_v = d). The modules have one, and "
    "dot_product has d_k value channels. efficient, focused_linear, external and hydra are this "
    "project's exact forms, whose peak includes some MiB for chunks at any size; -published is "
    "the textbook order."
)
_HALF = (
    "Measured as in training: weights in float32, convolutions under autocast. Attention itself is "
    "computed in float32 for every type, so weights between pairs of positions take four bytes in "
    "the closed form, and further tensors do in the measurements."
)


def volume_markdown(report: VolumeReport) -> str:
    """A table with a row for every volume and case, the ratios of Table 1, and notes."""
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
    """Format with three digits in decimal units, as the paper does: `4.20 MB`, `101 M`."""
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
