"""Networks side by side under one memory budget, each workload in a process of its own."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from ea_psmnet.datasets.builder import measuring_pairs
from ea_psmnet.experiments.measure import Budget, timed
from ea_psmnet.experiments.networks import (
    Forecast,
    SiteForecast,
    count_parameters,
    forecast,
    network_report,
)
from ea_psmnet.experiments.own_process import run_program
from ea_psmnet.experiments.resources import decimal
from ea_psmnet.experiments.trial import Outcome, Trial, attention_site, is_bfloat16
from ea_psmnet.files import content_hash
from ea_psmnet.machine import choose_device
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.progress import Progress
from ea_psmnet.records import read_record
from ea_psmnet.store import Store, digest
from ea_psmnet.tables import format_bytes, markdown_table

_START_S = 10.0
"""Seconds until a trial's process begins its work: Python, torch, the network."""


@dataclass(frozen=True)
class Result:
    """A trial, its forecast and its outcome."""

    trial: Trial
    parameters: int
    forecast: Forecast | None
    """None if the process died before it could report the size of its input."""
    outcome: Outcome

    @property
    def refused(self) -> SiteForecast | None:
        """The closed form of the attention module that ran out of memory, if one did."""
        site = attention_site(self.outcome.module or "")
        return self.forecast.sites.get(site) if self.forecast and site else None

    @property
    def demand(self) -> int | None:
        """The least memory that was needed: the peak, and what was refused."""
        if self.outcome.peak is None or self.outcome.end == "failed":
            return None
        return self.outcome.peak + (self.outcome.requested or 0)

    @property
    def naive(self) -> bool:
        """Whether attention stores weights between all pairs of positions."""
        return bool(self.forecast and any(s.map_bytes for s in self.forecast.sites.values()))


@dataclass(frozen=True)
class Comparison:
    """Results of all trials under one budget."""

    budget: Budget
    machine: dict[str, Any]
    results: Sequence[Result]

    def of(self, work: str) -> list[Result]:
        """The results of one kind of work."""
        return [result for result in self.results if result.trial.work == work]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def compare(
    trials: Sequence[Trial], budget: Budget, *, timeout: float = 3600, kept: Store | None = None
) -> Comparison:
    """Run every trial in its own process, one after the other; a failure is also an outcome.

    Args:
        trials: Trials with the same device and precision.
        budget: The budget of the trials.
        timeout: Seconds after which a process is ended.
        kept: Outcomes are kept here, so that a comparison that was stopped goes on; trials that
            failed run again.

    Raises:
        ValueError: A network cannot be built; no trial has run then.
    """
    configs = [PSMNetConfig.from_dict(trial.network) for trial in trials]
    parameters = [count_parameters(config) for config in configs]
    outcomes = [_outcome(trial, timeout, kept) for trial in _progress(trials)]
    results = [
        Result(trial, count, _forecast(config, trial, outcome), outcome)
        for trial, config, count, outcome in zip(trials, configs, parameters, outcomes, strict=True)
    ]
    return Comparison(budget, machine(trials[0]), results)


def machine(trial: Trial) -> dict[str, Any]:
    """Describe what the measurements of a trial depend on besides the network."""
    device = choose_device(trial.device)
    on_card = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_card else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": _dtype(trial),
        "allocator": "torch's caching allocator" if on_card else "kept",
        "torch": torch.__version__,
    }


def expected_seconds(trials: Sequence[Trial], timeout: float) -> float:
    """Estimate the seconds that trials take, from the speed of a convolution.

    Raises:
        ValueError: A network cannot be built.
    """
    for trial in trials:
        count_parameters(PSMNetConfig.from_dict(trial.network))
    speed = _speed(trials[0])
    return sum(min(timeout, _START_S + _operations(trial) / speed) for trial in trials)


def _operations(trial: Trial) -> float:
    """Operations of all runs of a trial; a backward pass has twice those of the forward pass."""
    config, shape, runs = PSMNetConfig.from_dict(trial.network), trial.shape, trial.repeats + 1
    if shape is None:
        dataset = measuring_pairs(trial.data, trial.root or "")
        height, width, _ = dataset[0].left.shape
        shape, runs = (1, height, max(width, config.max_disparity)), len(dataset)
    training = trial.work == "training"
    return runs * (3 if training else 1) * forecast(config, shape, training=training).operations


