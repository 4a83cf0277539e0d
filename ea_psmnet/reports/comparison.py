"""Variants side by side under one memory budget, each workload in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from tqdm import tqdm

from datasets.builder import build_dataset
from ea_psmnet.files import content_hash, write_json
from ea_psmnet.machine import choose_device
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.records import read_record
from ea_psmnet.reports.budget import Budget
from ea_psmnet.reports.forecast import Forecast, SiteForecast, count_parameters, forecast
from ea_psmnet.reports.methods import digest
from ea_psmnet.reports.module_trace import attention_site
from ea_psmnet.reports.own_process import run_module
from ea_psmnet.reports.trial import Outcome, Trial
from ea_psmnet.reports.workloads import is_bfloat16

__all__ = ["KEPT_FILES", "Comparison", "Result", "compare", "expected_seconds", "machine"]

KEPT_FILES = r"[0-9a-f]{16}\.json"
"""Names of the files that outcomes are kept in, as a regular expression."""

_START_S = 10.0
"""Seconds of a trial's process before its work: Python, torch, the network."""


@dataclass(frozen=True)
class Result:
    """A trial, what was to be expected, and what came."""

    trial: Trial
    parameters: int
    forecast: Forecast | None
    """None where the process died before it said what it was given."""
    outcome: Outcome

    @property
    def asked(self) -> SiteForecast | None:
        """The closed form of the attention module that ran out of memory, if one did."""
        site = attention_site(self.outcome.module or "")
        return self.forecast.sites.get(site) if self.forecast and site else None

    @property
    def demand(self) -> int | None:
        """The least memory it would have needed: its peak, and what it was refused."""
        if self.outcome.peak is None or self.outcome.end == "failed":
            return None
        return self.outcome.peak + (self.outcome.requested or 0)

    @property
    def naive(self) -> bool:
        """Whether attention stores weights between all pairs of positions."""
        return bool(self.forecast and any(s.map_bytes for s in self.forecast.sites.values()))


@dataclass(frozen=True)
class Comparison:
    """All results under one budget."""

    budget: Budget
    machine: dict[str, Any]
    results: Sequence[Result]

    def of(self, work: str) -> list[Result]:
        """The results of one kind of work."""
        return [result for result in self.results if result.trial.work == work]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def compare(
    trials: Sequence[Trial], budget: Budget, *, timeout: float = 3600, kept: Path | None = None
) -> Comparison:
    """Run each trial in its own process, one after the other; a failure is an outcome too.

    Args:
        trials: of one device, precision and allocator.
        budget: theirs.
        timeout: seconds after which a process is ended.
        kept: folder where outcomes are kept and found again, a file a trial, so that a comparison
            that was stopped goes on; those that failed are tried again.

    Raises:
        ValueError: a network that cannot be built; nothing has run then.
    """
    configs = [PSMNetConfig.from_dict(trial.network) for trial in trials]
    parameters = [count_parameters(config) for config in configs]
    outcomes = [_outcome(trial, timeout, kept) for trial in _progress(trials)]
    results = [
        Result(trial, count, _forecast(config, trial, outcome), outcome)
        for trial, config, count, outcome in zip(trials, configs, parameters, outcomes, strict=True)
    ]
    return Comparison(budget, machine(trials[0]), results)


def machine(trial: Trial) -> dict[str, Any]:
    """What the figures of a trial depend on besides the network."""
    device = choose_device(trial.device)
    on_card = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_card else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": _dtype(trial),
        "allocator": "torch's caching allocator" if on_card else trial.allocator,
        "torch": torch.__version__,
    }


def expected_seconds(trials: Sequence[Trial], timeout: float) -> float:
    """How long trials take, about: operations at the speed of a convolution, and starting.

    Raises:
        ValueError: a network that cannot be built.
    """
    for trial in trials:
        count_parameters(PSMNetConfig.from_dict(trial.network))
    speed = _speed(trials[0])
    return sum(min(timeout, _START_S + _operations(trial) / speed) for trial in trials)


