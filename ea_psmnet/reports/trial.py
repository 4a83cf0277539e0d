"""One network at one workload under a memory budget: `python -m ea_psmnet.reports.trial`.

Reads a `Trial` as JSON from standard input and writes an `Outcome` as JSON to the file it names, in
a process of its own, so that a network that dies takes nothing with it.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from datasets.builder import build_dataset
from ea_psmnet.console import exit_code, is_out_of_memory
from ea_psmnet.files import write_json
from ea_psmnet.machine import Device, Precision, keep_freed_memory
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.psmnet import PSMNet, build_model
from ea_psmnet.models.weights import load_model
from ea_psmnet.records import parse_record
from ea_psmnet.reports.budget import limited
from ea_psmnet.reports.memory import held_bytes, peak_bytes, reset_peak
from ea_psmnet.reports.workloads import Workload, on_dataset, prediction, training_step

__all__ = ["Allocator", "End", "Outcome", "Trial", "Work", "run_trial"]

Work = Literal["inference", "training", "dataset"]
"""Predict a random batch, take training steps on one, or predict a dataset and measure errors."""

Allocator = Literal["kept", "default"]
"""Of the CPU: told to keep what is freed, as the commands do, or glibc as it comes."""

End = Literal["fits", "out of memory", "failed"]
"""How a trial ended."""


@dataclass(frozen=True)
class Trial:
    """What to run."""

    label: str
    network: dict[str, Any]
    """A `PSMNetConfig`, as `to_dict` gives it."""
    checkpoint: str | None
    """Its weights; None for fresh ones."""
    work: Work
    shape: tuple[int, int, int] | None
    """Batch, height and width; None on a dataset, which has its own."""
    budget: int
    """Bytes it may take above the loaded network."""
    data: str = "auto"
    root: str | None = None
    """The dataset, where that is the work."""
    device: Device = "auto"
    precision: Precision = "auto"
    allocator: Allocator = "kept"
    repeats: int = 3
    """Runs that are timed; on a dataset every pair counts once."""


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    end: End
    shape: tuple[int, int, int] | None = None
    """Batch, height and width of the largest input that the network took."""
    seconds: float | None = None
    """Time of a batch or step, or of a pair of the dataset."""
    peak: int | None = None
    """Highest memory above the loaded network, bytes; where it ran out, until then."""
    figures: dict[str, float] | None = None
    """EPE and so on, of trained weights on a dataset."""
    requested: int | None = None
    """Bytes of the allocation that failed, where the allocator says."""
    module: str | None = None
    """The module at work when memory ran out; None outside of the network."""
    error: str | None = None
    """What else ended it."""


def run_trial(trial: Trial) -> Outcome:
    """Run a workload within its budget; running out of memory is an outcome, not an error."""
    workload = _workload(trial)
    before = held_bytes(workload.device)
    reset_peak(workload.device)
    seconds = figures = requested = None
    end: End = "fits"
    try:
        with limited(trial.budget, workload.device):
            measured = workload.run()
        seconds, figures = measured.seconds, measured.figures
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        end, requested = "out of memory", _requested_bytes(str(error))
    return Outcome(
        end=end,
        shape=workload.trace.largest,
        seconds=seconds,
        peak=max(0, peak_bytes(workload.device) - before),  # what was free within may suffice
        figures=_finite(figures) if trial.checkpoint and figures else None,
        requested=requested,
        module=workload.trace.current if end == "out of memory" else None,
    )


def _workload(trial: Trial) -> Workload:
    network = _network(trial)
    if trial.work == "dataset" or trial.shape is None:
        dataset = build_dataset(trial.data, Path(trial.root or ""), split="test")
        return on_dataset(network, dataset, trial.device, trial.precision, trial.label)
    make = prediction if trial.work == "inference" else training_step
    return make(network, trial.shape, trial.device, trial.precision, trial.repeats)


def _network(trial: Trial) -> PSMNet:
    config = PSMNetConfig.from_dict(trial.network)
    if trial.checkpoint is None:
        torch.manual_seed(0)
        return build_model(config)
    return load_model(trial.checkpoint, max_disparity=config.max_disparity)


def _finite(figures: dict[str, float]) -> dict[str, float]:
    """JSON has no NaN; nothing was counted, or a prediction was not finite."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _requested_bytes(message: str) -> int | None:
    """The size of the failed allocation, from the message of torch's CPU or CUDA allocator.

    The latter rounds: to 2 MiB when it allocates, and to hundredths of a unit when it tells.
    """
    if cpu := re.search(r"tried to allocate (\d+) bytes", message):
        return int(cpu[1])
    if cuda := re.search(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", message):
        return int(float(cuda[1]) * 1024 ** ("bytes", "KiB", "MiB", "GiB").index(cuda[2]))
    return None


@dataclass(frozen=True)
class _Request:
    trial: Trial
    outcome: str
    """File to write the outcome to."""


def _main() -> None:
    request = parse_record(sys.stdin.buffer.read(), _Request, "standard input")
    trial = request.trial
    if trial.allocator == "kept":
        keep_freed_memory()
    try:
        outcome = run_trial(trial)
    except (ValueError, OSError) as error:
        outcome = Outcome("failed", error=str(error))
    write_json(request.outcome, asdict(outcome))


if __name__ == "__main__":
    sys.exit(exit_code(_main))
