"""One network at one workload under a memory budget: `python -m ea_psmnet.experiments.trial`.

The program reads a `Trial` as JSON from standard input and writes an `Outcome` as JSON to the file
that is named with it. It runs in a separate process, which may die without harm to the others.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ea_psmnet.attention import VolumeAttention
from ea_psmnet.console import exit_code, is_out_of_memory
from ea_psmnet.datasets.builder import measuring_pairs
from ea_psmnet.evaluation.evaluation import evaluate
from ea_psmnet.experiments.measure import limited, median_seconds
from ea_psmnet.experiments.networks import Network
from ea_psmnet.files import write_json
from ea_psmnet.inference.matcher import StereoMatcher
from ea_psmnet.machine import (
    Device,
    Precision,
    choose_device,
    has_fast_bfloat16,
    held_bytes,
    keep_freed_memory,
    peak_bytes,
    reset_peak,
)
from ea_psmnet.models.config import PSMNetConfig
from ea_psmnet.models.layers import to_channels_last
from ea_psmnet.models.psmnet import PSMNet, build_model
from ea_psmnet.models.weights import load_model
from ea_psmnet.records import parse_record
from ea_psmnet.sample import StereoSample
from ea_psmnet.tables import check_range
from ea_psmnet.training.config import TrainingConfig
from ea_psmnet.training.data import StereoBatch
from ea_psmnet.training.processes import join_processes
from ea_psmnet.training.step import Arithmetic, OptimiserStep

Work = Literal["inference", "training", "dataset"]
"""Predict a random batch, train on a random batch, or predict a dataset and measure errors."""

End = Literal["fits", "out of memory", "failed"]
"""Result of a trial."""


@dataclass(frozen=True)
class Trial:
    """A network and its work."""

    label: str
    network: dict[str, Any]
    """Configuration of the network, from `PSMNetConfig.to_dict`."""
    checkpoint: str | None
    """Weights of the network; None for untrained ones."""
    work: Work
    shape: tuple[int, int, int] | None
    """Batch, height and width; None for a dataset, which has its own."""
    budget: int
    """Bytes that the process may take in addition to the loaded network."""
    data: str = "auto"
    root: str | None = None
    """Folder of the dataset, if the work is to predict one."""
    device: Device = "auto"
    precision: Precision = "auto"
    repeats: int = 3
    """Number of runs that are timed; every pair of a dataset is timed once."""


@dataclass(frozen=True)
class Outcome:
    """Result of a trial."""

    end: End
    shape: tuple[int, int, int] | None = None
    """Batch, height and width of the largest input of the network."""
    seconds: float | None = None
    """Time of a prediction or step of the batch, or of a pair of the dataset."""
    peak: int | None = None
    """Peak memory in addition to the loaded network, in bytes; until memory ran out, if it did."""
    figures: dict[str, float] | None = None
    """EPE and so on, for trained weights on a dataset."""
    requested: int | None = None
    """Bytes of the allocation that failed, if the allocator says."""
    module: str | None = None
    """Module that was at work when memory ran out; None outside the network."""
    error: str | None = None
    """Message of another error."""


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
        # Negative if memory that was free within the process sufficed.
        peak=max(0, peak_bytes(workload.device) - before),
        figures=_finite(figures) if trial.checkpoint and figures else None,
        requested=requested,
        module=workload.trace.current if end == "out of memory" else None,
    )


def _finite(figures: dict[str, float]) -> dict[str, float]:
    """Leave out NaN, which JSON lacks: nothing was counted, or a prediction was not finite."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _requested_bytes(message: str) -> int | None:
    """Read the size of a failed allocation from the message of torch's CPU or CUDA allocator.

    The latter rounds to 2 MiB, and in the message to hundredths of a unit.
    """
    if cpu := re.search(r"tried to allocate (\d+) bytes", message):
        return int(cpu[1])
    if cuda := re.search(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", message):
        return int(float(cuda[1]) * 1024 ** ("bytes", "KiB", "MiB", "GiB").index(cuda[2]))
    return None


# The trials of a comparison -----------------------------------------------------------------------

DEFAULT_SIZES = ("256x512",)
"""PSMNet's training crop; images of Scene Flow, padded to 544x960, take four times as long."""


@dataclass(frozen=True)
class Load:
    """Work for every network."""

    sizes: Sequence[str] = ()
    """Sizes of random images; default: `DEFAULT_SIZES`, or none if there is a dataset."""
    batches: Sequence[int] = (1,)
    root: Path | None = None
    """Folder of a dataset to predict."""
    data: str = "auto"


def plan(networks: Sequence[Network], load: Load, **options: Any) -> list[Trial]:
    """Make a trial for every network and workload; errors show here, before any trial runs.

    Args:
        networks: The networks.
        load: The work.
        options: Fields of `Trial`: budget, device, precision, repeats.

    Raises:
        ValueError, FileNotFoundError: A size or batch is impossible, or there is no dataset.
    """
    check_range("repeats", options.get("repeats", 1), 1, 1000)
    shapes = _shapes(load, max(network.config.max_disparity for network in networks))
    kinds: tuple[Work, ...] = ("inference", "training")
    works: list[tuple[Work, tuple[int, int, int] | None]] = list(product(kinds, shapes))
    if load.root is not None:
        measuring_pairs(load.data, load.root)
        works.append(("dataset", None))
    return [
        Trial(
            label=network.label,
            network=network.config.to_dict(),
            checkpoint=str(network.checkpoint) if network.checkpoint else None,
            work=work,
            shape=shape,
            data=load.data,
            root=str(load.root) if load.root else None,
            **options,
        )
        for work, shape in works
        for network in networks
    ]


def _shapes(load: Load, max_disparity: int) -> list[tuple[int, int, int]]:
    """Return batch, height and width of the random images, in order of pixels."""
    sizes = load.sizes or (() if load.root else DEFAULT_SIZES)
    shapes = [(batch, *_size(text, max_disparity)) for text in sizes for batch in load.batches]
    for batch in load.batches:
        check_range("a batch", batch, 1, 2**16)
    return sorted(set(shapes), key=lambda shape: (shape[0], shape[1] * shape[2]))


def _size(text: str, max_disparity: int) -> tuple[int, int]:
    known = re.fullmatch(r"(\d+)x(\d+)", text)
    sides = tuple(map(int, known.groups())) if known else ()
    if len(sides) != 2 or any(side % 16 for side in sides):
        raise ValueError(
            f"'{text}' is not a size: give height and width as 544x960, multiples of 16"
        )
    for side in sides:
        check_range(f"a side of '{text}'", side, 16, 2**14)
    if sides[1] < max_disparity:
        raise ValueError(
            f"images of {text} are narrower than the {max_disparity} disparities: lower "
            "--max-disparity or give larger --sizes"
        )
    return sides[0], sides[1]


# Workloads ----------------------------------------------------------------------------------------

_WHOLE = 2**62
"""Bytes that suffice for any plan, so that tiles do not avoid the budget."""


@dataclass(frozen=True)
class Measured:
    """Measurements of a workload that came to its end."""

    seconds: float
    """Time of a prediction or step of the batch, or of a pair of the dataset."""
    figures: dict[str, float] | None = None
    """Errors on a dataset."""


@dataclass(frozen=True)
class Workload:
    """Work for a network that is loaded."""

    device: torch.device
    trace: ModuleTrace
    run: Callable[[], Measured]


def is_bfloat16(device: Device, precision: Precision) -> bool:
    """Whether convolutions are computed in bfloat16, as the matcher chooses."""
    return precision != "exact" and has_fast_bfloat16(choose_device(device))


def _workload(trial: Trial) -> Workload:
    network = _network(trial)
    if trial.work == "dataset" or trial.shape is None:
        dataset = measuring_pairs(trial.data, trial.root or "")
        return _on_dataset(network, dataset, trial)
    work = _prediction if trial.work == "inference" else _training
    return work(network, trial.shape, trial)


def _network(trial: Trial) -> PSMNet:
    config = PSMNetConfig.from_dict(trial.network)
    if trial.checkpoint is None:
        torch.manual_seed(0)
        return build_model(config)
    return load_model(trial.checkpoint, max_disparity=config.max_disparity)


def _matcher(network: PSMNet, trial: Trial) -> StereoMatcher:
    return StereoMatcher(network, device=trial.device, precision=trial.precision, memory=_WHOLE)


def _prediction(network: PSMNet, shape: tuple[int, int, int], trial: Trial) -> Workload:
    """Predictions of a random batch (batch, height, width)."""
    matcher = _matcher(network, trial)
    left, right = _random_images(shape)
    pairs = list(zip(left, right, strict=True))

    def run() -> Measured:
        return Measured(median_seconds(lambda: matcher.match(pairs), matcher.device, trial.repeats))

    return Workload(matcher.device, ModuleTrace(matcher.model), run)


def _training(network: PSMNet, shape: tuple[int, int, int], trial: Trial) -> Workload:
    """Training steps on a random batch (batch, height, width).

    The first step, which makes the optimiser's moments, is not timed but counts for the peak.
    """
    device = torch.device(choose_device(trial.device))
    dtype = torch.bfloat16 if is_bfloat16(trial.device, trial.precision) else torch.float32
    to_channels_last(network)
    step = TrainingSteps(network, shape, device, dtype)
    trace = ModuleTrace(network)
    step.optimizer.register_step_pre_hook(lambda *_: trace.clear())

    def run() -> Measured:
        return Measured(median_seconds(step, device, trial.repeats))

    return Workload(device, trace, run)


class TrainingSteps:
    """Optimiser steps of `train` on one random batch.

    Args:
        network: The network; moved to the device and set to training.
        shape: Batch, height and width of the images.
        device: Where to compute.
        dtype: Type of the convolutions.
    """

    def __init__(
        self, network: PSMNet, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype
    ) -> None:
        batch, *crop = shape
        config = TrainingConfig(
            out=Path(),
            data="synthetic",
            batch=batch,
            crop=(crop[0], crop[1]),
            max_disparity=min(network.config.max_disparity, crop[1]),
        )
        network.train().to(device)
        accelerator = join_processes("cpu" if device.type == "cpu" else "cuda")
        arithmetic = Arithmetic(dtype, device.type)
        self._step = OptimiserStep(config, accelerator, network, network, arithmetic)
        self._rate = config.lr
        left, right = torch.from_numpy(_random_images(shape)).permute(0, 1, 4, 2, 3).contiguous()
        disparity = torch.full(shape, config.max_disparity / 2)
        valid = torch.ones(shape, dtype=torch.bool)
        self._batch = StereoBatch(left, right, disparity, valid)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the steps."""
        return self._step.optimizer

    def __call__(self) -> None:
        """Take a step."""
        self._step(iter([self._batch]), 1, self._rate)


def _on_dataset(network: PSMNet, dataset: Sequence[StereoSample], trial: Trial) -> Workload:
    """Prediction of every pair of a dataset, one by one, with errors."""
    matcher = _matcher(network, trial)

    def run() -> Measured:
        evaluation = evaluate(matcher, dataset, trial.label)
        return Measured(evaluation.seconds, evaluation.total.figures())

    return Workload(matcher.device, ModuleTrace(matcher.model), run)


def _random_images(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Noise (2, B, H, W, 3): memory and time do not depend on what images show."""
    return np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8)


