"""The results of the network benchmark as numbers, Markdown and pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter
from network_benchmark import Accuracy
from network_cases import STEPS, NetworkCase, NetworkFloor, NetworkMeasurement
from numpy.typing import NDArray

from ea_psmnet.tables import format_bytes, markdown_table

__all__ = ["NetworkResults", "Record", "Target", "benchmark_markdown", "growth_plot", "layer_plot"]


@dataclass(frozen=True)
class Record:
    """A case and what it took: medians."""

    case: NetworkCase
    measured: NetworkMeasurement
    fastest: float
    """Seconds in the best round."""
    slowest: float
    """Seconds in the worst round."""

    @classmethod
    def of(cls, case: NetworkCase, rounds: list[NetworkMeasurement]) -> Record:
        """A case from what it took in each round, of which there is one at least."""
        seconds = sorted(m.seconds for m in rounds)
        middle = NetworkMeasurement(
            statistics.median(seconds),
            int(statistics.median(m.peak for m in rounds)),
            _medians([m.layers for m in rounds]),
            _medians([m.peaks for m in rounds]),
        )
        return cls(case, middle, seconds[0], seconds[-1])


def _medians(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: statistics.median(part[name] for part in parts) for name in parts[0]}


@dataclass(frozen=True)
class Target:
    """Something to reach."""

    name: str
    wanted: float
    found: float
    at_least: bool
    """Whether more is better."""

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.found >= self.wanted if self.at_least else self.found <= self.wanted


@dataclass(frozen=True)
class NetworkResults:
    """One run."""

    machine: str
    rounds: int
    floor: NetworkFloor
    records: list[Record]
    accuracy: list[Accuracy]
    sittings: int = 1
    """How often it was started until it was done."""

    def find(self, case: NetworkCase) -> NetworkMeasurement | None:
        """What a case took; None where it was not measured or failed."""
        return next((r.measured for r in self.records if r.case == case), None)

    def plain(self, case: NetworkCase, *, keep_memory: bool | None = None) -> NetworkCase:
        """The published form of a case; by default with the default allocator where it has one."""
        kept = replace(case, form="plain", network=case.network, keep_memory=True)
        default = replace(kept, keep_memory=False)
        if keep_memory is None:
            return default if self.find(default) else kept
        return kept if keep_memory else default

    def faster(self, case: NetworkCase, *, keep_memory: bool | None = None) -> float:
        """Times faster than the published form; NaN where either is missing."""
        fast, plain = self.find(case), self.find(self.plain(case, keep_memory=keep_memory))
        return plain.seconds / fast.seconds if fast and plain else float("nan")

    def lighter(self, case: NetworkCase) -> float:
        """Peak memory over the published form's; NaN where either is missing."""
        fast, plain = self.find(case), self.find(self.plain(case))
        return fast.peak / max(1, plain.peak) if fast and plain else float("nan")

    def targets(self) -> list[Target]:
        """What was to be reached, of what was measured."""
        on_card = all(r.case.keep_memory for r in self.records) and bool(self.records)
        found = [*self._speed(on_card), *self._training(on_card), *self._attention()]
        return [t for t in [*found, *self._accuracy()] if t.found == t.found]

    def _speed(self, on_card: bool) -> Iterator[Target]:
        wanted = {(544, 960): (6.0, 3.0), (256, 512): (5.0, 2.0)}
        if on_card:
            wanted = dict.fromkeys(wanted, (5.0, 2.0))
        for size, (fast, exact) in wanted.items():
            name = f"{size[0]} x {size[1]}"
            yield Target(
                f"inference, fast, {name}", fast, self.faster(NetworkCase("fast", size)), True
            )
            yield Target(
                f"inference, float32, {name}", exact, self.faster(NetworkCase("exact", size)), True
            )
            share = 1 / 4 if on_card else 1 / 3
            lighter = self.lighter(NetworkCase("fast", size))
            yield Target(f"peak memory, fast, {name}", share, lighter, False)

    def _training(self, on_card: bool) -> Iterator[Target]:
        steps = [r.case for r in self.records if r.case.training and r.case.form == "fast"]
        steps = [case for case in steps if case.size == (256, 512) and case.max_disparity == 192]
        for case in steps:
            if not on_card or case.batch == 24:
                name = f"training step, {case.network}, 256 x 512, batch {case.batch}"
                yield Target(name, 4.0 if on_card else 3.5, self.faster(case), True)

    def _attention(self) -> Iterator[Target]:
        for record in self.records:
            if record.case.network == "ea-psmnet" and not record.case.training:
                plain = self.find(replace(record.case, network="psmnet"))
                more = record.measured.seconds / plain.seconds - 1 if plain else float("nan")
                height, width = record.case.size
                yield Target(f"attention's extra time, {height} x {width}", 0.1, more, False)

    def _accuracy(self) -> Iterator[Target]:
        if not self.accuracy:
            return
        pairs = self.accuracy
        changes = [a.fast_mean for a in pairs]
        epes = [abs(a.epe_fast - a.epe_plain) for a in pairs]
        exact = max(a.exact_max for a in pairs)
        yield Target("float32, largest change, px", 0.005, exact, False)
        yield Target(
            "fast, mean change, mean of the pairs, px", 0.02, statistics.mean(changes), False
        )
        yield Target("fast, mean change, worst pair, px", 0.02, max(changes), False)
        yield Target("fast, change of EPE, worst pair, px", 0.005, max(epes), False)

    def verdict(self) -> str:
        """How many of the targets are met."""
        targets = self.targets()
        return f"{sum(t.met for t in targets)} of {len(targets)} targets met"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        targets = [asdict(target) | {"met": target.met} for target in self.targets()]
        return asdict(self) | {"targets": targets}


