"""A run on one page: `summary.md` and `curves.png`, from what its folder records.

Written when a run ends or is stopped; `python -m ea_psmnet.training.summary RUN` writes it of one
that goes on, or was killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from ea_psmnet.files import write_text
from ea_psmnet.records import read_record
from ea_psmnet.tables import markdown_table
from ea_psmnet.training.curves import Records, write_curves
from ea_psmnet.training.environment import read_sessions
from ea_psmnet.training.metrics_log import read_metrics

__all__ = ["write_summary"]

_FIGURES = ("EPE", "bad-1", "bad-3")


def write_summary(folder: Path) -> Path:
    """Write a run's page and its curves into its folder.

    Returns:
        The page.

    Raises:
        FileNotFoundError: the folder holds no run that has begun.
        ValueError: what it records is damaged, as by hand.
        OSError: it cannot be written.
    """
    records, sessions = (
        read_metrics(folder / "metrics.jsonl"),
        read_sessions(folder / "environment.json"),
    )
    begun = any(record["kind"] == "step" for record in records) and sessions
    if not begun or not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no run that has taken a step is in this folder")
    config = read_record(folder / "config.json", dict[str, Any], remedy="damaged")
    try:
        parts = [
            f"# Training run {folder.absolute().name}",
            _state(records, sessions[-1]),
            _facts(config, records, sessions),
            *_validation([record for record in records if record["kind"] == "validation"]),
            "## Curves\n\n![loss, error, learning rate and validation](curves.png)",
        ]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        told = f"config.json, environment.json or metrics.jsonl is damaged ({error!r})"
        raise ValueError(f"{folder}: {told}") from error
    write_curves(folder / "curves.png", records)
    write_text(folder / "summary.md", "\n\n".join(parts) + "\n")
    return folder / "summary.md"


def _state(records: Records, session: dict[str, Any]) -> str:
    taken, steps = records[-1]["step"], session["steps"]
    if taken == steps:
        return f"Finished: {steps:,} steps."
    return f"Not finished: {taken:,} of {steps:,} steps; the same command goes on."


# What was trained, from what, for how long -------------------------------------------------------


def _facts(config: dict[str, Any], records: Records, sessions: Sequence[dict[str, Any]]) -> str:
    facts = _recipe(config, sessions[-1]) | _course(config, records, len(sessions))
    facts |= _program(sessions)
    return markdown_table([{"what": name, "this run": told} for name, told in facts.items()])


def _recipe(config: dict[str, Any], session: dict[str, Any]) -> dict[str, str]:
    network = config["network"] or config["preset"]
    height, width = config["crop"]
    micro, processes = config["micro_batch"], session["processes"]
    accumulated = config["batch"] // (micro * processes)
    batch = f"{micro} at once x {accumulated} in turn x {_count(processes, 'process')}"
    optimiser = f"Adam, rate {config['lr']:g} ({config['schedule']})"
    for name, label in (("clip", "gradients clipped to"), ("ema", "weights averaged with")):
        optimiser += f", {label} {config[name]:g}" if config[name] else ""
    return {
        "network": f"{network}, {session['parameters']:,} parameters",
        "trained from": config["init"] or f"scratch, seed {config['seed']}",
        "data": _data(config),
        "samples": f"{height} x {width}, up to {config['max_disparity']} px of disparity",
        "batch": f"{config['batch']}: {batch}",
        "optimiser": optimiser,
        "precision, normalisation": f"{session['precision']}, {config['normalisation']}",
    }


def _data(config: dict[str, Any]) -> str:
    single = f"{config['data']} {config['root'] or ''}".strip()
    changes = "" if config["augment"] == "none" else f"; augmentation: {config['augment']}"
    return (", ".join(config["mix"]) or single) + changes


def _course(config: dict[str, Any], records: Records, starts: int) -> dict[str, str]:
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
        "samples a second": f"{overall:.3g} overall, {median(rates):.3g} in the median step",
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


def _validation(records: Records) -> list[str]:
    """A table of the final and the best validation, by true disparity; nothing without one."""
    measured = [record for record in records if record.get("EPE") is not None]
    if not measured:
        return []
    final, best = measured[-1], min(measured, key=lambda record: record["EPE"])
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


def main(arguments: Sequence[str]) -> int:
    """Write the page of the run folder that is named."""
    if len(arguments) != 1:
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