def _speed(trial: Trial) -> float:
    """Operations per second of a 3D convolution as in the networks, the best of three."""
    options: dict[str, Any] = {"device": choose_device(trial.device)}
    options["dtype"] = getattr(torch, _dtype(trial))
    layer = torch.nn.Conv3d(32, 32, 3, padding=1, bias=False, **options)
    volume = torch.ones(1, 32, 24, 64, 128, **options)
    with torch.inference_mode():
        fastest = min(timed(lambda: layer(volume), volume.device) for _ in range(3))
    return 2 * layer.weight.numel() * volume[0, 0].numel() / fastest


def _progress(trials: Sequence[Trial]) -> Iterable[Trial]:
    bar = Progress(trials, unit="trial")
    for trial in bar:
        size = "x".join(map(str, trial.shape or ()))
        bar.set_description(f"{trial.label} {trial.work} {size}".strip())
        yield trial


def _dtype(trial: Trial) -> str:
    return "bfloat16" if is_bfloat16(trial.device, trial.precision) else "float32"


def _forecast(config: PSMNetConfig, trial: Trial, outcome: Outcome) -> Forecast | None:
    shape = trial.shape or outcome.shape
    if shape is None:
        return None
    return forecast(config, shape, training=trial.work == "training", dtype=_dtype(trial))


def _outcome(trial: Trial, timeout: float, kept: Store | None) -> Outcome:
    """Return the outcome that was kept, or run the trial."""
    if kept is None:
        return _run(trial, timeout)
    name = f"{_fingerprint(trial)}.json"
    found = kept.read(name, Outcome, "damaged: delete it, and its trial runs again")
    if found is not None:
        return found
    outcome = _run(trial, timeout)
    if outcome.end != "failed":
        kept.write(name, asdict(outcome))
    return outcome


def _fingerprint(trial: Trial) -> str:
    """A hash of the trial, its weights and the machine."""
    weights = content_hash(trial.checkpoint) if trial.checkpoint else ""
    return digest(json.dumps([asdict(trial), machine(trial), weights], sort_keys=True))


def _run(trial: Trial, timeout: float) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder) / "outcome.json", Path(folder) / "log"
        request: dict[str, Any] = {"trial": asdict(trial), "outcome": str(answer)}
        with log.open("w") as file:
            # A dataset may take hours: its progress bar is shown.
            stderr = None if trial.work == "dataset" else file
            end = _process(json.dumps(request), stderr, timeout)
        if not answer.is_file():
            return _dead(end, log.read_text(errors="replace"))
        return read_record(answer, Outcome)