# The module at work -------------------------------------------------------------------------------

_SITE = re.compile(r"aggregation\.(?:attention|hourglasses\.(\d)\.attention\.(\w+))")


class ModuleTrace:
    """Tracks by hooks which module of a network is at work, so that an error can name it.

    In the forward pass this is the innermost module that has not been left. In the backward pass it
    is the module whose output's gradient was computed last.
    """

    def __init__(self, network: nn.Module) -> None:
        self.largest: tuple[int, int, int] | None = None
        """Batch, height and width of the largest input so far."""
        self._entered: list[str] = []
        self._backward: str | None = None
        network.register_forward_pre_hook(self._see)
        for name, module in network.named_modules():
            module.register_forward_pre_hook(partial(self._enter, name or "network"))
            module.register_forward_hook(partial(self._leave, name or "network"))

    @property
    def current(self) -> str | None:
        """Name of the module, `network` for the outermost; None if none is at work."""
        return self._entered[-1] if self._entered else self._backward

    def clear(self) -> None:
        """Forget the module at work; call it after a backward pass, whose end no hook sees."""
        self._entered.clear()
        self._backward = None

    def _see(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        batch, _channels, height, width = inputs[0].shape
        seen = (batch, height, width)
        if self.largest is None or math.prod(seen) > math.prod(self.largest):
            self.largest = seen

    def _enter(self, name: str, *_: Any) -> None:
        self._entered.append(name)

    def _leave(self, name: str, module: nn.Module, _: Any, output: Any) -> None:
        self._entered.pop()
        leaf = isinstance(module, VolumeAttention) or not any(module.children())
        if leaf and isinstance(output, Tensor) and output.grad_fn is not None:
            output.grad_fn.register_prehook(partial(self._begin_backward, name))

    def _begin_backward(self, name: str, _: Any) -> None:
        self._backward = name


def attention_site(module: str) -> str | None:
    """Return the site of attention, one of `SITES`, that a module of `PSMNet` belongs to.

    Example:
        >>> attention_site("aggregation.hourglasses.0.attention.encoder.queries")
        'hourglass1.encoder'
    """
    match = _SITE.match(module)
    if match is None:
        return None
    index, place = match.groups()
    return "volume" if index is None else f"hourglass{int(index) + 1}.{place}"


# The program --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    trial: Trial
    outcome: str
    """File to write the outcome to."""


def _main() -> None:
    request = parse_record(sys.stdin.buffer.read(), _Request, "standard input")
    keep_freed_memory()
    try:
        outcome = run_trial(request.trial)
    except (ValueError, OSError) as error:
        outcome = Outcome("failed", error=str(error))
    write_json(request.outcome, asdict(outcome))


if __name__ == "__main__":
    sys.exit(exit_code(_main))
