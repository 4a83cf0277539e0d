"""One variant under a memory budget, in a process of its own: `python -m ea_psmnet.reports.trial`.

Reads a `Trial` as JSON from standard input and writes an `Outcome` as JSON to the file it names, so
that a variant that dies takes nothing with it.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from datasets.builder import build_dataset
from ea_psmnet.files import write_json
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.machine import keep_freed_memory
from ea_psmnet.models.config import preset
from ea_psmnet.models.psmnet import build_model
from ea_psmnet.models.weights import load_model
from ea_psmnet.reports.evaluation import evaluate
from ea_psmnet.reports.memory import held_bytes, peak_bytes, reset_peak, status_bytes

__all__ = ["Outcome", "Trial", "run_trial"]


@dataclass(frozen=True)
class Trial:
    """What to run."""

    label: str
    checkpoint: str | None
    """Weights to measure errors with; None measures memory and time of a fresh network."""
    preset: str | None
    """The fresh network."""
    data: str
    root: str
    budget: int
    """Bytes it may take above the loaded network."""
    max_disparity: int


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    label: str
    parameters: int
    out_of_memory: bool
    requested: int | None = None
    """Bytes of the allocation that failed, where the allocator says."""
    peak: int | None = None
    """Highest resident memory above the loaded network, bytes."""
    seconds: float | None = None
    """Mean time a pair."""
    figures: dict[str, float] | None = None
    """EPE and so on; None for a fresh network."""
    error: str | None = None
    """What else ended it."""


def run_trial(trial: Trial) -> Outcome:
    """Evaluate a variant within its budget; running out of memory is an outcome, not an error."""
    model = (
        load_model(trial.checkpoint, max_disparity=trial.max_disparity)
        if trial.checkpoint
        else build_model(replace(preset(trial.preset or ""), max_disparity=trial.max_disparity))
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    matcher = StereoMatcher(model)
    dataset = build_dataset(trial.data, Path(trial.root), split="test")
    _limit_memory(trial.budget, matcher.device)
    before = held_bytes(matcher.device)
    reset_peak(matcher.device)
    try:
        evaluation = evaluate(matcher, dataset, trial.label)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        return Outcome(trial.label, parameters, True, requested=_requested_bytes(str(error)))
    seconds = [image.seconds for image in evaluation.images]
    return Outcome(
        trial.label,
        parameters,
        False,
        peak=peak_bytes(matcher.device) - before,
        seconds=sum(seconds) / len(seconds),
        figures=evaluation.to_dict()["total"] if trial.checkpoint else None,
    )


def _limit_memory(budget: int, device: torch.device) -> None:
    """Cap what this process may add to what it holds, from here on."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        allowed = held_bytes(device) + budget
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), device)
    else:
        # Data, not address space: the libraries' mappings are no memory of the network's.
        allowed = status_bytes("VmData") + budget
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))


def _is_out_of_memory(error: BaseException) -> bool:
    refused = isinstance(error, MemoryError | torch.OutOfMemoryError)
    # What torch's CPU allocator and oneDNN say; they have no exception of their own.
    said = ("can't allocate memory", "could not create a memory object", "bad_alloc")
    return refused or any(words in str(error) for words in said)


def _requested_bytes(message: str) -> int | None:
    """The size of the failed allocation, from the message of torch's CPU or CUDA allocator."""
    if cpu := re.search(r"tried to allocate (\d+) bytes", message):
        return int(cpu[1])
    if cuda := re.search(r"Tried to allocate ([\d.]+) (B|KiB|MiB|GiB)", message):
        return int(float(cuda[1]) * 1024 ** ("B", "KiB", "MiB", "GiB").index(cuda[2]))
    return None


def _main() -> None:
    keep_freed_memory()  # as the commands do: the figures are theirs
    request: dict[str, Any] = json.load(sys.stdin)
    trial = Trial(**request["trial"])
    try:
        outcome = run_trial(trial)
    except (ValueError, OSError) as error:
        outcome = Outcome(trial.label, 0, False, error=str(error))
    write_json(request["outcome"], asdict(outcome))


if __name__ == "__main__":
    _main()
