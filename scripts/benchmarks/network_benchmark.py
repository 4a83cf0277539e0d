"""The network in its published form beside the fast ones: time, memory and accuracy, in one run.

    .venv/bin/python scripts/benchmarks/network_benchmark.py [OUT] [--quick] [--help]

Every case runs in processes of its own, the forms in turn and all of them several times. Writes
OUT.json, OUT.md, OUT-layers.png and OUT-growth.png. Run nothing beside it. Measures on a GPU where
there is one. After it was stopped, the same command goes on from the folder OUT.unfinished.
"""

from __future__ import annotations

from benchmarking import Answers, Request, ask, code_hash, run, write_results

# isort: split

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from network_cases import (
    Accuracy,
    Form,
    NetworkCase,
    NetworkFloor,
    NetworkMeasurement,
    measure_accuracy,
    measure_floor,
    measure_network,
)
from network_report import NetworkResults, Record, benchmark_markdown, growth_plot, layer_plot
from tqdm import tqdm

from ea_psmnet.datasets.builder import build_dataset
from ea_psmnet.files import (
    content_hash,
    write_image,
)
from ea_psmnet.inference.matcher import DEFAULT
from ea_psmnet.machine import choose_device, device_name
from ea_psmnet.models.weights import find_weights

_LARGEST_POOL = 64
_LONG = 30.0
"""Seconds from which on a case is measured only in the first round."""


@dataclass(frozen=True)
class Sizes:
    """Sizes to measure, from small to large."""

    inference: tuple[tuple[int, int], ...] = ((256, 512), (544, 960))
    pixels: tuple[tuple[int, int], ...] = ((128, 256), (256, 512), (384, 768), (544, 960))
    """Sizes to measure growth with pixels, at the largest number of disparities."""
    disparities: tuple[int, ...] = (48, 96, 192)
    """Disparities to measure growth with, at the first size of `inference`."""
    training: tuple[tuple[tuple[int, int], int], ...] = (((128, 256), 96), ((256, 512), 192))
    """Crops with their disparities."""
    batches: tuple[int, ...] = (1, 2, 4)
    networks: tuple[str, ...] = ("psmnet-small", "psmnet")
    """Presets to train."""


@dataclass(frozen=True)
class BenchmarkOptions:
    """Measure the network in its published form beside the fast ones."""

    out: tyro.conf.Positional[Path] = Path("docs/results/network-benchmark")
    """Path of the files to write, without endings."""
    only: Literal["all", "inference", "training", "accuracy"] = "all"
    """Measure only one part."""
    quick: bool = False
    """Measure fewer sizes in one round: about ten minutes on two cores."""
    rounds: int | None = None
    """Number of rounds; default: 3, or 1 with --quick."""
    checkpoint: Path = Path(DEFAULT)
    """Trained weights to measure accuracy with."""
    pairs: Path | None = None
    """Folder of NAME/left.png, right.png, disp.npy to measure accuracy on; default: scenes."""


def sizes_for(device: torch.device, *, quick: bool) -> Sizes:
    """Choose sizes for a device; on a GPU training goes up to the paper's batch of 24."""
    sizes = Sizes() if device.type == "cpu" else Sizes(batches=(1, 4, 24))
    if not quick:
        return sizes
    few = replace(sizes, pixels=((128, 256),), disparities=(96, 192), batches=sizes.batches[-1:])
    return replace(few, training=sizes.training[1:], batches=(1,)) if device.type == "cpu" else few


def cases(sizes: Sizes, part: str, device: torch.device) -> list[NetworkCase]:
    """Return all cases, each once; the forms of a size follow one another."""
    wanted = [
        *(_inference(sizes, device) if part in ("all", "inference") else ()),
        *(_training(sizes, device) if part in ("all", "training") else ()),
    ]
    return list(dict.fromkeys(wanted))


