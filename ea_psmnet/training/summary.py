"""A run on one page: `summary.md` and `curves.png`, from the records in the run folder.

They are written when a run ends or is stopped. `python -m ea_psmnet.training.summary RUN` also
writes them for a run that is in progress or was killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from ea_psmnet.figures import COLOURS, INK, dress, new_figure, to_image
from ea_psmnet.files import write_image, write_text
from ea_psmnet.records import read_record
from ea_psmnet.tables import markdown_table
from ea_psmnet.training.logs import read_metrics
from ea_psmnet.training.run_folder import read_sessions

_Records = Sequence[dict[str, Any]]

_FIGURES = ("EPE", "bad-1", "bad-3")


def write_summary(folder: Path) -> Path:
    """Write the page and the curves of a run into its folder.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: The folder holds no run that has taken a step.
        ValueError: Its records are damaged.
        OSError: The page cannot be written.
    """
    records = read_metrics(folder / "metrics.jsonl")
    sessions = read_sessions(folder / "environment.json")
    begun = any(record["kind"] == "step" for record in records) and sessions
    if not begun or not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no run that has taken a step is in this folder")
    config = read_record(folder / "config.json", dict[str, Any], remedy="damaged")
    try:
        best_step = _best_step(folder)
        parts = [
            f"# Training run {folder.absolute().name}",
            _state(config, records, sessions[-1]),
            _facts(config, records, sessions),
            *_validation(records, best_step),
            "## Curves\n\n![loss, error, learning rate and validation](curves.png)",
        ]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        told = f"config.json, environment.json or metrics.jsonl is damaged ({error!r})"
        raise ValueError(f"{folder}: {told}") from error
    write_curves(folder / "curves.png", records, best_step)
    write_text(folder / "summary.md", "\n\n".join(parts) + "\n")
    return folder / "summary.md"


def _state(config: dict[str, Any], records: _Records, session: dict[str, Any]) -> str:
    taken, steps = records[-1]["step"], session["steps"]
    validated = records[-1]["kind"] == "validation"
    if taken == steps and (validated or not config["validate_every"]):
        return f"Finished: {steps:,} steps."
    return f"Not finished: {taken:,} of {steps:,} steps; the same command continues."


# Facts about the run ------------------------------------------------------------------------------


def _facts(config: dict[str, Any], records: _Records, sessions: Sequence[dict[str, Any]]) -> str:
    facts = _recipe(config, sessions[-1]) | _course(config, records, len(sessions))
    facts |= _program(sessions)
    return markdown_table([{"what": name, "this run": told} for name, told in facts.items()])


def _recipe(config: dict[str, Any], session: dict[str, Any]) -> dict[str, str]:
    network = config["network"] or config["preset"]
    height, width = config["crop"]
    micro, processes = config["micro_batch"], session["processes"]
    accumulated = config["batch"] // (micro * processes)
    batch = f"{micro} at once x {accumulated} in turn x {_count(processes, 'process')}"
    features = config.get("structure", {}).get("features", "")  # older runs lack it
    pretrained = config.get("imagenet") and features.startswith("efficientnet")
    origin = "ImageNet's features, the rest from scratch" if pretrained else "scratch"
    names = ("cross_entropy", "likelihood")
    terms = [f"{config[n]:g} {n.replace('_', '-')}" for n in names if config.get(n)]
    optimiser = f"Adam, rate {config['lr']:g} ({config['schedule']})"
    for name, label in (("clip", "gradients clipped to"), ("ema", "weights averaged with")):
        optimiser += f", {label} {config[name]:g}" if config[name] else ""
    return {
        "network": f"{network}, {session['parameters']:,} parameters",
        "trained from": config["init"] or f"{origin}, seed {config['seed']}",
        "data": _data(config),
        "samples": f"{height} x {width}, up to {config['max_disparity']} px of disparity",
        "batch": f"{config['batch']}: {batch}",
        "loss": " + ".join(["smooth L1", *terms]),
        "optimiser": optimiser,
        "precision, normalisation": f"{session['precision']}, {config['normalisation']}",
    }


def _data(config: dict[str, Any]) -> str:
    single = f"{config['data']} {config['root'] or ''}".strip()
    changes = "" if config["augment"] == "none" else f"; augmentation: {config['augment']}"
    return (", ".join(config["mix"]) or single) + changes


def _course(config: dict[str, Any], records: _Records, starts: int) -> dict[str, str]:
    steps = [record for record in records if record["kind"] == "step"]
    elapsed, taken = records[-1]["elapsed"], records[-1]["step"]
    rates = [record["samples_per_second"] for record in steps]
    # Seconds of a step are batch / rate, so shares of the whole time weigh by 1 / rate.
    waited = sum(record["waiting"] / record["samples_per_second"] for record in steps)
    waiting = waited / sum(1 / rate for rate in rates)
    overall = config["batch"] * len(steps) / max(elapsed, 1e-3)  # told in milliseconds
    return {
        "training time": f"{timedelta(seconds=round(elapsed))}, {_count(starts, 'start')}",
        "samples seen": f"{config['batch'] * taken:,}",
        "samples per second": f"{overall:.3g} overall, {median(rates):.3g} in the median step",
        "waiting for data": f"{waiting:.1%} of the steps' time",
        "most memory": f"{max(record['memory'] for record in steps):.1f} GiB",
        "skipped steps": f"{steps[-1]['skipped']:.0f}",
    }


def _program(sessions: Sequence[dict[str, Any]]) -> dict[str, str]:
    last = sessions[-1]
    revisions = dict.fromkeys(_revision(session) for session in sessions)
    libraries = ", ".join(f"{name} {number}" for name, number in last["libraries"].items())
    threads = _count(last["threads"], "thread")
    machine = f"{last['device']}; {last['processor']}, {threads}; {last['system']}"
    return {
        "revision": ", then ".join(revisions),
        "versions": f"Python {last['python']}, {libraries}",
        "machine": machine,
    }


def _revision(session: dict[str, Any]) -> str:
    if session.get("revision") is None:
        return "unknown (no git clone)"
    return session["revision"][:12] + (" with changes" if session.get("dirty") else "")


def _count(number: int, noun: str) -> str:
    ending = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}" + ("" if number == 1 else ending)


# Validation --------------------------------------------------------------------------------------


def _best_step(folder: Path) -> int | None:
    """Number of steps of the best weights by the present images; None if there are none."""
    path = folder / "best.json"
    return read_record(path, dict[str, Any], remedy="damaged")["step"] if path.is_file() else None


def _validation(records: _Records, best_step: int | None) -> list[str]:
    """The final and the best validation by true disparity; empty without validations."""
    measured = [r for r in records if r["kind"] == "validation" and r.get("EPE") is not None]
    if not measured:
        return []
    final = measured[-1]
    best = next((r for r in reversed(measured) if r["step"] == best_step), final)
    shown = {"final": final} if final is best else {"final": final, "best": best}
    parts = {"all pixels": shown}
    for band in final["by_range"]:
        parts[band] = {name: record["by_range"].get(band, {}) for name, record in shown.items()}
    rows = [
        {"true disparity": part}
        | {f"{what}, {name}": each.get(what) for what in _FIGURES for name, each in figures.items()}
        for part, figures in parts.items()
        if figures["final"].get("EPE") is not None
    ]
    images = _count(final["images"], "image")
    when = f"Final, after {final['step']:,} steps, "
    when += "is the best" if final is best else f"and best, after {best['step']:,}"
    table = markdown_table(rows, {column: 3 for column in rows[0] if column.startswith("EPE")})
    return ["## Validation", f"{when}; {images}; EPE in pixels, bad-N in percent.", table]


# Curves -------------------------------------------------------------------------------------------


_BLACK, _BLUE = COLOURS[:2]
_BANDS = [COLOURS[index] for index in (6, 5, 3, 2, 4, 7)]
"""Colours of the bands of true disparity, from cold to hot."""
_BINS = 200
"""Maximum number of points of a curve."""


def write_curves(path: Path, records: _Records, best_step: int | None = None) -> None:
    """Plot the records of a `metrics.jsonl` as a PNG.

    Training curves are means over bins of steps, with bands from the 10th to the 90th percentile.
    The validation after `best_step` is marked.
    """
    steps = [record for record in records if record["kind"] == "step"]
    validations = [record for record in records if record["kind"] == "validation"]
    figure = new_figure(13, 8)
    (loss, epe), (rate, validation) = figure.subplots(2, 2)
    figure.subplots_adjust(
        left=0.06, right=0.985, top=0.955, bottom=0.065, hspace=0.25, wspace=0.14
    )
    _plot_training(loss, steps, "loss", "Training loss")
    _plot_training(epe, steps, "epe", "Training EPE, px")
    _plot_training(rate, steps, "lr", "Learning rate", logarithmic=False)
    _plot_validation(validation, validations, best_step)
    write_image(path, to_image(figure))


def binned(values: NDArray[np.floating], bins: int = _BINS) -> NDArray[np.float64]:
    """Means, 10th and 90th percentiles over bins of consecutive values, without NaN.

    Args:
        values: (N,), at least one.
        bins: Number of bins, of almost equal size.

    Returns:
        (3, min(bins, N)); NaN for bins without finite values.
    """
    parts = [part[np.isfinite(part)] for part in np.array_split(values, min(bins, len(values)))]
    columns = [(p.mean(), *np.quantile(p, (0.1, 0.9))) if p.size else (np.nan,) * 3 for p in parts]
    return np.array(columns, np.float64).T


def _plot_training(
    axes: Axes, steps: _Records, name: str, title: str, *, logarithmic: bool = True
) -> None:
    taken = np.array([record["step"] for record in steps], np.float64)
    if len(steps):
        at, (mean, low, high) = binned(taken)[0], binned(_column(steps, name))
        axes.fill_between(at, low, high, color=_BLUE, alpha=0.2, linewidth=0)
        axes.plot(at, mean, color=_BLUE, linewidth=1.6, marker="" if len(at) > 30 else ".")
    _style(axes, title, logarithmic=logarithmic)
    if not logarithmic:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:g}")


def _plot_validation(axes: Axes, validations: _Records, best_step: int | None) -> None:
    """Plot the EPE of all pixels (thick, best circled) and by true disparity (thin)."""
    at = [record["step"] for record in validations]
    bands = list(validations[0]["by_range"]) if validations else []
    for band, colour in zip(bands, _BANDS, strict=False):
        values = _column([record["by_range"].get(band, {}) for record in validations], "EPE")
        if np.isfinite(values).any():
            axes.plot(at, values, color=colour, marker=".", linewidth=1, label=band)
    total = _column(validations, "EPE")
    if np.isfinite(total).any():
        axes.plot(at, total, color=_BLACK, marker=".", linewidth=2, label="all pixels")
        for step, epe in zip(at, total, strict=True):
            if step == best_step:
                axes.plot(step, epe, "o", color=_BLACK, markersize=11, fillstyle="none")
        axes.legend(frameon=False, fontsize=9, ncols=2)
    _style(axes, "Validation EPE, px", logarithmic=True)


def _column(records: _Records, name: str) -> NDArray[np.float64]:
    """One field of all records, (N,); NaN where it is missing or null."""
    return np.array([record.get(name) for record in records], np.float64)


def _style(axes: Axes, title: str, *, logarithmic: bool) -> None:
    dress(axes, title=title, x="steps")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if not axes.lines:
        axes.text(0.5, 0.5, "no figures", transform=axes.transAxes, ha="center", color=INK)
    elif logarithmic and not any(np.any(np.asarray(line.get_ydata()) <= 0) for line in axes.lines):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def main(arguments: Sequence[str]) -> int:
    """Write the page of a run folder."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m ea_psmnet.training.summary RUN", file=sys.stderr)
        return 2
    try:
        print(write_summary(Path(arguments[0])))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
