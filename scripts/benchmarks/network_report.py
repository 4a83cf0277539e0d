"""The results of the network benchmark as numbers, Markdown and pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from benchmarking import told_sittings
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import EngFormatter, NullFormatter
from network_cases import STEPS, Accuracy, NetworkCase, NetworkFloor, NetworkMeasurement
from numpy.typing import NDArray

from ea_psmnet.figures import dress, new_figure, to_image
from ea_psmnet.tables import format_bytes, markdown_table


@dataclass(frozen=True)
class Record:
    """A case and the medians of its measurements."""

    case: NetworkCase
    measured: NetworkMeasurement
    fastest: float
    """Seconds in the best round."""
    slowest: float
    """Seconds in the worst round."""

    @classmethod
    def of(cls, case: NetworkCase, rounds: list[NetworkMeasurement]) -> Record:
        """Summarise the measurements of all rounds of a case, at least one."""
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
    """A target."""

    name: str
    wanted: float
    found: float
    at_least: bool
    """Whether a larger value is better."""

    @property
    def met(self) -> bool:
        """Whether the target was reached."""
        return self.found >= self.wanted if self.at_least else self.found <= self.wanted


@dataclass(frozen=True)
class NetworkResults:
    """Results of a benchmark."""

    machine: str
    rounds: int
    floor: NetworkFloor
    records: list[Record]
    accuracy: list[Accuracy]
    sittings: int = 1
    """How often the benchmark was started until it was done."""

    def find(self, case: NetworkCase) -> NetworkMeasurement | None:
        """Return the measurement of a case; None if it was not measured or failed."""
        return next((r.measured for r in self.records if r.case == case), None)

    def plain(self, case: NetworkCase, *, kept: bool = False) -> NetworkCase:
        """Return the published form of a case, with the default allocator if it was measured.

        `kept` takes the allocator that keeps freed memory in any case.
        """
        same = replace(case, form="plain", keep_memory=True)
        default = replace(same, keep_memory=False)
        return default if not kept and self.find(default) else same

    def faster(self, case: NetworkCase, *, kept: bool = False) -> float:
        """Return the ratio of the published form's time; NaN if a measurement is missing."""
        fast, plain = self.find(case), self.find(self.plain(case, kept=kept))
        return plain.seconds / fast.seconds if fast and plain else float("nan")

    def lighter(self, case: NetworkCase) -> float:
        """Return the ratio to the published form's peak memory; NaN if a measurement is missing."""
        fast, plain = self.find(case), self.find(self.plain(case))
        return fast.peak / max(1, plain.peak) if fast and plain else float("nan")

    def targets(self) -> list[Target]:
        """Return the targets of what was measured."""
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
        """Say how many of the targets are met."""
        targets = self.targets()
        return f"{sum(t.met for t in targets)} of {len(targets)} targets met"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        targets = [asdict(target) | {"met": target.met} for target in self.targets()]
        return asdict(self) | {"targets": targets}


_READING = """\
Every case runs in a process of its own, after a small pair that loads code and starts threads; all
cases in turn, in several rounds: medians, and the best and worst round. In a round, a case of less
than two seconds runs up to five times; a case of over half a minute is measured only in the first
round. Inputs and weights are random, except for accuracy.

- **form**: `plain` is the published form (eager float32 by torch's operators, contiguous, volume
  filled by a loop, one image after the other, head on the full volume); `exact` is the rearranged
  form in float32; `fast` the same in bfloat16 (in training autocast).
- **allocator**: `kept` is glibc told to keep freed memory, as by all commands.
- **peak** is in addition to the loaded network and its inputs; for a step, in addition to what was
  held when it began.
- **arithmetic** is the time of the published multiply-adds (twice that for a backward pass) at the
  better rate of a matrix product and a 3 x 3 x 3 convolution in this run; a form that multiplies
  less can be faster. **traffic** is the time to write and read ten volumes of the aggregation at
  the bandwidth of a copy.
"""


def benchmark_markdown(results: NetworkResults, name: str) -> str:
    """Return the report as Markdown; `name` is that of its files, without endings."""
    inference = [r for r in results.records if not r.case.training]
    training = [r for r in results.records if r.case.training]
    subject = "The network" if inference else "A training step"
    parts = [f"# {subject}: published form and fast forms", _machine(results), _READING]
    if results.targets():
        parts += ["## Targets", _targets(results), f"{results.verdict()}."]
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
        f"{results.machine}; medians of {results.rounds}{told_sittings(results.sittings)}; copy "
        f"{floor.bytes_per_second / 1e9:.1f} GB/s, {rates}."
    )


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
        "than plain kept": results.faster(case, kept=True),
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
"""Colours from the first to the last layer of a step."""
_LINES = {"plain": ("#d55e00", "plain"), "fast": ("#0072b2", "fast")}


def layer_plot(results: NetworkResults) -> NDArray[np.uint8]:
    """Draw a bar for every case of inference, stacked by layer; (h, w, 3) uint8 RGB."""
    records = [r for r in results.records if r.measured.layers]
    largest = max(r.case.max_disparity for r in records)
    records = [r for r in records if r.case.max_disparity == largest]
    sizes = sorted({r.case.size for r in records}, key=lambda size: -size[0] * size[1])[:2]
    figure = new_figure(15, 6.5)
    panels = np.atleast_1d(figure.subplots(1, len(sizes)))
    for axes, size in zip(panels, sizes, strict=True):
        title = f"{size[0]} x {size[1]}, D = {largest}"
        _bars(axes, [r for r in records if r.case.size == size], title)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", frameon=False, reverse=True)
    figure.subplots_adjust(left=0.05, right=0.82, top=0.93, bottom=0.14, wspace=0.15)
    return to_image(figure)


def _bars(axes: Axes, records: Sequence[Record], title: str) -> None:
    names = [
        f"{r.case.form}\n{'kept' if r.case.keep_memory else 'default'}\n{r.case.network}"
        for r in records
    ]
    bottom = np.zeros(len(records))
    for layer, colour in _colours(list(records[0].measured.layers)).items():
        heights = np.array([r.measured.layers.get(layer, 0.0) for r in records])
        axes.bar(names, heights, bottom=bottom, color=colour, label=layer, width=0.7)
        bottom += heights
    dress(axes, title=title, y="seconds", grid="y")


def _colours(layers: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Choose a shade of its step's colours for every layer."""
    found: dict[str, NDArray[np.float64]] = {}
    for step, shades in _SHADES.items():
        own = [layer for layer in layers if layer.startswith(f"{step}/")]
        scale = LinearSegmentedColormap.from_list(step, shades)
        found |= {layer: np.array(scale(i / max(1, len(own) - 1))) for i, layer in enumerate(own)}
    return found


def growth_plot(results: NetworkResults) -> NDArray[np.uint8]:
    """Draw time and memory against pixels and disparities; (h, w, 3) uint8 RGB."""
    figure = new_figure(13, 9)
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
        upper, lower = panels[:, column]
        _lines(upper, chosen, place, "", "seconds", lambda r: r.measured.seconds)
        _lines(lower, chosen, place, label, "peak, bytes", lambda r: max(1, r.measured.peak))
    panels[0, 0].legend(frameon=False)
    figure.subplots_adjust(left=0.08, right=0.98, top=0.97, bottom=0.07, wspace=0.2, hspace=0.15)
    return to_image(figure)


def _lines(
    axes: Axes,
    records: Sequence[Record],
    place: Callable[[NetworkCase], int],
    across: str,
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
    dress(axes, x=across, y=label)
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(EngFormatter(sep=" "))
        axis.set_minor_formatter(NullFormatter())