def _forms(case: NetworkCase, forms: Sequence[Form], device: torch.device) -> list[NetworkCase]:
    """Return the case in several forms; on a CPU the plain form with both allocators."""
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
                made += _forms(case, ("plain", "exact", "fast"), device)
    return made


def benchmark(options: BenchmarkOptions, sizes: Sizes | None = None) -> NetworkResults:
    """Measure, and write the results.

    Args:
        options: What to measure.
        sizes: Sizes to measure; default: those for this machine.

    Raises:
        FileNotFoundError: There is no such checkpoint, or there are no pairs.
        ValueError: An unfinished benchmark of other code or another machine lies at `options.out`.
    """
    device = torch.device(choose_device("auto"))
    rounds = options.rounds or (1 if options.quick else 3)
    chosen = sizes or sizes_for(device, quick=options.quick)
    wanted = cases(chosen, options.only, device)
    machine = f"torch {torch.__version__}, {device_name(device)}"
    settings = {"machine": machine, "code": code_hash()}
    answers = Answers(options.out.with_suffix(".unfinished"), settings)
    floor = answers.answer({"floor": True}, 0, measured, NetworkFloor)
    accuracy = _accuracies(options, answers)
    records = _measure_all(wanted, rounds, answers)
    results = NetworkResults(machine, rounds, floor, records, accuracy, answers.sittings)
    _write(options.out, results)
    answers.clear()
    return results


def _measure_all(wanted: list[NetworkCase], rounds: int, answers: Answers) -> list[Record]:
    """Measure all cases in rounds, so that a machine that slows down slows all forms alike."""
    found: dict[NetworkCase, list[NetworkMeasurement]] = {case: [] for case in wanted}
    for number, case in tqdm([(n, case) for n in range(rounds) for case in wanted], unit="case"):
        if any(each.seconds > _LONG for each in found[case]):
            continue
        try:
            found[case].append(answers.answer(asdict(case), number, measured, NetworkMeasurement))
        except ChildProcessError:  # out of memory: left out
            tqdm.write(f"failed: {case}", file=sys.stderr)
    return [Record.of(case, several) for case, several in found.items() if several]


def _accuracies(options: BenchmarkOptions, answers: Answers) -> list[Accuracy]:
    if options.only not in ("all", "accuracy"):
        return []
    weights, pairs = find_weights(options.checkpoint).resolve(), None
    if options.pairs is not None:
        pairs = str(options.pairs.resolve())
        build_dataset("folder", options.pairs, split="test")  # refuse an empty folder now
    request = {"checkpoint": str(weights), "hash": content_hash(weights), "pairs": pairs}
    return answers.answer(request, 0, measured, dict[str, list[Accuracy]])["accuracy"]


def measured(request: Request) -> Request:
    """Let a fresh process measure, the published form without compiled code."""
    plain = request.get("form") == "plain"
    return ask(__file__, request, os.environ | {"EA_PSMNET_COMPILE": "0"} if plain else None)


def answer(request: Request) -> Request:
    """Measure the machine, accuracy, or one case in this process."""
    if "floor" in request:
        return asdict(measure_floor())
    if "checkpoint" in request:
        pairs = None if request["pairs"] is None else Path(request["pairs"])
        found = measure_accuracy(Path(request["checkpoint"]), pairs)
        return {"accuracy": [asdict(one) for one in found]}
    case = NetworkCase(**request | {"size": tuple(request["size"])})
    return asdict(measure_network(case))


def main() -> None:
    """Run the benchmark from the command line."""
    print(benchmark(tyro.cli(BenchmarkOptions)).verdict())


def _write(out: Path, results: NetworkResults) -> None:
    write_results(out, results.to_dict(), benchmark_markdown(results, out.name))
    if any(not record.case.training for record in results.records):
        write_image(out.with_name(f"{out.name}-layers.png"), layer_plot(results))
        write_image(out.with_name(f"{out.name}-growth.png"), growth_plot(results))


if __name__ == "__main__":
    run(main, answer)
