"""What a pair costs on a CPU, and what that buys: the networks beside OpenCV's matchers.

    .venv/bin/python scripts/benchmarks/stereo.py [--rounds N] [--pairs FOLDER] [--out FILE]

Run nothing beside it. Every round measures every method once in every situation (all threads, one
thread, beside two busy processes), so that a machine that slows down slows all of them; figures
are medians over the rounds, with the best and the worst. Peak memory is that of a process of its
own, in addition to what it held after a small pair. Freed memory is kept, as by all commands. A
benchmark that was stopped goes on where it was if it is started again.
--pairs is a folder of pairs with ground truth (`FOLDER/NAME/{left.png, right.png, disp.npy}`);
without it there are no errors.
"""

from __future__ import annotations

from benchmarking import Answers, Request, ask, busy, code_hash, run, write_results

# isort: split
import argparse
import functools
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from ea_psmnet.machine import has_fast_bfloat16, keep_freed_memory

keep_freed_memory()

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from stereo_methods import METHODS, Network, Predict
from stereo_report import AS_DENSE, SIZES, markdown, plot
from torch.nn import functional as F

from ea_psmnet.datasets.builder import build_dataset
from ea_psmnet.evaluation.regions import ALL, NEAR_EDGES, NON_OCCLUDED, regions
from ea_psmnet.experiments.networks import count_operations, count_parameters
from ea_psmnet.experiments.trial import TrainingSteps
from ea_psmnet.files import content_hash, write_image
from ea_psmnet.inference.baselines import BlockMatcher
from ea_psmnet.machine import held_bytes, peak_bytes, reset_peak
from ea_psmnet.models.config import preset
from ea_psmnet.models.layers import to_channels_last
from ea_psmnet.models.psmnet import build_model
from ea_psmnet.models.weights import BUNDLED
from ea_psmnet.sample import StereoSample
from ea_psmnet.training.run_folder import describe_environment

T = TypeVar("T")
Spent = dict[str, float]
"""Seconds of the clock and of all cores, and joules where the machine tells them."""

TRAINED = (256, 512)
TRAINS = ("ea-light", "light", "ea-psmnet-small", "ea-psmnet")
STREAM, FRAMES = (480, 640), 12
"""Size and number of the frames of a stream, for each of its processes."""
LIMIT = 192
_CPU = torch.device("cpu")
_ENERGY = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
_RATE_VOLUME = (1, 32, 48, 64, 128)
_RATE_OPERATIONS = 2 * 27 * 32 * 32 * 48 * 64 * 128


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--pairs", type=Path, help="folder of pairs with ground truth")
    parser.add_argument("--out", type=Path, default=Path("docs/results/stereo"))
    arguments = parser.parse_args()
    report = benchmark(arguments.methods, arguments.rounds, arguments.pairs, arguments.out)
    print(markdown(report, arguments.out.name))


def benchmark(names: list[str], rounds: int, pairs: Path | None, out: Path) -> dict[str, Any]:
    """Measure, write the results, and return them.

    Raises:
        FileNotFoundError: There are no pairs.
        ValueError: An unfinished benchmark of other code, weights, methods or pairs, or of another
            machine, lies at `out`.
    """
    methods = {name: METHODS[name].build() for name in names}
    machine = _machine()
    weights = [content_hash(path) for path in sorted(BUNDLED.glob("*.safetensors"))]
    settings = machine | {"code": code_hash(), "weights": weights, "methods": names}
    settings["pairs"] = None if pairs is None else pairs.resolve()
    texts = {name: str(value) for name, value in settings.items()}
    answers = Answers(out.with_suffix(".unfinished"), texts)
    of_own = functools.partial(ask, __file__)
    report = {
        "machine": machine,
        "methods": {name: _described(name) for name in methods},
        "pairs": _times(methods, rounds, answers),
        "training": _training_times(methods, rounds, answers),
        "rate_operations": _RATE_OPERATIONS,
        "peak_bytes": {
            name: answers.answer({"peak": name}, 0, of_own, dict[str, int])["bytes"]
            for name in methods
        },
        "stream": {
            name: answers.answer({"latency and throughput": name}, 0, _stream, Spent)
            for name in methods
            if not METHODS[name].slow
        },
        "errors": {} if pairs is None else _errors(methods, pairs, answers),
    }
    write_results(out, report, markdown(report, out.name))
    if report["errors"]:
        write_image(out.with_suffix(".png"), plot(report))
    answers.clear()
    return report


def answer(request: Request) -> Request:
    """Measure the memory of a pair, or the time of a stream of frames."""
    if "peak" in request:
        return {"bytes": _peak(METHODS[request["peak"]].build())}
    return {"seconds": _seconds_of_frames(METHODS[request["stream"]].build(), request["frames"])}


# Time and memory ----------------------------------------------------------------------------------