def _operations(trial: Trial) -> float:
    """Of all runs of a trial; a training step's backward has twice those of its forward."""
    config, shape, runs = PSMNetConfig.from_dict(trial.network), trial.shape, trial.repeats + 1
    if shape is None:
        dataset = build_dataset(trial.data, Path(trial.root or ""), split="test")
        height, width, _ = dataset[0].left.shape
        shape, runs = (1, height, max(width, config.max_disparity)), len(dataset)
    training = trial.work == "training"
    return runs * (3 if training else 1) * forecast(config, shape, training=training).operations


def _speed(trial: Trial) -> float:
    """Operations a second of a 3D convolution like the networks', the best of three."""
    options: dict[str, Any] = {"device": choose_device(trial.device)}
    options["dtype"] = getattr(torch, _dtype(trial))
    layer = torch.nn.Conv3d(32, 32, 3, padding=1, bias=False, **options)
    volume, times = torch.ones(1, 32, 24, 64, 128, **options), []
    with torch.inference_mode():
        for _ in range(3):
            start = time.perf_counter()
            layer(volume)[0, 0, 0, 0, 0].item()  # which waits for a card, too
            times.append(time.perf_counter() - start)
    return 2 * layer.weight.numel() * volume[0, 0].numel() / min(times)


def _progress(trials: Sequence[Trial]) -> Iterable[Trial]:
    bar = tqdm(trials, unit="trial")
    for trial in bar:
        size = "x".join(map(str, trial.shape or ()))
        bar.set_description(f"{trial.label} {trial.work} {size}".strip())
        yield trial


def _dtype(trial: Trial) -> str:
    return "bfloat16" if is_bfloat16(trial.device, trial.precision) else "float32"


def _forecast(config: PSMNetConfig, trial: Trial, outcome: Outcome) -> Forecast | None:
    shape = trial.shape or outcome.shape
    if shape is None:
        return None
    return forecast(config, shape, training=trial.work == "training", dtype=_dtype(trial))


def _outcome(trial: Trial, timeout: float, kept: Path | None) -> Outcome:
    """The outcome that is kept, or what comes of running the trial."""
    path = kept / f"{_fingerprint(trial)}.json" if kept else None
    if path and path.is_file():
        return _read(path)
    outcome = _run(trial, timeout)
    if path and outcome.end != "failed":
        write_json(path, asdict(outcome))
    return outcome


def _fingerprint(trial: Trial) -> str:
    """Differs between trials, weights and machines."""
    weights = content_hash(trial.checkpoint) if trial.checkpoint else ""
    return digest(json.dumps([asdict(trial), machine(trial), weights], sort_keys=True))


def _read(path: Path) -> Outcome:
    return read_record(path, Outcome, remedy="damaged: delete it, and its trial runs again")


def _run(trial: Trial, timeout: float) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder) / "outcome.json", Path(folder) / "log"
        request: dict[str, Any] = {"trial": asdict(trial), "outcome": str(answer)}
        with log.open("w") as file:
            # A dataset may take hours: its own progress bar stays in sight.
            said = None if trial.work == "dataset" else file
            end = _process(json.dumps(request), said, timeout)
        if not answer.is_file():
            return _dead(end, log.read_text(errors="replace"))
        return _read(answer)


def _process(request: str, stderr: IO[str] | None, timeout: float) -> str:
    """Run a trial's process to its end, or end it; returns how it ended."""
    try:
        process = run_module(
            "ea_psmnet.reports.trial", input=request, stderr=stderr, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return f"did not end within {timeout:.0f} s"
    if process.returncode < 0:
        return f"ended by {signal.Signals(-process.returncode).name}"
    return f"ended with exit status {process.returncode}"


def _dead(end: str, log: str) -> Outcome:
    """What became of a process that left no answer, from how it ended and what it said last."""
    if "bad_alloc" in log:  # thrown in a thread of a library, where nobody can catch it
        return Outcome("out of memory", error=f"the process {end} at std::bad_alloc")
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
    return Outcome("failed", error=f"the process {end}" + (f": {last}" if last else ""))
