"""The network in its published form against the fast ones: time, memory and accuracy, one run.

`python -m ea_psmnet.reports.network_benchmark OUT` measures every case in processes of its own, the
forms in turn and all of them several times over, and writes OUT.json, OUT.md, OUT-layers.png and
OUT-growth.png. Run nothing beside it. On a machine with a CUDA device it measures there. After a
kill the same command goes on from OUT.partial.jsonl.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tqdm import tqdm

from ea_psmnet.files import content_hash, write_image, write_json, write_text
from ea_psmnet.inference.matcher import DEFAULT
from ea_psmnet.machine import device_name
from ea_psmnet.models.weights import find_weights
from ea_psmnet.reports.benchmark_journal import BenchmarkJournal, code_hash
from ea_psmnet.reports.network_accuracy import Accuracy, measure_accuracy, pair_folders
from ea_psmnet.reports.network_benchmark_plot import growth_plot, layer_plot
from ea_psmnet.reports.network_benchmark_text import benchmark_markdown
from ea_psmnet.reports.network_cases import (
    Form,
    NetworkCase,
    NetworkMeasurement,
    device_of_choice,
    measure_network,
)
from ea_psmnet.reports.network_floor import NetworkFloor, measure_floor
from ea_psmnet.reports.network_results import NetworkResults, Record
from ea_psmnet.reports.own_process import in_own_process, run_or_answer

__all__ = ["BenchmarkOptions", "Sizes", "benchmark", "cases"]

_LARGEST_POOL = 64
_LONG = 30.0
"""Seconds of a run that is measured in the first round alone."""


@dataclass(frozen=True)
class Sizes:
    """What is measured, from small to large."""

    inference: tuple[tuple[int, int], ...] = ((256, 512), (544, 960))
    pixels: tuple[tuple[int, int], ...] = ((128, 256), (256, 512), (384, 768), (544, 960))
    """Growth with pixels, at the largest number of disparities."""
    disparities: tuple[int, ...] = (48, 96, 192)
    """Growth with disparities, at the first size of `inference`."""
    training: tuple[tuple[tuple[int, int], int], ...] = (((128, 256), 96), ((256, 512), 192))
    """Crops and their disparities."""
    batches: tuple[int, ...] = (1, 2, 4)
    networks: tuple[str, ...] = ("psmnet-small", "psmnet")
    """Presets that train."""


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure, and how often."""

    out: tyro.conf.Positional[Path] = Path("docs/network-benchmark")
    """Of the files to write, without their endings."""
    only: Literal["all", "inference", "training", "accuracy"] = "all"
    """One part alone."""
    quick: bool = False
    """Fewer sizes and rounds: about ten minutes on two cores."""
    rounds: int | None = None
    """How often each case is measured; default: 3, and 1 when quick."""
    checkpoint: Path = Path(DEFAULT)
    """Trained weights, for accuracy."""
    pairs: Path | None = None
    """Folder of NAME/left.png, right.png, disp.npy to measure accuracy on; default: scenes."""


def sizes_for(device: torch.device, *, quick: bool) -> Sizes:
    """On a card training goes up to the paper's batch of 24."""
    sizes = Sizes() if device.type == "cpu" else Sizes(batches=(1, 4, 24))
    if not quick:
        return sizes
    few = replace(sizes, pixels=((128, 256),), disparities=(96, 192), batches=sizes.batches[-1:])
    return replace(few, training=sizes.training[1:], batches=(1,)) if device.type == "cpu" else few


def cases(sizes: Sizes, part: str, device: torch.device) -> list[NetworkCase]:
    """All there is to measure, each once; the forms of a size follow one another."""
    wanted = [
        *(_inference(sizes, device) if part in ("all", "inference") else ()),
        *(_training(sizes, device) if part in ("all", "training") else ()),
    ]
    return list(dict.fromkeys(wanted))


def _forms(case: NetworkCase, forms: Sequence[Form], device: torch.device) -> list[NetworkCase]:
    """Of the plain form with either allocator, where the C library's is used at all."""
    made = [replace(case, form=form) for form in forms]
    if device.type == "cpu":
        made = [replace(case, form="plain", keep_memory=False), *made]
    return made


