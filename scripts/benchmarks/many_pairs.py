"""Throughput of `predict` on many pairs: overlapping steps against one step after the other.

    python scripts/benchmarks/many_pairs.py --pairs FOLDER

Both ways read, predict and write the same pairs with the same network in one process; their rounds
alternate. Writes docs/results/many-pairs.json and .md.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import tyro
from benchmarking import ROOT, machine, run, write_results  # first: see there

from ea_psmnet.commands.options import CalibrationOptions, MatcherOptions
from ea_psmnet.commands.predict import pair_files
from ea_psmnet.commands.predicting import PairPredictor, PredictionOptions
from ea_psmnet.inference.inputs import PairSource, find_pairs
from ea_psmnet.inference.many import Work, predict_many


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    pairs: Path
    """Folder of pairs."""
    limit: int = 16
    """Number of pairs."""
    rounds: int = 3
    """Rounds of each way, after one that is not counted."""
    write: tuple[str, ...] = ("disparity", "preview")
    """Outputs, as of `predict`."""
    out: Path = ROOT / "docs" / "results" / "many-pairs"
    """Results, without suffix."""
    options: MatcherOptions = MatcherOptions()


def one_by_one(pairs: list[PairSource], work: Work) -> None:
    """Read, predict and write a pair before the next."""
    for pair in pairs:
        work.done(pair)
        prepared = work.read(pair)
        work.write(pair, prepared, work.predict(pair, prepared))


def overlapping(pairs: list[PairSource], work: Work) -> None:
    """Predict as the command does."""
    for outcome in predict_many(pairs, work):
        if outcome.error is not None:
            raise outcome.error


def measure(options: Options) -> dict[str, list[float]]:
    """Seconds of all rounds by way."""
    what = PredictionOptions(write=options.write)
    predictor = PairPredictor(what, CalibrationOptions(), options.options)
    pairs = find_pairs([options.pairs]).pairs[: options.limit]
    seconds: dict[str, list[float]] = {"one by one": [], "overlapping": []}
    for number in range(options.rounds + 1):
        for name, way in (("one by one", one_by_one), ("overlapping", overlapping)):
            with tempfile.TemporaryDirectory() as folder:
                work = pair_files(Path(folder), predictor)
                start = perf_counter()
                way(pairs, work)
                if number:
                    seconds[name].append(perf_counter() - start)
                print(f"round {number}, {name}: {perf_counter() - start:.2f} s", file=sys.stderr)
    return seconds


def main() -> None:
    """Measure, and write the results."""
    options = tyro.cli(Options, description=__doc__)
    count = len(find_pairs([options.pairs]).pairs[: options.limit])
    seconds = measure(options)
    rates = {name: count / statistics.median(values) for name, values in seconds.items()}
    ratio = rates["overlapping"] / rates["one by one"]
    lines = [
        "# Many pairs: overlapping steps against one after the other",
        "",
        "| way | pairs per second, median | rounds in seconds |",
        "|---|---|---|",
        *(
            f"| {name} | {rates[name]:.3f} | {', '.join(f'{v:.2f}' for v in values)} |"
            for name, values in seconds.items()
        ),
        "",
        f"{count} pairs, outputs {', '.join(options.write)}. Overlapping is {ratio:.2f} times as "
        f"fast. {machine()}.",
    ]
    record = {"pairs": count, "seconds": seconds, "ratio": ratio, "machine": machine()}
    write_results(options.out, record, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    run(main)