_READING = """\
Each case runs in processes of its own, after a small pair that loads code and starts threads; all
cases one after the other, and so several times over: medians, and the best and worst round. In a
round what takes less than two seconds runs up to five times; what takes over half a minute is
measured in the first round alone. Inputs and weights are random, but for accuracy.

- **form**: `plain` is the published one (eager float32, contiguous, volume filled by a loop, one
  image after the other, head on the full volume); `exact` the rearranged one in float32; `fast`
  the same in bfloat16 (in training autocast); `graphs` that as a CUDA graph, replayed.
- **allocator**: `kept` is glibc told to keep freed memory, as the program's commands do.
- **peak** is above the loaded network and its inputs; that of a step above what was held when it
  began, so that steps compare alone.
- **arithmetic** is the published multiply-adds (twice that for a backward) at the better rate of a
  matrix product and a 3 x 3 x 3 convolution in this run; a form that multiplies less can be
  faster. **traffic** is writing and reading ten volumes of the aggregation at a copy's bandwidth.
"""


def benchmark_markdown(results: NetworkResults, name: str) -> str:
    """The whole report; `name` is that of its files, without endings."""
    parts = ["# The network: published form and fast forms", _machine(results), _READING]
    if results.targets():
        parts += ["## Targets", _targets(results), f"{results.verdict()}."]
    inference = [r for r in results.records if not r.case.training]
    training = [r for r in results.records if r.case.training]
    if inference:
        parts += ["## Inference", markdown_table([_row(results, r) for r in inference])]
    if by_layer := [r for r in inference if r.measured.layers]:
        parts += ["### Steps", markdown_table([_steps(r) for r in by_layer])]
        parts += [f"![where time goes]({name}-layers.png)", f"![growth]({name}-growth.png)"]
    if training:
        parts += ["## Training step", markdown_table([_row(results, r) for r in training])]
    if results.accuracy:
        parts += ["## Accuracy, px", _accuracy(results)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _machine(results: NetworkResults) -> str:
    floor = results.floor
    rates = ", ".join(
        f"{kind} {name} {rate / 1e9:.0f} GFLOP/s"
        for kind, by_type in (("matrix product", floor.matmul), ("convolution", floor.conv3d))
        for name, rate in by_type.items()
    )
    return (
        f"{results.machine}; medians of {results.rounds}{_sittings(results)}; copy "
        f"{floor.bytes_per_second / 1e9:.1f} GB/s, {rates}."
    )


def _sittings(results: NetworkResults) -> str:
    return f", measured in {results.sittings} sittings" if results.sittings > 1 else ""


def _targets(results: NetworkResults) -> str:
    rows = [
        {
            "target": target.name,
            "wanted": f"{'>=' if target.at_least else '<='} {target.wanted:.3g}",
            "found": f"{target.found:.3g}",
            "met": "met" if target.met else "not met",
        }
        for target in results.targets()
    ]
    return markdown_table(rows)


def _what(record: Record) -> dict[str, object]:
    case = record.case
    return {
        "network": case.network,
        "size": f"{case.size[0]} x {case.size[1]}",
        "D": case.max_disparity,
        "batch": case.batch,
        "form": case.form,
        "allocator": "kept" if case.keep_memory else "default",
    }


def _row(results: NetworkResults, record: Record) -> dict[str, object]:
    case, measured = record.case, record.measured
    return _what(record) | {
        "s": f"{measured.seconds:.3g}",
        "rounds": f"{record.fastest:.3g} to {record.slowest:.3g}",
        "s a sample": f"{measured.seconds / case.batch:.3g}",
        "times faster": results.faster(case),
        "than plain kept": results.faster(case, keep_memory=True),
        "arithmetic s": f"{results.floor.arithmetic(case):.3g}",
        "traffic s": f"{results.floor.traffic(case):.3g}",
        "peak": format_bytes(measured.peak),
        "of plain": results.lighter(case),
    }


def _steps(record: Record) -> dict[str, object]:
    layers, peaks = record.measured.layers, record.measured.peaks
    seconds = {
        f"{step} s": f"{sum(v for n, v in layers.items() if n.startswith(f'{step}/')):.3g}"
        for step in STEPS
    }
    memory = {f"{step} peak": format_bytes(peaks.get(step, 0)) for step in STEPS}
    return _what(record) | seconds | memory


def _accuracy(results: NetworkResults) -> str:
    rows = [
        {
            "pair": one.name,
            "exact, largest change": f"{one.exact_max:.2g}",
            "fast, mean change": f"{one.fast_mean:.2g}",
            "EPE plain": f"{one.epe_plain:.4f}",
            "EPE exact": f"{one.epe_exact:.4f}",
            "EPE fast": f"{one.epe_fast:.4f}",
        }
        for one in results.accuracy
    ]
    return markdown_table(rows)


_SHADES = {
    "features": ("#08306b", "#4292c6", "#c6dbef"),
    "volume": ("#d55e00", "#d55e00"),
    "aggregation": ("#00441b", "#41ab5d", "#c7e9c0"),
    "head": ("#cc79a7", "#cc79a7"),
}
"""From the first to the last layer of a step."""
_LINES = {"plain": ("#d55e00", "plain"), "fast": ("#0072b2", "fast")}


def layer_plot(results: NetworkResults) -> NDArray[np.uint8]:
    """A bar a case of inference, stacked by layer, grouped by size; (h, w, 3) uint8 RGB."""
    records = [r for r in results.records if r.measured.layers]
    largest = max(r.case.max_disparity for r in records)
    records = [r for r in records if r.case.max_disparity == largest]
    sizes = sorted({r.case.size for r in records}, key=lambda size: -size[0] * size[1])[:2]
    figure = Figure(figsize=(15, 6.5), dpi=100, facecolor="white")
    panels = np.atleast_1d(figure.subplots(1, len(sizes)))
    for axes, size in zip(panels, sizes, strict=True):
        _bars(axes, [r for r in records if r.case.size == size])
        axes.set_title(f"{size[0]} x {size[1]}, D = {largest}", loc="left")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", frameon=False, reverse=True)
    figure.subplots_adjust(left=0.05, right=0.82, top=0.93, bottom=0.14, wspace=0.15)
    return _drawn(figure)


def _bars(axes: Axes, records: Sequence[Record]) -> None:
    names = [
        f"{r.case.form}\n{'kept' if r.case.keep_memory else 'default'}\n{r.case.network}"
        for r in records
    ]
    bottom = np.zeros(len(records))
    for layer, colour in _colours(list(records[0].measured.layers)).items():
        heights = np.array([r.measured.layers.get(layer, 0.0) for r in records])
        axes.bar(names, heights, bottom=bottom, color=colour, label=layer, width=0.7)
        bottom += heights
    axes.set_ylabel("seconds")
    _undress(axes)


def _colours(layers: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Shades of its step's colours for each layer."""
    found: dict[str, NDArray[np.float64]] = {}
    for step, shades in _SHADES.items():
        own = [layer for layer in layers if layer.startswith(f"{step}/")]
        scale = LinearSegmentedColormap.from_list(step, shades)
        found |= {layer: np.array(scale(i / max(1, len(own) - 1))) for i, layer in enumerate(own)}
    return found


def growth_plot(results: NetworkResults) -> NDArray[np.uint8]:
    """Time and memory against pixels and against disparities, log-log; (h, w, 3) uint8 RGB."""
    figure = Figure(figsize=(13, 9), dpi=100, facecolor="white")
    records = [r for r in results.records if not r.case.training and r.case.network == "psmnet"]
    deepest = max(r.case.max_disparity for r in records)
    size = max(
        sorted({r.case.size for r in records}),
        key=lambda s: len({r.case.max_disparity for r in records if r.case.size == s}),
    )
    by_pixels = [r for r in records if r.case.max_disparity == deepest]
    by_disparities = [r for r in records if r.case.size == size]
    across: list[tuple[str, list[Record], Callable[[NetworkCase], int]]] = [
        (f"pixels, D = {deepest}", by_pixels, lambda case: case.size[0] * case.size[1]),
        (f"disparities, {size[0]} x {size[1]}", by_disparities, lambda case: case.max_disparity),
    ]
    panels = figure.subplots(2, 2)
    for column, (label, chosen, place) in enumerate(across):
        _lines(panels[0, column], chosen, place, "seconds", lambda r: r.measured.seconds)
        _lines(panels[1, column], chosen, place, "peak, bytes", lambda r: max(1, r.measured.peak))
        panels[1, column].set_xlabel(label)
    panels[0, 0].legend(frameon=False)
    figure.subplots_adjust(left=0.08, right=0.98, top=0.97, bottom=0.07, wspace=0.2, hspace=0.15)
    return _drawn(figure)


def _lines(
    axes: Axes,
    records: Sequence[Record],
    place: Callable[[NetworkCase], int],
    label: str,
    value: Callable[[Record], float],
) -> None:
    for form, (colour, name) in _LINES.items():
        for kept, line in ((True, "-"), (False, "--")):
            chosen = [r for r in records if r.case.form == form and r.case.keep_memory == kept]
            points = sorted((place(r.case), value(r)) for r in chosen)
            if points:
                allocator = "kept" if kept else "default allocator"
                axes.plot(
                    *zip(*points, strict=True),
                    line,
                    marker="o",
                    color=colour,
                    label=f"{name}, {allocator}",
                )
    axes.set(xscale="log", yscale="log", ylabel=label)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(EngFormatter(sep=" "))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="both", color="#eeeeee", linewidth=0.8)
    _undress(axes)


def _undress(axes: Axes) -> None:
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _drawn(figure: Figure) -> NDArray[np.uint8]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), np.uint8)[..., :3].copy()
