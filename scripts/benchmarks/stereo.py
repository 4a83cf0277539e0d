"""Time, memory and arithmetic of the networks beside StereoSGBM, measured in turn in one run.

    .venv/bin/python scripts/benchmarks/stereo.py [--rounds N] [--out docs/results/stereo]

Run nothing beside it. Every round measures every method once, so that a machine that slows down
slows all of them; figures are medians over the rounds, with the best and the worst. Peak memory is
that of a process of its own, in addition to what it held after a small pair. Training steps are of
one sample, as `train` takes them; freed memory is kept, as by all commands.
"""

from __future__ import annotations

from benchmarking import Request, ask, run, write_results

# isort: split
import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ea_psmnet.machine import has_fast_bfloat16, keep_freed_memory

keep_freed_memory()

import numpy as np
import torch
from torch.nn import functional as F

from ea_psmnet.experiments.measure import timed
from ea_psmnet.experiments.networks import count_operations, count_parameters
from ea_psmnet.experiments.trial import TrainingSteps
from ea_psmnet.inference.baselines import BlockMatcher
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.machine import held_bytes, peak_bytes, reset_peak
from ea_psmnet.models.config import preset
from ea_psmnet.models.layers import to_channels_last
from ea_psmnet.models.psmnet import build_model
from ea_psmnet.tables import markdown_table
from ea_psmnet.training.run_folder import describe_environment

NETWORKS = ("ea-light", "light", "ea-psmnet-small", "ea-psmnet")
PREDICTED, TRAINED = (544, 960), (256, 512)
SGBM = "StereoSGBM, padded and filled"
_CPU = torch.device("cpu")


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--out", type=Path, default=Path("docs/results/stereo"))
    arguments = parser.parse_args()
    report = _measured(arguments.rounds)
    write_results(arguments.out, report, _markdown(report))
    print(_markdown(report))


def _pair(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a disparity of 20 pixels: times do not depend on what images show."""
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (size[0], size[1] + 20, 3), dtype=np.uint8)
    return wide[:, 20:].copy(), wide[:, :-20].copy()


def _predictor(name: str) -> Callable[[np.ndarray, np.ndarray], Any]:
    if name == SGBM:
        return BlockMatcher("sgbm", 192, pad=True)
    torch.manual_seed(0)
    return StereoMatcher(build_model(name).eval(), device="cpu")


def _training_step(name: str) -> Callable[[], object]:
    torch.manual_seed(0)
    network = build_model(name)
    to_channels_last(network)
    dtype = torch.bfloat16 if has_fast_bfloat16("cpu") else torch.float32
    return TrainingSteps(network, (1, *TRAINED), _CPU, dtype)


def _measured(rounds: int) -> dict[str, Any]:
    left, right = _pair(PREDICTED)
    calls: dict[str, Callable[[], Any]] = {}
    for name in (*NETWORKS, SGBM):
        predict = _predictor(name)
        calls[f"predict {name}"] = lambda predict=predict: predict(left, right)
    for name in NETWORKS:
        calls[f"train {name}"] = _training_step(name)
    calls |= {f"rate {dtype}": _convolution(dtype) for dtype in ("float32", "bfloat16")}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            taken = timed(call, _CPU)
            if number:  # the first one compiles, allocates and fills caches
                seconds[name].append(taken)
        print(f"round {number} of {rounds}", file=sys.stderr)
    return {
        "machine": _machine(),
        "seconds": {
            name: {"median": statistics.median(s), "best": min(s), "worst": max(s)}
            for name, s in seconds.items()
        },
        "peak_bytes": {name: ask(__file__, {"method": name})["peak"] for name in (*NETWORKS, SGBM)},
        "networks": {name: _arithmetic(name) for name in NETWORKS},
        "rate_operations": _RATE_OPERATIONS,
    }


_RATE_VOLUME = (1, 32, 48, 64, 128)
_RATE_OPERATIONS = 2 * 27 * 32 * 32 * 48 * 64 * 128


def _convolution(dtype: str) -> Callable[[], Any]:
    """The machine's rate: a 3 x 3 x 3 convolution of 32 channels, channels-last."""
    layout, kind = torch.channels_last_3d, getattr(torch, dtype)
    volume = torch.randn(_RATE_VOLUME).to(kind, memory_format=layout)
    weight = torch.randn(32, 32, 3, 3, 3).to(kind, memory_format=layout)
    return torch.inference_mode()(lambda: F.conv3d(volume, weight, padding=1))


def _machine() -> dict[str, Any]:
    return {
        "processor": describe_environment()["processor"],
        "threads": torch.get_num_threads(),
        "bfloat16": has_fast_bfloat16("cpu"),
        "torch": torch.__version__,
    }


def _arithmetic(name: str) -> dict[str, Any]:
    """Parameters, and multiply-adds of the published form's convolutions and matrix products."""
    config = preset(name)
    return {
        "parameters": count_parameters(config),
        "macs": {
            f"{height}x{width}": count_operations(config, (height, width)) // 2
            for height, width in (TRAINED, PREDICTED)
        },
    }


def answer(request: Request) -> Request:
    """Measure the bytes that a pair takes in addition to what was held before."""
    predict = _predictor(request["method"])
    predict(*_pair((64, 256)))
    left, right = _pair(PREDICTED)
    before = held_bytes(_CPU)
    reset_peak(_CPU)
    predict(left, right)
    return {"peak": peak_bytes(_CPU) - before}


def _markdown(report: dict[str, Any]) -> str:
    seconds, machine = report["seconds"], report["machine"]
    rate = max(
        report["rate_operations"] / seconds[f"rate {dtype}"]["median"]
        for dtype in ("float32", "bfloat16")
    )
    rows = []
    for name in (*NETWORKS, SGBM):
        predict, train = seconds[f"predict {name}"], seconds.get(f"train {name}")
        network = report["networks"].get(name)
        macs = network["macs"] if network else {}
        rows.append(
            {
                "method": name,
                "parameters": f"{network['parameters']:,}" if network else "-",
                "GMAC, 256 x 512": f"{macs['256x512'] / 1e9:.1f}" if network else "-",
                "s a pair, 544 x 960": _spread(predict),
                "floor, s": f"{2 * macs['544x960'] / rate:.3f}" if network else "-",
                "MiB": f"{report['peak_bytes'][name] / 2**20:.0f}",
                "s a training sample, 256 x 512": _spread(train) if train else "-",
                "floor of training, s": f"{6 * macs['256x512'] / rate:.3f}" if network else "-",
            }
        )
    return "\n\n".join(
        [
            "# Networks beside StereoSGBM",
            f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, "
            f"bfloat16 {'used' if machine['bfloat16'] else 'not used'}; 192 disparities, batch 1. "
            "Median (best to worst) of rounds that measure every method in turn. MiB: peak of a "
            "process of its own in addition to what it held before. GMAC: convolutions and matrix "
            "products of the plain form. Floor: those at the rate of a large convolution in the "
            f"same run, {rate / 1e9:.0f} GFLOP/s; a backward counts as two forwards.",
            markdown_table(rows),
            "Written by `scripts/benchmarks/stereo.py`.\n",
        ]
    )


def _spread(seconds: dict[str, float]) -> str:
    return f"{seconds['median']:.3f} ({seconds['best']:.3f} to {seconds['worst']:.3f})"


if __name__ == "__main__":
    run(main, answer)
