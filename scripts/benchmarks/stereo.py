"""What a pair costs on a CPU, and what that buys: the networks beside OpenCV's matchers.

    .venv/bin/python scripts/benchmarks/stereo.py [--rounds N] [--pairs FOLDER] [--out FILE]

Run nothing beside it. Every round measures every method once in every situation (all threads, one
thread, beside two busy processes), so that a machine that slows down slows all of them; figures
are medians over the rounds, with the best and the worst. Peak memory is that of a process of its
own, in addition to what it held after a small pair. Freed memory is kept, as by all commands.
--pairs is a folder of pairs with ground truth (`FOLDER/NAME/{left.png, right.png, disp.npy}`);
without it there are no errors.
"""

from __future__ import annotations

from benchmarking import Request, ask, busy, run, write_results

# isort: split
import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

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
from ea_psmnet.files import write_image
from ea_psmnet.inference.baselines import BlockMatcher
from ea_psmnet.machine import held_bytes, peak_bytes, reset_peak
from ea_psmnet.models.config import preset
from ea_psmnet.models.layers import to_channels_last
from ea_psmnet.models.psmnet import build_model
from ea_psmnet.sample import StereoSample
from ea_psmnet.training.run_folder import describe_environment

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
    methods = {name: METHODS[name].build() for name in arguments.methods}
    report = {
        "machine": _machine(),
        "methods": {name: _described(name) for name in methods},
        "pairs": _times(methods, arguments.rounds),
        "training": _training_times(methods, arguments.rounds),
        "rate_operations": _RATE_OPERATIONS,
        "peak_bytes": {name: ask(__file__, {"peak": name})["bytes"] for name in methods},
        "stream": {name: _stream(name) for name in methods if not METHODS[name].slow},
        "errors": _errors(methods, arguments.pairs) if arguments.pairs else {},
    }
    text = markdown(report, arguments.out.name)
    write_results(arguments.out, report, text)
    if report["errors"]:
        write_image(arguments.out.with_suffix(".png"), plot(report))
    print(text)


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


def _spent(call: Callable[[], object]) -> dict[str, float]:
    """Wall-clock seconds, seconds of all cores, and joules where the machine tells them."""
    energy, started, cores = _joules(), time.perf_counter(), time.process_time()
    call()
    spent = {"seconds": time.perf_counter() - started, "core_seconds": time.process_time() - cores}
    return spent if energy is None else spent | {"joules": (_joules() or 0) - energy}


def _joules() -> float | None:
    try:
        return int(_ENERGY.read_text()) / 1e6
    except OSError:
        return None


def _times(methods: dict[str, Predict], rounds: int) -> list[dict[str, Any]]:
    """Rows of method, size and situation, with what a pair takes."""
    taken: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    threads = torch.get_num_threads()
    situations = {"all threads": (threads, 0), "one thread": (1, 0), "busy": (threads, 2)}
    for number in range(rounds + 1):
        for situation, (count, others) in situations.items():
            torch.set_num_threads(count)
            cv2.setNumThreads(count)
            with busy(others) if others else nullcontext():
                for size in SIZES:
                    images = _pair(size)
                    for name, predict in methods.items():
                        if METHODS[name].slow and situation != "all threads":
                            continue
                        spent = _spent(lambda predict=predict, images=images: predict(*images))
                        if number:  # the first round compiles, allocates and fills caches
                            key = name, f"{size[1]}x{size[0]}", situation
                            taken.setdefault(key, []).append(spent)
        print(f"round {number} of {rounds}", file=sys.stderr)
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    return [
        {"method": name, "size": size, "situation": situation, **_summary(spent)}
        for (name, size, situation), spent in taken.items()
    ]


def _summary(spent: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median, best and worst of each quantity."""
    return {
        quantity: {"median": statistics.median(values), "best": min(values), "worst": max(values)}
        for quantity in spent[0]
        for values in [[each[quantity] for each in spent]]
    }


def _training_times(methods: Container[str], rounds: int) -> dict[str, Any]:
    """A training step of one sample, and a large convolution, which is the machine's rate."""
    calls: dict[str, Callable[[], object]] = {
        name: _training_step(name) for name in TRAINS if name in methods
    }
    dtypes = ("float32", "bfloat16") if has_fast_bfloat16("cpu") else ("float32",)
    calls |= {f"rate {dtype}": _convolution(dtype) for dtype in dtypes}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            spent = _spent(call)
            if number:
                taken[name].append(spent)
    return {name: _summary(spent)["seconds"] for name, spent in taken.items()}


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


def _stream(name: str) -> dict[str, float]:
    """Latency of a stream of frames with all threads, and frames a second of a process a core."""
    count = os.cpu_count() or 1
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    request = {"stream": name, "frames": FRAMES}
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


def _errors(methods: dict[str, Predict], folder: Path) -> dict[str, Any]:
    """EPE, bad-1 and bad-2 by method, kind of pair and region: means over the pairs of a kind.

    `AS_DENSE` has as many pixels of each pair as StereoSGBM leaves without
    filling its holes: of a network those of highest confidence, of OpenCV's methods their own.
    """
    pairs = build_dataset("folder", folder, split="test")
    found: dict[str, dict[str, dict[str, list[tuple[float, ...]]]]] = {}
    for sample in (pairs[i] for i in range(len(pairs))):
        parts = regions(sample, LIMIT)
        dense = np.isfinite(BlockMatcher("sgbm", LIMIT, fill=False)(sample.left, sample.right))
        for name, predict in methods.items():
            if not METHODS[name].accurate:
                continue
            disparity = predict(sample.left, sample.right)
            masks = {r: parts[r] for r in (ALL, NON_OCCLUDED, NEAR_EDGES) if r in parts}
            masks[AS_DENSE] = parts[ALL] & _surest(predict, sample, dense)
            for region, mask in masks.items():
                if mask.any():
                    error = np.abs(disparity - sample.disparity)[mask]
                    error = np.nan_to_num(error, nan=np.inf)
                    by_kind = found.setdefault(name, {}).setdefault(_kind(sample.name), {})
                    bad = (float(100 * (error > threshold).mean()) for threshold in (1, 2))
                    epe = float(np.minimum(error, LIMIT).mean())
                    by_kind.setdefault(region, []).append((epe, *bad))
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