def _pair(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Noise whose views do not match within the range: their disparity is -20 pixels.

    What images show matters at two scales alone: here the first pass finds large disparities.
    """
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (size[0], size[1] + 20, 3), dtype=np.uint8)
    return wide[:, 20:].copy(), wide[:, :-20].copy()


def _spent(call: Callable[[], object]) -> Spent:
    energy, started, cores = _joules(), time.perf_counter(), time.process_time()
    call()
    spent = {"seconds": time.perf_counter() - started, "core_seconds": time.process_time() - cores}
    return spent if energy is None else spent | {"joules": (_joules() or 0) - energy}


def _joules() -> float | None:
    try:
        return int(_ENERGY.read_text()) / 1e6
    except OSError:
        return None


def _rounds(
    name: str, measure: Callable[[], T], rounds: int, answers: Answers, kind: type[T]
) -> Iterator[T]:
    """Yield what is measured in each round, kept or new.

    One before the first new one does not count: it compiles, allocates and fills caches.
    """
    warm_up = functools.cache(measure)

    def measured(_: Request) -> Any:
        warm_up()
        return measure()

    for number in range(rounds):
        yield answers.answer({"round": name}, number, measured, kind)
        print(f"{name}: round {number + 1} of {rounds}", file=sys.stderr)


def _times(methods: dict[str, Predict], rounds: int, answers: Answers) -> list[dict[str, Any]]:
    """Rows of method, size and situation, with what a pair takes."""
    taken: dict[tuple[str, str, str], list[Spent]] = defaultdict(list)
    kind = dict[str, dict[str, dict[str, Spent]]]
    measure = functools.partial(_measure_pairs, methods)
    for by_situation in _rounds("pairs", measure, rounds, answers, kind):
        for situation, by_size in by_situation.items():
            for size, by_method in by_size.items():
                for name, spent in by_method.items():
                    taken[name, size, situation].append(spent)
    return [
        {"method": name, "size": size, "situation": situation, **_summary(spent)}
        for (name, size, situation), spent in taken.items()
    ]


def _measure_pairs(methods: dict[str, Predict]) -> dict[str, dict[str, dict[str, Spent]]]:
    """What a pair takes, by situation, size and method, each measured once."""
    threads = torch.get_num_threads()
    situations = {"all threads": (threads, 0), "one thread": (1, 0), "busy": (threads, 2)}
    found: dict[str, dict[str, dict[str, Spent]]] = {}
    for situation, (count, others) in situations.items():
        torch.set_num_threads(count)
        cv2.setNumThreads(count)
        with busy(others) if others else nullcontext():
            found[situation] = {
                f"{size[1]}x{size[0]}": {
                    name: _spent(functools.partial(predict, *_pair(size)))
                    for name, predict in methods.items()
                    if situation == "all threads" or not METHODS[name].slow
                }
                for size in SIZES
            }
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    return found


def _summary(spent: list[Spent]) -> dict[str, dict[str, float]]:
    """Median, best and worst of each quantity."""
    return {
        quantity: {"median": statistics.median(values), "best": min(values), "worst": max(values)}
        for quantity in spent[0]
        for values in [[each[quantity] for each in spent]]
    }


def _training_times(methods: Container[str], rounds: int, answers: Answers) -> dict[str, Any]:
    """A training step of one sample, and a large convolution, which is the machine's rate."""
    calls: dict[str, Callable[[], object]] = {
        name: _training_step(name) for name in TRAINS if name in methods
    }
    dtypes = ("float32", "bfloat16") if has_fast_bfloat16("cpu") else ("float32",)
    calls |= {f"rate {dtype}": _convolution(dtype) for dtype in dtypes}

    def measure() -> dict[str, Spent]:
        return {name: _spent(call) for name, call in calls.items()}

    taken = list(_rounds("training", measure, rounds, answers, dict[str, Spent]))
    return {name: _summary([each[name] for each in taken])["seconds"] for name in calls}


def _training_step(name: str) -> Callable[[], object]:
    torch.manual_seed(0)
    network = build_model(name)
    to_channels_last(network)
    dtype = torch.bfloat16 if has_fast_bfloat16("cpu") else torch.float32
    return TrainingSteps(network, (1, *TRAINED), _CPU, dtype)


def _convolution(dtype: str) -> Callable[[], Any]:
    """A 3 x 3 x 3 convolution of 32 channels, channels-last."""
    layout, kind = torch.channels_last_3d, getattr(torch, dtype)
    volume = torch.randn(_RATE_VOLUME).to(kind, memory_format=layout)
    weight = torch.randn(32, 32, 3, 3, 3).to(kind, memory_format=layout)
    return torch.inference_mode()(lambda: F.conv3d(volume, weight, padding=1))


def _peak(predict: Predict) -> int:
    """Bytes that a pair of 960 x 540 takes in addition to what is held after a small one."""
    predict(*_pair((64, 256)))
    images = _pair((540, 960))
    before = held_bytes(_CPU)
    reset_peak(_CPU)
    predict(*images)
    return peak_bytes(_CPU) - before


def _stream(request: Request) -> Request:
    """Latency of a stream of frames with all threads, and frames a second of a process a core."""
    count = os.cpu_count() or 1
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    request = {"stream": request["latency and throughput"], "frames": FRAMES}
    latency = ask(__file__, request)["seconds"] / FRAMES
    with ThreadPoolExecutor(count) as pool:  # each waits for a process of its own
        together = list(pool.map(lambda _: ask(__file__, request, one)["seconds"], range(count)))
    return {"latency": latency, "frames_a_second": sum(FRAMES / seconds for seconds in together)}


def _seconds_of_frames(predict: Predict, frames: int) -> float:
    cv2.setNumThreads(torch.get_num_threads())
    images = _pair(STREAM)
    predict(*images)
    started = time.perf_counter()
    for _ in range(frames):
        predict(*images)
    return time.perf_counter() - started


def _machine() -> dict[str, Any]:
    return {
        "processor": describe_environment()["processor"],
        "threads": torch.get_num_threads(),
        "bfloat16": has_fast_bfloat16("cpu"),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
    }


def _described(name: str) -> dict[str, Any]:
    """Kind, and for networks parameters and multiply-adds of the published form."""
    method = METHODS[name]
    if method.preset is None:
        return {"kind": method.kind}
    config = preset(method.preset)
    macs = {size: count_operations(config, size) // 2 for size in (TRAINED, (544, 960))}
    return {
        "kind": method.kind,
        "parameters": count_parameters(config),
        "macs": {f"{height}x{width}": count for (height, width), count in macs.items()},
    }


# Errors -------------------------------------------------------------------------------------------


Errors = dict[str, dict[str, tuple[float, float, float]]]
"""EPE, bad-1 and bad-2 of a pair by method and region."""


def _errors(methods: dict[str, Predict], folder: Path, answers: Answers) -> dict[str, Any]:
    """EPE, bad-1 and bad-2 by method, kind of pair and region: means over the pairs of a kind."""
    pairs = build_dataset("folder", folder, split="test")
    found: dict[str, dict[str, dict[str, list[tuple[float, ...]]]]] = {}
    for number in range(len(pairs)):
        sample = pairs[number]
        measure = functools.partial(_errors_of_pair, methods, sample)
        request = {"errors of": sample.name}
        for name, by_region in answers.answer(request, 0, measure, Errors).items():
            by_kind = found.setdefault(name, {}).setdefault(_kind(sample.name), {})
            for region, errors in by_region.items():
                by_kind.setdefault(region, []).append(errors)
    return {
        name: {
            kind: {
                region: dict(
                    zip(("epe", "bad_1", "bad_2"), np.mean(values, 0).tolist(), strict=True)
                )
                | {"pairs": len(values)}
                for region, values in by_region.items()
            }
            for kind, by_region in by_kind.items()
        }
        for name, by_kind in found.items()
    }


def _errors_of_pair(methods: dict[str, Predict], sample: StereoSample, _: Request) -> Errors:
    """Errors of a pair by method and region.

    `AS_DENSE` has as many pixels as StereoSGBM leaves without filling its holes: of a network those
    of highest confidence, of OpenCV's methods their own.
    """
    parts = regions(sample, LIMIT)
    dense = np.isfinite(BlockMatcher("sgbm", LIMIT, fill=False)(sample.left, sample.right))
    found: Errors = {}
    for name, predict in methods.items():
        if not METHODS[name].accurate:
            continue
        disparity = predict(sample.left, sample.right)
        masks = {r: parts[r] for r in (ALL, NON_OCCLUDED, NEAR_EDGES) if r in parts}
        masks[AS_DENSE] = parts[ALL] & _surest(predict, sample, dense)
        for region, mask in masks.items():
            if mask.any():
                error = np.nan_to_num(np.abs(disparity - sample.disparity)[mask], nan=np.inf)
                bad_1, bad_2 = (float(100 * (error > threshold).mean()) for threshold in (1, 2))
                epe = float(np.minimum(error, LIMIT).mean())
                found.setdefault(name, {})[region] = (epe, bad_1, bad_2)
    return found


def _surest(predict: Predict, sample: StereoSample, dense: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mask (H, W) of as many pixels as `dense` has: of a network the most confident ones."""
    if not isinstance(predict, Network):
        return dense
    confidence = predict.confidence(sample.left, sample.right)
    least = np.partition(confidence, -dense.sum(), axis=None)[-dense.sum()]
    return confidence >= least


_KINDS = {
    "ft3d": "FlyingThings3D",
    "mb": "Middlebury",
    "kitti": "KITTI",
    "eth3d": "ETH3D",
    "newtsukuba": "New Tsukuba",
    "ntu": "crops of differing colour",
}


def _kind(name: str) -> str:
    """Kind of a pair, from the beginning of its folder's name."""
    return next((kind for start, kind in _KINDS.items() if name.startswith(start)), "other")


if __name__ == "__main__":
    run(main, answer)