def _process(request: str, stderr: IO[str] | None, timeout: float) -> str:
    """Run a trial's process until it ends or the time is up; returns how it ended."""
    try:
        process = run_program(
            "ea_psmnet.experiments.trial", input=request, stderr=stderr, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return f"did not end within {timeout:.0f} s"
    if process.returncode < 0:
        return f"was killed by {signal.Signals(-process.returncode).name}"
    return f"ended with exit status {process.returncode}"


def _dead(end: str, log: str) -> Outcome:
    """Return the outcome of a process without an answer, from its end and its last message."""
    if "bad_alloc" in log:  # thrown in a thread of a library, where it cannot be caught
        return Outcome("out of memory", error=f"the process {end} at std::bad_alloc")
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
    return Outcome("failed", error=f"the process {end}" + (f": {last}" if last else ""))


# Where memory crosses the budget ------------------------------------------------------------------


class Crossing(NamedTuple):
    """Input size at which memory reaches the budget."""

    pixels: float
    """Pixels of the whole batch."""
    bracketed: bool
    """Whether it lies between a size that fits and one that does not; otherwise extrapolated."""


def pixels(result: Result) -> int:
    """Number of pixels of a trial's batch."""
    return math.prod(result.trial.shape or (0,))


def curves(results: Sequence[Result]) -> dict[tuple[str, int], list[Result]]:
    """Group results on random images by network and batch, each in order of pixels."""
    grouped: dict[tuple[str, int], list[Result]] = {}
    for result in sorted((r for r in results if r.trial.shape), key=pixels):
        batch = result.trial.shape[0] if result.trial.shape else 0
        grouped.setdefault((result.trial.label, batch), []).append(result)
    return grouped


def crossing(curve: Sequence[Result], budget: int) -> Crossing | None:
    """Find the input size at which the memory of one network crosses a budget.

    Between a size that fits and one that does not, memory is modelled as a power of pixels. For a
    size that does not fit only a lower bound of its memory is known, so the crossing may be lower,
    but not below the last size that fits. Beyond the last two sizes that fit, memory is
    extrapolated linearly, or as b x + c x^2 if weights between all pairs of positions are stored.

    Args:
        curve: Results of one network, from `curves`.
        budget: Bytes.

    Returns:
        None if fewer than two sizes are known, or if memory does not grow.
    """
    known = [(pixels(r), r.demand, r.outcome.end) for r in curve if r.demand]
    refused = [i for i, (_, _, end) in enumerate(known) if end == "out of memory"]
    last = refused[0] if refused else len(known) - 1
    if last < 1:
        return None
    (x0, y0, _), (x1, y1, _) = known[last - 1], known[last]
    if y1 <= y0:
        return None
    if refused:
        share = math.log(budget / y0) / math.log(y1 / y0)
        return Crossing(x0 * (x1 / x0) ** min(max(share, 0), 1), bracketed=True)
    slope = (y1 - y0) / (x1 - x0)
    bend = (y1 / x1 - y0 / x0) / (x1 - x0)
    if not curve[0].naive or bend <= 0:
        return Crossing(x1 + (budget - y1) / slope, bracketed=False)
    rise = y1 / x1 - bend * x1
    return Crossing((math.sqrt(rise**2 + 4 * bend * budget) - rise) / (2 * bend), bracketed=False)


# As text ------------------------------------------------------------------------------------------

_TITLES = {
    "inference": "Prediction of random images",
    "training": "Training step on random images",
    "dataset": "Prediction of the dataset (size: the largest pair)",
}

_FIGURES = ("EPE", "bad-1", "bad-2", "bad-3", "D1")


def comparison_markdown(comparison: Comparison) -> str:
    """A comparison as Markdown: a table for every kind of work, networks out of memory, notes."""
    parts: list[str] = []
    for work, title in _TITLES.items():
        results = comparison.of(work)
        if results:
            parts += [f"## {title}", markdown_table([_cells(result) for result in results])]
    parts += _list("Out of memory", _refusals(comparison))
    parts += _list("Failed", _failures(comparison.results))
    parts += _crossings(comparison)
    parts += _list("Non-local attention", _non_local(comparison))
    parts += ["## How this was measured", _measuring(comparison)]
    return "\n\n".join(parts)


def _list(title: str, notes: Iterable[str]) -> list[str]:
    lines = [f"- {note}" for note in notes]
    return [f"## {title}", "\n".join(lines)] if lines else []


def _measuring(comparison: Comparison) -> str:
    machine = comparison.machine
    kept = "glibc told to keep freed memory, as by all commands"
    allocator = kept if machine["allocator"] == "kept" else machine["allocator"]
    return (
        "Memory is the peak in addition to the loaded network, under a budget of "
        f"{comparison.budget}; in training it includes gradients and the optimiser's moments. "
        "Operations and the closed form of attention are those of a forward pass: of the largest "
        f"module in prediction, of all modules in training. Measured on "
        f"{machine['device']} ({machine['threads']} threads), "
        f"{machine['dtype']}, torch {machine['torch']}; allocator: {allocator}."
    )


def _cells(result: Result) -> dict[str, object]:
    outcome, expected = result.outcome, result.forecast
    batch, *sides = outcome.shape or result.trial.shape or (0, 0, 0)
    figures = outcome.figures or {}
    cells: dict[str, object] = {
        "variant": result.trial.label,
        "size": f"{sides[0]} x {sides[1]}" if batch else "-",
        "batch": str(batch or "-"),
        "parameters": f"{result.parameters:,}",
        "operations": decimal(expected.operations) if expected else None,
        "attention": format_bytes(expected.attention_bytes) if expected else None,
        "memory": _memory(result),
        "s": outcome.seconds,
    }
    if result.trial.work == "dataset":
        cells |= {name: figures.get(name) for name in _FIGURES}
    return cells


def _memory(result: Result) -> str:
    fits = result.outcome.end == "fits"
    return format_bytes(result.outcome.peak or 0) if fits else result.outcome.end


def _refusals(comparison: Comparison) -> Iterator[str]:
    size = _exactly if comparison.machine["device"] == "cpu" else _roughly
    for result in comparison.results:
        outcome = result.outcome
        if outcome.end != "out of memory":
            continue
        if outcome.error:
            yield f"{_case(result)}: {outcome.error}."
            continue
        requested = size(outcome.requested) if outcome.requested else "an unknown amount"
        held = format_bytes(outcome.peak or 0)
        note = f"{_case(result)}: {outcome.module or 'code outside of the network'} asked for "
        note += f"{requested} after a peak of {held}."
        if result.refused:
            note += f" Its closed form: {_exactly(result.refused.bytes)}"
            if result.refused.map_bytes:
                note += f", of which one n x n map {_exactly(result.refused.map_bytes)}"
            note += "."
        yield note


def _failures(results: Iterable[Result]) -> Iterator[str]:
    for result in results:
        if result.outcome.end == "failed":
            yield f"{_case(result)}: {result.outcome.error}."


def _crossings(comparison: Comparison) -> list[str]:
    found: dict[tuple[str, int], dict[str, str]] = {}
    for work in ("inference", "training"):
        for key, curve in curves(comparison.of(work)).items():
            if told := _crossing(curve, comparison.budget.bytes):
                found.setdefault(key, {})[work] = told
    works = dict.fromkeys(work for told in found.values() for work in told)
    rows = [
        {"variant": label, "batch": str(batch)} | {work: told.get(work, "-") for work in works}
        for (label, batch), told in found.items()
    ]
    note = "Pixels of an image; ~ is extrapolated from the last two sizes that fit."
    title = "## Where memory crosses the budget"
    return [title, markdown_table(rows), note] if rows else []


def _crossing(curve: Sequence[Result], budget: int) -> str | None:
    """The crossing in pixels of an image; None if it cannot be found from the sizes."""
    batch, *_ = curve[0].trial.shape or (1,)
    at = crossing(curve, budget)
    if at is not None:
        return ("" if at.bracketed else "~ ") + decimal(at.pixels / batch)
    first = curve[0]
    ran_out = first.outcome.end == "out of memory"
    return f"below {decimal(pixels(first) / batch)}" if ran_out else None


def _non_local(comparison: Comparison) -> Iterator[str]:
    """Notes on sizes that fit the textbook form, and on the cost of the form with linear memory."""
    cases: dict[tuple[str, str], list[Result]] = {}
    for result in comparison.results:
        if result.naive:
            cases.setdefault((result.trial.label, result.trial.work), []).append(result)
    for (label, work), results in cases.items():
        ends = {
            verb: ", ".join(_size(r) for r in results if r.outcome.end == end)
            for verb, end in (("fits", "fits"), ("does not fit", "out of memory"))
        }
        told = "; ".join(f"{verb} at {sizes}" for verb, sizes in ends.items() if sizes)
        if told:
            yield f"{label} ({work}) stores n x n weights: {told}."
    yield from dict.fromkeys(_at_the_bottleneck(comparison.results))  # once for both works
    yield from _linear_memory(comparison.results)


def _at_the_bottleneck(results: Sequence[Result]) -> Iterator[str]:
    """Notes on the memory that a map that did not fit would take at 1/16."""
    for result in results:
        config = PSMNetConfig.from_dict(result.trial.network)
        shape = result.outcome.shape
        tried = any(site.endswith("bottleneck") for site in config.attention_sites)
        possible = config.aggregation == "hourglass" and not tried
        if result.naive and result.outcome.end == "out of memory" and shape and possible:
            lower = replace(config, attention_sites=("bottleneck",))
            site = network_report(lower, shape[1:], batch=shape[0]).sites[0]
            yield (
                f"{result.trial.label}, {_size(result)}: at 1/16 (bottleneck) one map would take "
                f"{format_bytes(site.map_bytes)}."
            )


def _linear_memory(results: Sequence[Result]) -> Iterator[str]:
    """Compare the time of dot-product attention by scaled_dot_product_attention with the others."""
    for result in results:
        attention, seconds = result.trial.network["attention_options"], result.outcome.seconds
        if attention.get("backend") != "sdpa" or seconds is None:
            continue
        rivals = [
            f"{seconds / other.outcome.seconds:.2f} times that of {other.trial.label}"
            for other in results
            if _same_task(other, result) and other.outcome.seconds
        ]
        if rivals:
            yield (
                f"{_case(result)}: memory linear in n ({format_bytes(result.outcome.peak or 0)}), "
                f"time still quadratic: {', '.join(rivals)}."
            )


def _same_task(other: Result, result: Result) -> bool:
    """Whether two results are of the same input, with attention at the same places or none."""
    a, b = other.trial, result.trial
    places = (a.network["attention_sites"], b.network["attention_sites"])
    same = (a.work, a.shape, a.network["width"]) == (b.work, b.shape, b.network["width"])
    return other is not result and same and (not places[0] or places[0] == places[1])


def _size(result: Result) -> str:
    batch, height, width = result.outcome.shape or result.trial.shape or (0, 0, 0)
    return f"{height} x {width}" + (f", batch {batch}" if batch != 1 else "")


def _case(result: Result) -> str:
    return f"{result.trial.label}, {result.trial.work}, {_size(result)}"


def _roughly(count: int) -> str:
    """Format a size that the allocator of a GPU has rounded."""
    return f"about {format_bytes(count)}"


def _exactly(count: int) -> str:
    return f"{format_bytes(count)} ({count:,} bytes)"
