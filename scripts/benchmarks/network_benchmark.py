"""The network in its published form beside the fast ones: time, memory and accuracy, in one run.

    .venv/bin/python scripts/benchmarks/network_benchmark.py [OUT] [--quick] [--help]

Every case runs in processes of its own, the forms in turn and all of them several times. Writes
OUT.json, OUT.md, OUT-layers.png and OUT-growth.png. Run nothing beside it. Measures on a GPU where
there is one. After it was stopped, the same command goes on from the folder OUT.unfinished.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from network_cases import (
    Form,
    NetworkCase,
    NetworkFloor,
    NetworkMeasurement,
    device_of_choice,
    measure_floor,
    measure_network,
)
from network_report import NetworkResults, Record, benchmark_markdown, growth_plot, layer_plot
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from datasets.synthetic import SyntheticScenes
from ea_psmnet.experiments.own_process import in_own_process, run_or_answer
from ea_psmnet.files import (
    content_hash,
    read_disparity,
    read_image,
    write_image,
    write_json,
    write_text,
)
from ea_psmnet.inference.matcher import DEFAULT
from ea_psmnet.machine import choose_device, device_name
from ea_psmnet.models.deploy import arrange_for_inference
from ea_psmnet.models.plain import PlainPSMNet
from ea_psmnet.models.psmnet import SIZE_MULTIPLE, PSMNet
from ea_psmnet.models.weight_files import find_weights
from ea_psmnet.models.weights import load_model
from ea_psmnet.sample import StereoSample
from ea_psmnet.store import BenchmarkJournal, code_hash

__all__ = [
    "Accuracy",
    "BenchmarkOptions",
    "Sizes",
    "benchmark",
    "cases",
    "measure_accuracy",
    "pair_folders",
]

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
    if device.type == "cuda":
        forms += ("graphs",)
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
    return in_own_process("network_benchmark", request)


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


@dataclass(frozen=True)
class Accuracy:
    """One pair, in pixels; EPE of known disparities that are searched."""

    name: str
    exact_max: float
    """Largest difference of the rearranged form to the published one in float32."""
    fast_mean: float
    """Mean difference of the form in bfloat16."""
    epe_plain: float
    epe_exact: float
    epe_fast: float


def measure_accuracy(checkpoint: Path, pairs: Path | None) -> list[Accuracy]:
    """Compare the forms on pairs of a folder, `NAME/left.png, right.png, disp.npy`, or scenes.

    Args:
        checkpoint: trained weights.
        pairs: None for scenes rendered here.

    Raises:
        FileNotFoundError: no such checkpoint, or no pairs in the folder.
    """
    model = load_model(checkpoint).eval().to(choose_device("auto"))
    networks = (
        PlainPSMNet(model),
        arrange_for_inference(model),
        arrange_for_inference(model, torch.bfloat16),
    )
    samples = _scenes() if pairs is None else _pairs(pairs)
    return [_compare(sample, networks) for sample in samples]


def _scenes() -> Iterator[StereoSample]:
    scenes = SyntheticScenes(split="test", size=(256, 512), count=3)
    return (scenes[index] for index in range(len(scenes)))


def pair_folders(folder: Path) -> list[Path]:
    """The pairs in a folder.

    Raises:
        FileNotFoundError: there are none.
    """
    found = sorted(path.parent for path in folder.glob("*/disp.npy"))
    if not found:
        raise FileNotFoundError(f"{folder}: no pairs: expected NAME/left.png, right.png, disp.npy")
    return found


def _pairs(folder: Path) -> Iterator[StereoSample]:
    for pair in pair_folders(folder):
        left, right = (read_image(pair / f"{view}.png") for view in ("left", "right"))
        disparity = read_disparity(pair / "disp.npy")[0]
        yield StereoSample(left, right, disparity, np.isfinite(disparity), pair.name)


def _compare(sample: StereoSample, networks: tuple[PSMNet, ...]) -> Accuracy:
    height, width = (side // SIZE_MULTIPLE * SIZE_MULTIPLE for side in sample.disparity.shape)
    window = np.s_[:height, :width]
    images = [_tensor(view[window]).to(networks[0].mean.device) for view in _views(sample)]
    plain, exact, fast = (
        _predict(network, images, fast=index == 2) for index, network in enumerate(networks)
    )
    truth = sample.disparity[window]
    known = sample.valid[window] & (truth > 0) & (truth < networks[0].config.max_disparity)
    epes = (float(np.abs(p - truth)[known].mean()) for p in (plain, exact, fast))
    differences = float(np.abs(exact - plain).max()), float(np.abs(fast - plain).mean())
    return Accuracy(sample.name, *differences, *epes)


def _views(sample: StereoSample) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return sample.left, sample.right


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def _predict(network: PSMNet, images: list[Tensor], *, fast: bool) -> NDArray[np.float32]:
    kind = images[0].device.type
    with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=fast):
        return network(*images).disparity[0].float().cpu().numpy()
