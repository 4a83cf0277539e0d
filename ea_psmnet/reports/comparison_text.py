"""A comparison as Markdown: tables, what ran out of memory and why, and what is fair to say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.reports.comparison import Comparison, Result
from ea_psmnet.reports.crossing import crossing, curves, pixels
from ea_psmnet.reports.network_resources import network_report
from ea_psmnet.reports.resources import decimal
from ea_psmnet.tables import format_bytes, markdown_table

__all__ = ["comparison_markdown"]

_TITLES = {
    "inference": "Prediction of random images",
    "training": "Training step on random images",
    "dataset": "Prediction of the dataset (size: the largest pair that was taken)",
}

_FIGURES = ("EPE", "bad-1", "bad-2", "bad-3", "D1")

_ALLOCATORS = {
    "kept": "glibc told to keep what is freed, as all commands do: faster, with a higher peak",
    "default": "glibc's own settings: slower, with a lower peak",
}


def comparison_markdown(comparison: Comparison) -> str:
    """Everything: a table for each kind of work, what did not fit, and how it was measured."""
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
    made_on = comparison.machine
    allocator = made_on["allocator"]
    return (
        f"Memory is the peak above the loaded network, under a budget of {comparison.budget}; of "
        "a training step it includes gradients and the optimiser's moments. Operations and the "
        "closed form of attention are of a forward: its largest module in prediction, all modules "
        f"in training. Measured on {made_on['device']} ({made_on['threads']} threads), "
        f"{made_on['dtype']}, torch {made_on['torch']}; allocator: "
        f"{_ALLOCATORS.get(allocator, allocator)}."
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
    told = _exactly if comparison.machine["device"] == "cpu" else _roughly
    for result in comparison.results:
        outcome = result.outcome
        if outcome.end != "out of memory":
            continue
        if outcome.error:
            yield f"{_case(result)}: {outcome.error}."
            continue
        asked = told(outcome.requested) if outcome.requested else "an unknown amount"
        held = format_bytes(outcome.peak or 0)
        note = f"{_case(result)}: {outcome.module or 'code outside of the network'} asked for "
        note += f"{asked} after a peak of {held}."
        if result.asked:
            note += f" Its closed form: {_exactly(result.asked.bytes)}"
            if result.asked.map_bytes:
                note += f", of which one n x n map {_exactly(result.asked.map_bytes)}"
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
    note = "Pixels an image. About (~): extrapolated from the last two sizes that fit."
    title = "## Where memory crosses the budget"
    return [title, markdown_table(rows), note] if rows else []


def _crossing(curve: Sequence[Result], budget: int) -> str | None:
    """In pixels an image; None where the sizes tried do not tell."""
    batch, *_ = curve[0].trial.shape or (1,)
    at = crossing(curve, budget)
    if at is not None:
        return ("" if at.bracketed else "~ ") + decimal(at.pixels / batch)
    first = curve[0]
    ran_out = first.outcome.end == "out of memory"
    return f"below {decimal(pixels(first) / batch)}" if ran_out else None


def _non_local(comparison: Comparison) -> Iterator[str]:
    """Where the textbook form fits, and what the linear-memory form of the same function costs."""
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
    """What the map that did not fit would take at 1/16."""
    for result in results:
        config = PSMNetConfig.from_dict(result.trial.network)
        shape = result.outcome.shape
        tried = any(site.endswith("bottleneck") for site in config.attention_sites)
        if result.naive and result.outcome.end == "out of memory" and shape and not tried:
            lower = replace(config, attention_sites=("bottleneck",))
            site = network_report(lower, shape[1:], batch=shape[0]).sites[0]
            yield (
                f"{result.trial.label}, {_size(result)}: at 1/16 (bottleneck) one map would take "
                f"{format_bytes(site.map_bytes)}."
            )


def _linear_memory(results: Sequence[Result]) -> Iterator[str]:
    """Dot-product attention through scaled_dot_product_attention beside the others, in time."""
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
    """Without attention, or with attention at the same places, on the same input."""
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
    """A card's allocator rounds what it tells."""
    return f"about {format_bytes(count)}"


def _exactly(count: int) -> str:
    return f"{format_bytes(count)} ({count:,} bytes)"