def _inference(sizes: Sizes, device: torch.device) -> list[NetworkCase]:
    most = sizes.disparities[-1]
    forms: tuple[Form, ...] = ("plain", "exact", "fast")
    made: list[NetworkCase] = []
    for size in sizes.inference:
        made += _forms(NetworkCase("plain", size, most), forms, device)
        made.append(NetworkCase("fast", size, most, network="ea-psmnet"))
    grown = [(size, most) for size in sizes.pixels]
    grown += [(sizes.inference[0], disparities) for disparities in sizes.disparities]
    for size, disparities in grown:
        made += _forms(NetworkCase("plain", size, disparities), ("fast",), device)
    return made


def _training(sizes: Sizes, device: torch.device) -> list[NetworkCase]:
    made: list[NetworkCase] = []
    for network in sizes.networks:
        for size, disparities in sizes.training:
            for batch in sizes.batches:
                if batch == 1 and min(size) < 4 * _LARGEST_POOL:
                    continue  # the plain form normalises a single pooled value: nothing to train
                case = NetworkCase("plain", size, disparities, network, batch, training=True)
                made += _forms(case, ("plain", "fast"), device)
    return made


def benchmark(options: BenchmarkOptions, sizes: Sizes | None = None) -> NetworkResults:
    """Measure, and write what came out.

    Args:
        options: what to measure.
        sizes: default: those for this machine.

    Raises:
        FileNotFoundError: no such checkpoint, or no pairs.
        ValueError: an unfinished run of other code or another machine lies at `options.out`.
    """
    device = device_of_choice()
    rounds = options.rounds or (1 if options.quick else 3)
    chosen = sizes or sizes_for(device, quick=options.quick)
    wanted = cases(chosen, options.only, device)
    machine = f"torch {torch.__version__}, {device_name(device)}"
    settings = {"machine": machine, "code": code_hash()}
    journal = BenchmarkJournal(options.out.with_suffix(".partial.jsonl"), settings)
    floor = journal.answer({"floor": True}, 0, ask, NetworkFloor)
    accuracy = _accuracies(options, journal)
    records = _measure_all(wanted, rounds, journal)
    results = NetworkResults(machine, rounds, floor, records, accuracy, journal.sittings)
    _write(options.out, results)
    journal.finish()
    return results


def _measure_all(wanted: list[NetworkCase], rounds: int, journal: BenchmarkJournal) -> list[Record]:
    """Round after round, so that a machine that slows down does so for all forms alike."""
    found: dict[NetworkCase, list[NetworkMeasurement]] = {case: [] for case in wanted}
    for number, case in tqdm([(n, case) for n in range(rounds) for case in wanted], unit="case"):
        if any(measured.seconds > _LONG for measured in found[case]):
            continue
        try:
            found[case].append(journal.answer(asdict(case), number, ask, NetworkMeasurement))
        except subprocess.CalledProcessError:  # out of memory: told as missing
            tqdm.write(f"failed: {case}", file=sys.stderr)
    return [Record.of(case, several) for case, several in found.items() if several]


def _accuracies(options: BenchmarkOptions, journal: BenchmarkJournal) -> list[Accuracy]:
    if options.only not in ("all", "accuracy"):
        return []
    weights, pairs = find_weights(options.checkpoint).resolve(), None
    if options.pairs is not None:
        pairs = str(options.pairs.resolve())
        pair_folders(options.pairs)  # here, where it is told in one line
    request = {"checkpoint": str(weights), "hash": content_hash(weights), "pairs": pairs}
    return journal.answer(request, 0, ask, dict[str, list[Accuracy]])["accuracy"]


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """What a fresh process of this module answers."""
    return in_own_process("ea_psmnet.reports.network_benchmark", request)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The child's side: the machine's floor, accuracy, or one case."""
    if "floor" in request:
        return asdict(measure_floor())
    if "checkpoint" in request:
        pairs = None if request["pairs"] is None else Path(request["pairs"])
        found = measure_accuracy(Path(request["checkpoint"]), pairs)
        return {"accuracy": [asdict(one) for one in found]}
    case = NetworkCase(**request | {"size": tuple(request["size"])})
    return asdict(measure_network(case))


def main() -> None:
    """The command line."""
    print(benchmark(tyro.cli(BenchmarkOptions)).verdict())


def _write(out: Path, results: NetworkResults) -> None:
    write_json(out.with_suffix(".json"), results.to_dict())
    write_text(out.with_suffix(".md"), benchmark_markdown(results, out.name))
    if any(not record.case.training for record in results.records):
        write_image(out.with_name(f"{out.name}-layers.png"), layer_plot(results))
        write_image(out.with_name(f"{out.name}-growth.png"), growth_plot(results))


if __name__ == "__main__":
    run_or_answer(main, answer)
