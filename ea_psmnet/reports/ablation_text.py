"""An ablation as Markdown: mean and deviation, and differences seed by seed."""

from __future__ import annotations

from collections.abc import Iterator

from ea_psmnet.reports.ablation import Ablation, Spread
from ea_psmnet.tables import markdown_table

__all__ = ["ablation_markdown"]

_FIGURES = ("EPE", "bad-1", "bad-3")


def ablation_markdown(ablation: Ablation) -> str:
    """A table for each test set, what it says, and what diverged."""
    parts = [f"# Ablation: {ablation.question}", _introduction(ablation)]
    for test in ablation.tests:
        rows = [_cells(ablation, variant, test) for variant in ablation.variants]
        parts += [f"## Errors: {test}", markdown_table(rows)]
    notes = [f"- {note}" for note in _diverged(ablation)]
    if notes:
        parts += ["## Diverged", "\n".join(notes)]
    return "\n\n".join(parts)


def _introduction(ablation: Ablation) -> str:
    config = ablation.config
    source = str(config.root) if config.root else f"{config.scenes} rendered scenes"
    start = f", all from {config.init.name} without its attention" if config.init else ""
    width = "" if config.width is None else f" at width {config.width:g}"
    return (
        f"{config.steps} steps of {config.batch} crops of {config.crop[0]} x {config.crop[1]} from "
        f"{source}{start}, one-cycle to {config.lr:g}, {config.max_disparity} disparities, network "
        f"{config.preset}{width}; attention at {config.sites} where a variant names no place. "
        "Mean ± sample standard deviation over n seeds, those whose EPE is finite. All variants of "
        "a seed start from the same weights and see the same samples in the same order, so the "
        f"differences to {ablation.variants[0]} are taken seed by seed; their mean's interval is "
        "Student's. EPE in pixels, bad-1 and bad-3 in percent."
    )


def _cells(ablation: Ablation, variant: str, test: str) -> dict[str, object]:
    runs = ablation.of(variant)
    spreads = {name: ablation.spread(variant, test, name) for name in _FIGURES}
    first = variant == ablation.variants[0]
    difference = None if first else ablation.difference(variant, test, "EPE")
    return {
        "variant": variant,
        "parameters": f"{ablation.parameters[variant]:,}",
        "n": f"{spreads['EPE'].count} of {len(runs)}",
        **{name: _spread(spread) for name, spread in spreads.items()},
        "difference of EPE": "-" if difference is None else _spread(difference, signed=True),
        "95 % interval": "-" if difference is None else _interval(difference),
    }


def _spread(spread: Spread, *, signed: bool = False) -> str:
    """`1.234 ± 0.056`; a dash for what is not known."""
    if spread.mean is None:
        return "-"
    value = f"{spread.mean:+.3f}" if signed else f"{spread.mean:.3f}"
    return value if spread.deviation is None else f"{value} ± {spread.deviation:.3f}"


def _interval(spread: Spread) -> str:
    """`-0.123 to +0.045`; a dash for fewer than two seeds."""
    return " to ".join(f"{end:+.3f}" for end in spread.interval) if spread.interval else "-"


def _diverged(ablation: Ablation) -> Iterator[str]:
    for result in ablation.results:
        run = f"{result.variant}, seed {result.seed}"
        if result.diverged is not None:
            yield f"{run}: {result.diverged}"
        for test, figures in result.figures.items():
            if figures.get("EPE") is None:
                yield f"{run}: its predictions on {test} are not finite"
